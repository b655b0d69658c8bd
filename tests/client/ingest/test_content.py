"""client/ingest/content.py: what a header states must be what the study takes."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from client.ingest.build import ingest
from client.ingest.content import check_content
from client.ingest.decode_child import read_file
from client.ingest.dicom_header import ALLOWED
from client.ingest.quarantine import Reason, Unusable
from client.ingest.request import Choices, Limits, Settings, Wanted
from common.study.intake import Intake
from tests import phantoms

CHEST = Wanted(("CHEST",), ("PA", "AP"), ("FOR PRESENTATION",))
RAW = "1.2.840.10008.5.1.4.1.1.1.1.1"


def header(**values: Any) -> Dataset:
    """A header that states these attributes; a code is (value, scheme)."""
    dataset = Dataset()
    for name, value in values.items():
        if name.endswith("Sequence"):
            item = Dataset()
            item.CodeValue, item.CodingSchemeDesignator = value
            value = Sequence([item])
        setattr(dataset, name, value)
    return dataset


def outcome(wanted: Wanted = CHEST, *, refuse_silent: bool = False, **values: Any) -> object:
    """What the header leaves unsaid, or the reason."""
    try:
        return check_content(header(**values), wanted, refuse_silent=refuse_silent)
    except Unusable as refusal:
        return refusal.reason


@pytest.mark.parametrize(
    "stated",
    [
        "CHEST", "Chest", "THORAX", "CHEST PA", "CHEST_PA", "CHESTPA", "PORT CHEST", "CXR",
        "CHEST 2 VIEWS", "CHEST1V", "XR CHEST", "TÓRAX", "LUNGE", "CHEST AP PORTABLE",
    ],
)  # fmt: skip
def test_words_for_a_chest_are_taken(stated: str) -> None:
    assert outcome(BodyPartExamined=stated, ViewPosition="PA") == ()


@pytest.mark.parametrize(
    "stated",
    [
        "HAND", "SHOULDER", "ABDOMEN", "CHESTABDOMEN", "CHEST ABDOMEN", "TSPINE", "CHEST WALL",
        "THORACIC SPINE", "THORACICSPINE", "RIB", "OTHER", "胸部", ["CHEST", "HAND"],
    ],
)  # fmt: skip
def test_other_body_parts_and_unknown_words_are_refused(stated: object) -> None:
    assert outcome(BodyPartExamined=stated, ViewPosition="PA") is Reason.WRONG_BODY_PART


def test_a_region_code_counts_as_the_body_part() -> None:
    view = {"ViewPosition": "PA"}
    assert outcome(AnatomicRegionSequence=("51185008", "SCT"), **view) == ()
    assert outcome(AnatomicRegionSequence=("T-D3000", "SRT"), **view) == ()
    hand = ("85562004", "SCT")
    assert outcome(AnatomicRegionSequence=hand, **view) is Reason.WRONG_BODY_PART
    contradicted = outcome(BodyPartExamined="CHEST", AnatomicRegionSequence=hand, **view)
    assert contradicted is Reason.WRONG_BODY_PART
    # an own scheme of a hospital says nothing
    assert outcome(AnatomicRegionSequence=("85562004", "99OWN"), **view) == ("body part",)


@pytest.mark.parametrize(
    "stated",
    [
        {"ViewPosition": "PA"},
        {"ViewPosition": "AP"},
        {"ViewPosition": "Antero-posterior"},
        {"ViewPosition": "AP SUPINE"},
        {"ViewCodeSequence": ("272479007", "SCT")},
        {"ViewCodeSequence": ("R-10206", "SRT")},
        {"ViewCodeSequence": ("399033003", "SCT")},
        {"BodyPartExamined": "CHEST PA"},
        {"PatientOrientation": ["L", "F"]},
    ],
    ids=str,
)
def test_frontal_views_are_taken(stated: dict[str, Any]) -> None:
    assert outcome(**{"BodyPartExamined": "CHEST"} | stated) == ()


@pytest.mark.parametrize(
    "stated",
    [
        {"ViewPosition": "LL"},
        {"ViewPosition": "RL"},
        {"ViewPosition": "LATERAL"},
        {"ViewPosition": "LLD"},
        {"ViewPosition": "AP AXIAL"},
        {"ViewCodeSequence": ("399173006", "SCT")},
        {"ViewCodeSequence": ("R-10232", "SRT")},
        {"ViewCodeSequence": ("399135007", "SCT")},
        {"ViewPosition": "PA", "ViewCodeSequence": ("399173006", "SCT")},
        {"BodyPartExamined": "CHEST LAT"},
        {"PatientOrientation": ["A", "F"]},
    ],
    ids=str,
)
def test_lateral_and_unknown_views_are_refused(stated: dict[str, Any]) -> None:
    assert outcome(**{"BodyPartExamined": "CHEST"} | stated) is Reason.WRONG_VIEW


def test_a_view_that_may_be_either_is_known_only_where_both_are_taken() -> None:
    frontal = {"BodyPartExamined": "CHEST", "ViewPosition": "FRONTAL"}
    assert outcome(Wanted(("CHEST",), ("PA", "AP")), **frontal) == ()
    assert outcome(Wanted(("CHEST",), ("PA",)), **frontal) == ("view",)
    assert outcome(Wanted(("CHEST",), ("LL",)), **frontal) is Reason.WRONG_VIEW


def test_raw_detector_values_are_refused_by_attribute_and_by_sop_class() -> None:
    chest = {"BodyPartExamined": "CHEST", "ViewPosition": "PA"}
    refused = Reason.WRONG_PRESENTATION
    assert outcome(PresentationIntentType="FOR PROCESSING", **chest) is refused
    assert outcome(SOPClassUID=RAW, **chest) is refused
    contradiction = outcome(SOPClassUID=RAW, PresentationIntentType="FOR PRESENTATION", **chest)
    assert contradiction is refused
    assert outcome(PresentationIntentType="FOR PRESENTATION", **chest) == ()
    # computed radiography has no such attribute
    assert outcome(SOPClassUID=phantoms.SOP_CLASSES["CR"], **chest) == ()


@pytest.mark.parametrize(
    "stated",
    [
        {"ImageType": ["ORIGINAL", "PRIMARY", "", "FA"]},
        {"ImageType": ["ORIGINAL", "PRIMARY", "REDFREE"]},
        {"ContrastBolusAgent": "FLUORESCEIN"},
    ],
    ids=str,
)
def test_an_angiogram_by_its_header_is_no_colour_photograph(stated: dict[str, Any]) -> None:
    assert outcome(Wanted(colour=True), **stated) is Reason.WRONG_CHANNELS
    assert outcome(Wanted(), **stated) == ()
    colour = {"ImageType": ["ORIGINAL", "PRIMARY", "", "COLOR"], "ContrastBolusAgent": ""}
    assert outcome(Wanted(colour=True), **colour) == ()


def test_what_is_wanted_comes_through_json_as_it_was() -> None:
    wanted = Wanted(("CHEST",), ("PA",), (), colour=True)
    assert Wanted.read(json.loads(json.dumps(asdict(wanted)))) == wanted


def test_a_silent_header_is_told_or_refused_as_the_site_says() -> None:
    assert outcome() == ("body part", "view")
    assert outcome(BodyPartExamined="UNKNOWN", ViewPosition="") == ("body part", "view")
    assert outcome(BodyPartExamined="CHEST") == ("view",)
    assert outcome(refuse_silent=True, BodyPartExamined="CHEST") is Reason.SILENT_HEADER
    assert outcome(Wanted(), refuse_silent=True) == ()


def test_an_own_word_of_the_plan_is_taken() -> None:
    own = Wanted(("CHEST", "BRUSTRAUM"), ())
    assert outcome(own, BodyPartExamined="Brustraum") == ()
    assert outcome(CHEST, BodyPartExamined="Brustraum") is Reason.WRONG_BODY_PART


def test_every_attribute_that_is_asked_for_is_on_the_list_of_those_that_are_read() -> None:
    asked = {"BodyPartExamined", "AnatomicRegionSequence", "ViewPosition", "ViewCodeSequence"}
    asked |= {"PatientOrientation", "PresentationIntentType", "ContrastBolusAgent"}
    assert asked <= set(ALLOWED)


def rules(**changes: Any) -> Intake:
    """Rules of radiographs."""
    fields = {"dicom_modalities": ["CR", "DX"], "size_px": 64, "channels": 1, "labels": ["x"]}
    return Intake.model_validate(fields | changes)


def test_a_study_of_radiographs_takes_frontal_chests_by_default_and_others_take_anything() -> None:
    assert Wanted.of(rules()) == CHEST
    assert Wanted.of(rules(dicom_modalities=["OP"], channels=3)) == Wanted(colour=True)
    stated = rules(body_parts=["HAND"], views=[], presentation=[])
    assert Wanted.of(stated) == Wanted(("HAND",))


def settings(wanted: Wanted, choices: Choices = Choices()) -> Settings:
    """What a child is told."""
    sizes = {"max_file_bytes": 1 << 24, "max_pixel_bytes": 1 << 24, "memory_bytes": 1 << 30}
    return Settings(
        64, 1, ("CR", "DX"), None, timeout_s=30, wanted=wanted, choices=choices, **sizes
    )


def test_a_file_says_what_its_header_leaves_unsaid(tmp_path: Path) -> None:
    dataset = phantoms.with_pixels(phantoms.header("DX"), phantoms.grey(1), "MONOCHROME2", 12)
    path = str(phantoms.save(dataset, tmp_path / "silent.dcm"))
    assert read_file(path, settings(CHEST)).silent == ("body part", "view")
    dataset.BodyPartExamined = "HAND"
    path = str(phantoms.save(dataset, tmp_path / "hand.dcm"))
    with pytest.raises(Unusable) as refusal:
        read_file(path, settings(CHEST))
    assert refusal.value.reason is Reason.WRONG_BODY_PART
    assert read_file(path, settings(Wanted())).silent == ()


def test_the_sop_class_of_a_file_is_read(tmp_path: Path) -> None:
    for sop_class, reason in (
        (RAW, Reason.WRONG_PRESENTATION),
        ("1.2.840.10008.5.1.4.1.1.7", Reason.SECONDARY_CAPTURE),
    ):
        dataset = phantoms.with_pixels(phantoms.header("DX"), phantoms.grey(1), "MONOCHROME2", 12)
        dataset.SOPClassUID = sop_class
        path = phantoms.save(dataset, tmp_path / "case.dcm")
        # the class stands in the meta group and in the data set: either one counts
        whole = path.read_bytes()
        name = sop_class.encode()
        first = whole.index(name)
        second = whole.index(name, first + 1)
        for place in (first, second):
            path.write_bytes(whole[:place] + b"9" + whole[place + 1 :])
            with pytest.raises(Unusable) as refusal:
                read_file(str(path), settings(CHEST))
            assert refusal.value.reason is reason


def test_a_file_without_a_header_is_silent(tmp_path: Path) -> None:
    path = str(tmp_path / "a.png")
    Image.fromarray(phantoms.grey(1, bits=8)).save(path)
    assert read_file(path, settings(CHEST)).silent == ("body part", "view")
    with pytest.raises(Unusable) as refusal:
        read_file(path, settings(CHEST, Choices(refuse_silent=True)))
    assert refusal.value.reason is Reason.SILENT_HEADER


@pytest.mark.usefixtures("in_process")
def test_ingest_takes_what_the_plan_wants_and_counts_silent_headers(
    tmp_path: Path, key: bytes
) -> None:
    source = tmp_path / "data"
    source.mkdir()
    for number, stated in enumerate(("CHEST", "HAND", None)):
        dataset = phantoms.with_pixels(
            phantoms.header("DX", f"P{number}"), phantoms.grey(number), "MONOCHROME2", 12
        )
        dataset.ViewPosition = "PA"
        if stated:
            dataset.BodyPartExamined = stated
        phantoms.save(dataset, source / f"{number}.dcm")
    report = ingest(source, rules(), key, tmp_path / "cohort", limits=Limits(workers=1))
    assert (report.ingested, report.quarantined) == (2, {"wrong-body-part": 1})
    assert report.silent == {"body part": 1}
    limits = Limits(workers=1, choices=Choices(refuse_silent=True))
    report = ingest(source, rules(), key, tmp_path / "strict", limits=limits)
    assert report.quarantined == {"silent-header": 1, "wrong-body-part": 1}
