"""Decides which images of one person enter: rules over values, without files.

In: the `ImageRecord`s of one person (joins.py).
Out: for each record whether it enters, or why not.
Guarantees:
  - one person has one label, and one eye where the study separates eyes
  - the outcome does not depend on the order of the files
Not covered: who is one person (joins.py).
"""

from __future__ import annotations

import hmac
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from client.ingest.quarantine import Reason
from client.state.people import People

PLACEHOLDERS = frozenset(
    "ANONYMOUS ANONYMIZED ANONYMISED ANONYMIZE ANONYMISE ANON ANONYM ANONYMISIERT ANONYME ANONIMO "
    "UNKNOWN UNKOWN UNBEKANNT UNBEKANNTER INCONNU DESCONOCIDO SCONOSCIUTO ONBEKEND UNDEFINED NONE "
    "NULL NIL NA NAN NOID NONAME NOPATIENTID NOTAVAILABLE PATIENT PATIENTS PATIENTID PID ID TEST "
    "TESTPATIENT DUMMY EMPTY DEFAULT REMOVED REDACTED DELETED DEIDENTIFIED".split()
)
# words that name nobody beside one of the above, or beside each other
FILLERS = frozenset("NO NOT NAME NUMBER THE OF GIVEN KNOWN AVAILABLE SUBJECT PERSON DE".split())
LEAST_RUN_ON = 4  # letters of a word that is found without blanks around it: NANA is a name
LETTERS = re.compile(r"[^\W\d_]+")
# Excel, LibreOffice and pandas write large numbers so: one digit, decimals, E, a plus, an exponent
MANGLED = re.compile(r"[1-9](?:[.,][0-9]+)?[eE]\+[0-9]{2,3}")


@dataclass(frozen=True)
class ImageRecord:
    """One decoded image.

    `pseudonyms`: of every id that the file or the labels file gives its person. `digest`: keyed, of
    its pixels. A record with a `refusal` cannot enter; it still tells which ids are one person.
    `studies`: keyed, of the studies that it belongs to.
    """

    position: int
    pseudonyms: tuple[str, ...]
    label: int
    laterality: int
    digest: str
    refusal: Reason | None = None
    studies: tuple[str, ...] = ()


def normalise_id(text: str) -> str:
    """Return an id as it enters the HMAC: NFC, without outer spaces and NULs.

    Leading zeros and case stay; spelling.py says which spellings are one id.
    """
    return unicodedata.normalize("NFC", text).strip(" \t\r\n\0").strip()


def is_placeholder(identifier: str) -> bool:
    """Return whether a normalised id names nobody.

    That is: empty, filler words alone, zeros, Xs, one sign more than five times, or a mangled
    number. Words with a number, as `ANON 0017`, are the pseudonyms that an anonymiser gives.
    """
    core = "".join(filter(str.isalnum, identifier.upper()))
    return (
        not core
        or core in PLACEHOLDERS
        or set(core) <= {"0"}
        or set(core) <= {"X"}
        or (len(core) > 5 and len(set(core)) == 1)
        or _is_filler(identifier, core)
        or is_mangled(identifier)
    )


def _is_filler(identifier: str, core: str) -> bool:
    """Whether an id is made of filler words alone, with blanks between them or without."""
    if any(sign.isdigit() and sign != "0" for sign in core):
        return False
    plain = "".join(
        sign
        for sign in unicodedata.normalize("NFKD", identifier.upper())
        if not unicodedata.combining(sign)
    )
    words = LETTERS.findall(plain)
    if len(words) > 1:
        return set(words) <= PLACEHOLDERS | FILLERS
    return bool(words) and _runs_on(words[0])


def _runs_on(text: str) -> bool:
    """Whether letters are long filler words run together."""
    if not text:
        return True
    for size in range(LEAST_RUN_ON, len(text) + 1):
        if text[:size] in PLACEHOLDERS and _runs_on(text[size:]):
            return True
    return False


def is_mangled(identifier: str) -> bool:
    """Return whether a normalised id is a number in scientific notation, such as 1.23E+05."""
    return MANGLED.fullmatch(identifier) is not None


def keyed_hash(key: bytes, kind: str, *parts: str) -> str:
    """Return 128 bits of HMAC-SHA-256(key, kind 0 part 0 part ...) in hex."""
    text = "\0".join((kind, *parts)).encode("utf-8", "surrogatepass")
    return hmac.digest(key, text, "sha256")[:16].hex()


def pseudonym(key: bytes, issuer: str, identifier: str) -> str:
    """Return the pseudonym of a patient id under its issuer."""
    return keyed_hash(key, "patient", normalise_id(issuer), normalise_id(identifier))


def choose_images(
    person: Sequence[ImageRecord], *, ordinal: bool, one_eye: bool
) -> dict[int, ImageRecord | Reason]:
    """Return what becomes of every position of one person: the record that enters, or why not.

    1. identical pixels are one image; it carries the highest of their labels
    2. of different labels the highest enters if labels are ordinal, else no image enters
    3. one eye enters if the study separates eyes, chosen by keyed digest
    """
    # records with a refusal stay out; the others in an order that knows no file
    outcomes: dict[int, ImageRecord | Reason] = {}
    candidates = []
    for record in person:
        if record.refusal:
            outcomes[record.position] = record.refusal
        else:
            candidates.append(record)
    candidates.sort(key=lambda record: (record.digest, record.pseudonyms, -record.laterality))

    # (2) labels without an order must agree
    labels = {record.label for record in candidates}
    if len(labels) > 1 and not ordinal:
        for record in candidates:
            outcomes[record.position] = Reason.CONFLICTING_LABELS
        return outcomes

    # (1, 2) one of identical images, and only those of the highest label
    entering: list[ImageRecord] = []
    for _, copies in groupby(candidates, key=lambda record: record.digest):
        first, *others = list(copies)
        for record in others:
            outcomes[record.position] = Reason.DUPLICATE
        if max(record.label for record in (first, *others)) == max(labels):
            entering.append(replace(first, label=max(labels)))
        else:
            outcomes[first.position] = Reason.LOWER_LABEL

    # (3) one eye: that of the first record by keyed digest
    for record in entering:
        outcomes[record.position] = record
        if one_eye and record.laterality != entering[0].laterality:
            outcomes[record.position] = Reason.OTHER_SIDE
    return outcomes


def aliases(person: Sequence[ImageRecord], known: People | None = None) -> tuple[str, ...]:
    """Return all pseudonyms of one person, sorted; the first is the one the cohort uses.

    Those that were linked before are among them.
    """
    names: set[str] = set()
    for record in person:
        names.update(record.pseudonyms)
    if known is not None:
        names.update(known.name_person(names))
    return tuple(sorted(names))
