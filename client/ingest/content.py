"""Says whether a header names the body part, the view and the presentation that a study takes.

In: the allow-listed attributes of one file, and what is wanted.
Out: what the header leaves unsaid; or `Unusable` with a reason.
Guarantees: whatever is stated must be wanted: an unknown word or code is refused, and so is a file
whose attributes contradict each other. Codes of schemes that nobody publishes say nothing.
Not covered: what the pixels show; free text such as a series description is never read.

The words are those of DICOM PS3.3 (C.8.11.5: ViewPosition), PS3.16 (CID 4010: views) and of
exports in other European languages. Codes are SNOMED CT and, in older files, SNOMED RT.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

from pydicom.dataset import Dataset

from client.ingest.dicom_header import text_of
from client.ingest.quarantine import Reason, Unusable
from client.ingest.request import BODY_PART, VIEW, Wanted

# what else than its name stands for a body part
SYNONYMS = {
    "CHEST": "CHEST THORAX THORAXES CXR LUNG LUNGS THORACIC TORAX TORACE TORACICO BRUST "
    "BRUSTKORB LUNGE LUNGEN POUMON POUMONS POITRINE PECHO PULMON PULMONES POLMONI PULMAO BORST "
    "LONGEN BRYST BROST RINTAKEHA HRUDNIK KLATKA PIERSIOWA PLUCA",
    "EYE": "EYE EYES RETINA FUNDUS OPHTHALMIC AUGE OEIL OJO OCCHIO OLHO",
    "HEAD": "HEAD BRAIN SKULL CRANIUM NEURO KOPF SCHADEL TETE CABEZA TESTA",
}
REGION_CODES = {
    "CHEST": {"816094009", "51185008", "T-D3000", "39607008", "T-28000"},
    "EYE": {"81745001", "T-AA000", "5665001", "T-AA610"},
    "HEAD": {"69536005", "T-D1100", "12738006", "T-A0100"},
}
# words beside a body part or a view that change neither
QUALIFIERS = set(
    "ROUTINE PORTABLE PORT MOBILE BED BEDSIDE ERECT UPRIGHT STANDING SITTING SUPINE SEMIERECT "
    "SEMI XR XRAY RX X RAY CR DX DR RADIOGRAPH FILM VIEW VIEWS VW V ADULT ADULTE CHILD PEDIATRIC "
    "PAEDIATRIC PED GRID NON NO WITH WITHOUT INSPIRATION EXPIRATION INSP EXP AND".split()
)
NOTHING = {"UNKNOWN", "NONE", "NA", "UNSPECIFIED", "UNDEFINED", "NULL", "EMPTY"}
# views by the letters of their names
VIEWS = {
    **dict.fromkeys(("PA", "POSTEROANTERIOR", "POSTERIORANTERIOR", "POSTANT"), "PA"),
    **dict.fromkeys(("AP", "ANTEROPOSTERIOR", "ANTERIORPOSTERIOR"), "AP"),
    **dict.fromkeys(("LL", "LEFTLATERAL", "LLAT", "LTLAT", "LATERALLEFT"), "LL"),
    **dict.fromkeys(("RL", "RIGHTLATERAL", "RLAT", "RTLAT", "LATERALRIGHT"), "RL"),
    **dict.fromkeys(("LAT", "LATERAL", "LATERALE", "SEITLICH", "PROFIL"), "LATERAL"),
    **dict.fromkeys(("FRONTAL", "FRONT"), "FRONTAL"),
    **dict.fromkeys(("LLD", "LEFTLATERALDECUBITUS", "LLDECUB"), "LLD"),
    **dict.fromkeys(("RLD", "RIGHTLATERALDECUBITUS", "RLDECUB"), "RLD"),
    **dict.fromkeys(("LLO", "LEFTLATERALOBLIQUE"), "LLO"),
    **dict.fromkeys(("RLO", "RIGHTLATERALOBLIQUE"), "RLO"),
}
VIEW_CODES = {
    **dict.fromkeys(("272479007", "R-40888", "R-10214"), "PA"),
    **dict.fromkeys(("399348003", "R-10206"), "AP"),
    **dict.fromkeys(("399033003", "R-10202"), "FRONTAL"),
    **dict.fromkeys(("399067008", "R-102CD"), "LATERAL"),
    **dict.fromkeys(("399173006", "R-10236"), "LL"),
    **dict.fromkeys(("399198007", "R-10232"), "RL"),
}
# a view that is one of several, and those
SEVERAL = {"FRONTAL": {"PA", "AP"}, "LATERAL": {"LL", "RL"}}
# what ImageType calls an ophthalmic photograph that is none in colour
ONE_COLOUR = {"FA", "ICG", "FAF", "AF", "AUTOFLUORESCENCE", "REDFREE", "RED", "BLUE", "IR"}
SCHEMES = {"SCT", "SRT", "SNM3", "99SDM"}
CLASS = ("SOPClassUID",)
# the SOP class says it, too (PS3.4 B.5)
MEANT_FOR = {
    "1.2.840.10008.5.1.4.1.1.1.1": "FOR PRESENTATION",
    "1.2.840.10008.5.1.4.1.1.1.1.1": "FOR PROCESSING",
}


def check_content(header: Dataset, wanted: Wanted, *, refuse_silent: bool) -> tuple[str, ...]:
    """Return which of `body part` and `view` are wanted and not named by the header.

    Raises Unusable: wrong-channels, wrong-body-part, wrong-view, wrong-presentation;
    silent-header where the site refuses such files.
    """
    if wanted.colour:
        _check_colour_photograph(header)
    silent = []
    if wanted.body_parts and not _body_part_named(header, wanted.body_parts):
        silent.append(BODY_PART)
    if wanted.views and not _view_named(header, set(wanted.views)):
        silent.append(VIEW)
    _check_presentation(header, wanted.presentation)
    if silent and refuse_silent:
        raise Unusable(Reason.SILENT_HEADER)
    return tuple(silent)


def _body_part_named(header: Dataset, parts: Sequence[str]) -> bool:
    """Whether the header names a body part that is wanted; raises Unusable for another one."""
    words = {word for part in parts for word in SYNONYMS.get(part, part).split()}
    found = False
    for text in texts_of(header, "BodyPartExamined"):
        named = [word for word in _words(text) if word not in NOTHING]
        named = [rest for word in named for rest in _parts_of(word, words)]
        other = [word for word in named if word not in QUALIFIERS and word not in VIEWS]
        if set(other) - words:
            raise Unusable(Reason.WRONG_BODY_PART)
        found = found or bool(other)

    # the region by its code
    codes = {code for part in parts for code in REGION_CODES.get(part, ())}
    for code in _codes(header, "AnatomicRegionSequence"):
        if code not in codes:
            raise Unusable(Reason.WRONG_BODY_PART)
        found = True
    return found


def _parts_of(word: str, known: set[str]) -> tuple[str, ...]:
    """The word; or its two parts, where it is a known one and a qualifier or a view run together.

    So CHESTPA is CHEST and PA.
    """
    for name in known:
        for rest in (word.removeprefix(name), word.removesuffix(name)):
            if rest != word and (rest in QUALIFIERS or rest in VIEWS):
                return (name, rest)
    return (word,)


def _view_named(header: Dataset, views: set[str]) -> bool:
    """Whether the header names a view that is wanted; raises Unusable for another one."""
    found = False
    for view in _views(header):
        # a view that is one of two: neither is wanted, both are, or it cannot be known
        possible = SEVERAL.get(view, {view})
        if not possible & views:
            raise Unusable(Reason.WRONG_VIEW)
        found = found or possible <= views
    return found


def _views(header: Dataset) -> Iterator[str]:
    """Every view that the header names; "OTHER" for one that we do not know."""
    named = False
    for text in texts_of(header, "ViewPosition"):
        words = [word for word in _words(text) if word not in NOTHING and word not in QUALIFIERS]
        if words:
            named = True
            yield VIEWS.get("".join(words), "OTHER")
    for code in _codes(header, "ViewCodeSequence"):
        named = True
        yield VIEW_CODES.get(code, "OTHER")
    if not named:
        yield from _views_by_other_attributes(header)


def _views_by_other_attributes(header: Dataset) -> Iterator[str]:
    """The views that stand beside the body part, else what the patient's orientation shows."""
    named = False
    for text in texts_of(header, "BodyPartExamined"):
        for word in _words(text):
            for part in _parts_of(word, set(SYNONYMS["CHEST"].split())):
                if part in VIEWS:
                    named = True
                    yield VIEWS[part]
    if named:
        return
    # the first letters of where rows and columns lead (PS3.3 C.7.6.1.1.1)
    axes = {text[0] for text in texts_of(header, "PatientOrientation") if text}
    if axes & {"L", "R"}:
        yield "FRONTAL"
    elif axes & {"A", "P"}:
        yield "LATERAL"


