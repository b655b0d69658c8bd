"""client/ingest/origin.py: copies that text was likely drawn into are refused, and by what."""

from __future__ import annotations

from typing import Any

import pytest
from pydicom.dataset import Dataset

from client.ingest.dicom_header import ALLOWED
from client.ingest.origin import DEVICE, check_origin
from client.ingest.quarantine import Reason, Unusable

CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
COPY = ["DERIVED", "SECONDARY"]


def outcome(*, accept_derived: bool = False, **values: Any) -> Reason | None:
    """The reason of a header that states these attributes, or None."""
    dataset = Dataset()
    for name, value in ({"Modality": "DX"} | values).items():
        setattr(dataset, name, value)
    try:
        check_origin(dataset, accept_derived=accept_derived)
    except Unusable as refusal:
        return refusal.reason
    return None


@pytest.mark.parametrize(
    "values",
    [
        {"SOPClassUID": CAPTURE},
        {"SOPClassUID": f"{CAPTURE}.4"},
        {"ConversionType": "WSD"},
        {"ConversionType": "SD"},
        {"SecondaryCaptureDeviceManufacturer": "a frame grabber"},
        {"VideoImageFormatAcquired": "PAL"},
        {"SOPClassUID": CAPTURE, "ImageType": COPY},
    ],
    ids=str,
)
@pytest.mark.parametrize("modality", ["DX", "CR", "OP", "MR"])
def test_a_secondary_capture_is_refused_whatever_its_modality(
    modality: str, values: dict[str, Any]
) -> None:
    refused = outcome(Modality=modality, **values)
    assert refused is Reason.SECONDARY_CAPTURE
    # the site's word is for derived images alone; the header's own word counts
    assert outcome(Modality=modality, accept_derived=True, **values) is Reason.SECONDARY_CAPTURE
    assert outcome(Modality=modality, BurnedInAnnotation="NO", **values) is None


def test_a_digitised_film_and_an_original_are_no_capture() -> None:
    assert outcome(ConversionType="DF") is None
    assert outcome(
        SOPClassUID="1.2.840.10008.5.1.4.1.1.1.1", ImageType=["ORIGINAL", "PRIMARY"]
    ) is (None)
    assert outcome(ImageType=["DERIVED", "PRIMARY"]) is None


def test_a_film_that_a_program_converted_names_its_body_part_and_view() -> None:
    converted = {"SOPClassUID": CAPTURE, "ConversionType": "WSD", "Modality": "CR"}
    assert outcome(**converted, BodyPartExamined="CHEST", ViewPosition="PA") is None
    captured = Reason.SECONDARY_CAPTURE
    assert outcome(**converted, BodyPartExamined="CHEST") is captured
    assert outcome(**converted, ViewPosition="PA") is captured
    assert outcome(**converted, BodyPartExamined="CHEST", ViewPosition="") is captured
    # what else it is said to be still counts
    said = {"BodyPartExamined": "CHEST", "ViewPosition": "PA"}
    assert outcome(**converted, **said, ImageType=COPY) is Reason.DERIVED
    assert outcome(**converted, **said, BurnedInAnnotation="YES") is Reason.BURNED_IN_TEXT


def test_a_derived_secondary_image_waits_for_the_sites_word() -> None:
    assert outcome(ImageType=COPY) is Reason.DERIVED
    assert outcome(ImageType="SECONDARY") is Reason.DERIVED
    assert outcome(ImageType=COPY, accept_derived=True) is None
    assert outcome(ImageType=COPY, BurnedInAnnotation="NO") is None


def test_text_that_is_admitted_is_refused_whatever_the_site_vouches_for() -> None:
    for values in ({"BurnedInAnnotation": "YES"}, {"ImageType": [*COPY, "SCREEN SAVE"]}):
        assert outcome(accept_derived=True, **values) is Reason.BURNED_IN_TEXT
    assert outcome(Modality="US") is Reason.BURNED_IN_TEXT


def test_a_synthetic_image_is_nobodys() -> None:
    assert outcome(SyntheticData="YES", BurnedInAnnotation="NO") is Reason.SYNTHETIC
    assert outcome(SyntheticData="NO") is None


def test_every_attribute_that_is_asked_for_is_on_the_list_of_those_that_are_read() -> None:
    assert {*DEVICE, "ConversionType", "SyntheticData"} <= set(ALLOWED)
