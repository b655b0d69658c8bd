"""Says whether an image is an original of a device, or a copy that text was likely drawn into.

In: the allow-listed attributes of one file.
Out: nothing, or `Unusable` with a reason that says which attributes did it.
Guarantees: what a header says of annotations, screen shots, secondary capture, derivation or
synthesis is heeded, whatever the Modality says.
Not covered: text that no attribute admits (text_detector.py).

  1. a synthetic image is nobody's
  2. text that is admitted, or a screen shot
  3. secondary capture: the SOP class, the conversion, or the capturing device (PS3.3 C.8.6); a film
     that a program converted still names its body part and view, which no capture has
  4. a derived, secondary image (PS3.3 C.7.6.1.1.2): a copy, of which a site may vouch that no text
     was drawn into it (`data.derived` of site.yaml)
"""

from __future__ import annotations

from pydicom.dataset import Dataset

from client.ingest.content import classes_of, texts_of
from client.ingest.dicom_header import text_of
from client.ingest.quarantine import Reason, Unusable

OFTEN_ANNOTATED = {"US", "SC", "XA", "OT"}  # here a missing BurnedInAnnotation means "perhaps"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
# SI and SD: scanned, WSD: from a workstation, DV: from a video, DRW: drawn
CONVERSIONS = {"SD", "SI", "WSD", "DV", "DRW", "SYN"}
DEVICE = (
    "SecondaryCaptureDeviceID SecondaryCaptureDeviceManufacturer "
    "SecondaryCaptureDeviceSoftwareVersions HardcopyCreationDeviceID HardcopyDeviceManufacturer "
    "VideoImageFormatAcquired DigitalImageFormatAcquired"
).split()


def check_origin(header: Dataset, *, accept_derived: bool) -> None:
    """Refuse copies that text was likely drawn into, unless the header denies it.

    Raises Unusable: synthetic-image, burned-in-text, secondary-capture, derived-image.
    """
    # (1) a synthetic image
    if text_of(header, "SyntheticData") == "YES":
        raise Unusable(Reason.SYNTHETIC)

    # (2) text that is admitted, or a screen shot
    kinds = {text.upper() for text in texts_of(header, "ImageType")}
    admitted = text_of(header, "BurnedInAnnotation")
    if admitted == "YES" or "SCREEN SAVE" in kinds:
        raise Unusable(Reason.BURNED_IN_TEXT)
    if admitted == "NO":
        return
    if text_of(header, "Modality") in OFTEN_ANNOTATED:
        raise Unusable(Reason.BURNED_IN_TEXT)

    # (3) secondary capture
    if _is_captured(header) and not _is_converted_film(header):
        raise Unusable(Reason.SECONDARY_CAPTURE)

    # (4) a derived, secondary image
    if "SECONDARY" in kinds and not accept_derived:
        raise Unusable(Reason.DERIVED)


def _is_converted_film(header: Dataset) -> bool:
    """Whether the attributes of a radiograph's acquisition are there: body part and view."""
    view = texts_of(header, "ViewPosition") or header.get("ViewCodeSequence")
    part = texts_of(header, "BodyPartExamined") or header.get("AnatomicRegionSequence")
    return bool(view) and bool(part)


def _is_captured(header: Dataset) -> bool:
    """Whether an attribute says that the image was captured a second time."""
    for sop_class in classes_of(header):
        if sop_class == SECONDARY_CAPTURE or sop_class.startswith(f"{SECONDARY_CAPTURE}."):
            return True
    if text_of(header, "ConversionType").strip() in CONVERSIONS:
        return True
    return any(header.get(name) for name in DEVICE)