def _check_colour_photograph(header: Dataset) -> None:
    """Refuse what is said to be an angiogram or a picture by light of one colour."""
    kinds = {text.upper() for text in texts_of(header, "ImageType")}
    agent = text_of(header, "ContrastBolusAgent").strip().upper()
    if kinds & ONE_COLOUR or agent not in ("", "NO", "NONE"):
        raise Unusable(Reason.WRONG_CHANNELS)


def _check_presentation(header: Dataset, presentation: Sequence[str]) -> None:
    """Refuse what is meant for another purpose, by its own attribute or by its SOP class."""
    if not presentation:
        return
    stated = [text.upper() for text in texts_of(header, "PresentationIntentType")]
    stated += [MEANT_FOR[name] for name in classes_of(header) if name in MEANT_FOR]
    if set(stated) - set(presentation):
        raise Unusable(Reason.WRONG_PRESENTATION)


def classes_of(header: Dataset) -> set[str]:
    """Return the SOP class that the data set names, and the one of the file's meta group.

    A caller reads the header with `more=CLASS`.
    """
    meta = getattr(header, "file_meta", None) or Dataset()
    return {text_of(header, "SOPClassUID"), text_of(meta, "MediaStorageSOPClassUID")}


def texts_of(header: Dataset, name: str) -> list[str]:
    """Return the short, stripped text values of an attribute that may have several."""
    values = header.get(name) or ()
    if isinstance(values, str):
        values = (values,)
    texts = [str(value).strip() for value in values]
    return [text[:64] for text in texts if text]


def _words(text: str) -> list[str]:
    """The words of a text: runs of letters, in capitals without accents."""
    plain = unicodedata.normalize("NFKD", text.upper())
    letters = "".join(sign for sign in plain if not unicodedata.combining(sign))
    return re.findall(r"[A-Z]+|[^\W\d_]+", letters)


def _codes(header: Dataset, name: str) -> Iterable[str]:
    """The code values of a sequence that belong to a scheme that we know."""
    for item in header.get(name) or ():
        if text_of(item, "CodingSchemeDesignator") in SCHEMES:
            yield text_of(item, "CodeValue")
