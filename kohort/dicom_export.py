"""Writes the pictures of a verified release as DICOM: Secondary Capture images, masks as SEG.

In: a release that verifies. Out: a new folder with one file a picture; the release stays as it is.
Guarantees: every file says SyntheticData = YES and where it comes from; the same release gives the
same bytes with the same versions of highdicom and pydicom.
Not covered: spacing, laterality and body part. A synthetic image has none that was measured.
"""

from __future__ import annotations

import csv
import hashlib
import importlib
import io
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kohort import signatures
from kohort.errors import ConfigurationError, RefusedError, disk_faults_named
from kohort.extras import how_to_install
from kohort.files import file_digest, read_capped, sync_folder
from kohort.forms import mask_of
from kohort.layout import MANIFEST, METADATA, TEXT_CAP_BYTES
from kohort.manifest import Manifest
from kohort.png import FILE_CAP_BYTES

Progress = Callable[[int, int], None]
NEEDS = ("highdicom", "numpy", "PIL.Image", "pydicom")
MANUFACTURER = "kohort"
METHOD = "none: synthetic, holds no header of a patient"
EXPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
MIDNIGHT = "000000"
LONG_STRING = 64  # characters of a value of kind LO
DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


@dataclass(frozen=True)
class Export:
    """What every file of an export says of its release."""

    manifest: Manifest
    fingerprint: str

    @property
    def date(self) -> str:
        """The release's date as DICOM writes one, YYYYMMDD."""
        return self.manifest.date.replace("-", "")

    def uid(self, *parts: str) -> str:
        """Return a UID below 2.25. that follows from the release and `parts` alone."""
        named = (self.manifest.name, self.manifest.version, self.manifest.study, *parts)
        digest = hashlib.sha256("\n".join(named).encode()).digest()
        # the 128 bits of a UUID, whose version and variant say "made from a digest" (RFC 9562)
        number = int.from_bytes(digest[:16], "big")
        number = number & ~(0xF << 76) | 8 << 76
        number = number & ~(0x3 << 62) | 2 << 62
        return f"2.25.{number}"


def export_dicom(
    release: Path, manifest: Manifest, out: Path, progress: Progress = lambda *_: None
) -> int:
    """Write OUT/images/LABEL/NNNNN.dcm for each, OUT/masks/NNNNN.dcm for a mask; return how many.

    `manifest` is what `verify` returned for `release`. `progress` gets images done and in all.
    Raises ConfigurationError where the extra is not installed, and where `out` exists.
    """
    _need_extra()
    if out.exists():
        raise ConfigurationError(f"{out}: exists already", hint="give a new folder")
    if not DATE.fullmatch(manifest.date):
        raise RefusedError(f"{MANIFEST}: date is {manifest.date[:20]!r}, YYYY-MM-DD expected")
    key = signatures.parse_public(manifest.operator_key)
    export = Export(manifest, signatures.fingerprint(key))
    text = read_capped(release / METADATA, TEXT_CAP_BYTES).decode()
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    part = out.with_name(f".{out.name}.part")
    written = 0
    try:
        with disk_faults_named("cannot write", out):
            shutil.rmtree(part, ignore_errors=True)
            for done, row in enumerate(rows, 1):
                written += _write_row(release, row, part, export)
                progress(done, len(rows))
            part.rename(out)
            sync_folder(out.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return written


def _need_extra() -> None:
    """Raise ConfigurationError unless all that writes DICOM can be imported."""
    for module in NEEDS:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ConfigurationError(
                f"exporting DICOM needs {module.partition('.')[0]}, which is not installed here",
                hint=how_to_install("dicom"),
            ) from error


def _write_row(release: Path, row: Mapping[str, str], part: Path, export: Export) -> int:
    """Write the files of one row of metadata.csv; returns how many."""
    number = Path(row["file_name"]).stem
    image = _image(release / row["file_name"], row, export)
    _save(image, part / "images" / row["label"] / f"{number}.dcm")
    name = mask_of(row)
    if not name:
        return 1
    _save(_mask(release / name, image, row, export), part / "masks" / f"{number}.dcm")
    return 2


def _image(path: Path, row: Mapping[str, str], export: Export) -> Any:
    """A Secondary Capture image of one PNG."""
    import highdicom

    pixels = _pixels(path)
    number = path.stem
    colour = pixels.ndim == 3
    dataset: Any = highdicom.sc.SCImage(
        pixel_array=pixels,
        photometric_interpretation="RGB" if colour else "MONOCHROME2",
        bits_allocated=8,
        coordinate_system="PATIENT",
        study_instance_uid=export.uid("study", number),
        series_instance_uid=export.uid("series", number),
        series_number=1,
        sop_instance_uid=export.uid("image", number),
        instance_number=int(number) + 1,
        manufacturer=MANUFACTURER,
        patient_id=_patient_id(export, number),
        patient_name=f"Synthetic^{number}",
        patient_orientation=("L", "F"),
        study_id=number,
        study_date=export.date,
        study_time=MIDNIGHT,
        transfer_syntax_uid=EXPLICIT_LITTLE_ENDIAN,
    )
    dataset.Laterality = None  # nothing is known of it
    dataset.ConversionType = "SYN"
    dataset.ImageType = ["DERIVED", "SECONDARY"]
    dataset.BurnedInAnnotation = "NO"
    dataset.LossyImageCompression = "00"
    dataset.DateOfSecondaryCapture = export.date
    dataset.TimeOfSecondaryCapture = MIDNIGHT
    dataset.DerivationDescription = "Synthetic, made by a trained algorithm"
    _add_provenance(dataset, path, row["file_name"], row, export)
    return dataset


def _mask(path: Path, image: Any, row: Mapping[str, str], export: Export) -> Any:
    """A binary segmentation of one mask, which references its image."""
    import highdicom
    from pydicom.sr.codedict import codes

    number = path.stem
    pixels = _pixels(path)
    segment = highdicom.seg.SegmentDescription(
        segment_number=1,
        segment_label=row["label"],
        segmented_property_category=codes.SCT.AnatomicalStructure,
        segmented_property_type=codes.SCT.AnatomicalStructure,
        algorithm_type="AUTOMATIC",
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name=export.manifest.name,
            version=export.manifest.version,
            family=codes.DCM.ArtificialIntelligence,
        ),
    )
    dataset: Any = highdicom.seg.Segmentation(
        source_images=[image],
        pixel_array=(pixels > 127)[None],
        segmentation_type="BINARY",
        segment_descriptions=[segment],
        series_instance_uid=export.uid("mask-series", number),
        series_number=2,
        sop_instance_uid=export.uid("mask", number),
        instance_number=int(number) + 1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MANUFACTURER,
        software_versions=export.manifest.version,
        device_serial_number="none",
        content_label="MASK",
        omit_empty_frames=False,
    )
    # highdicom gives this a random UID
    dimensions = [*dataset.DimensionOrganizationSequence, *dataset.DimensionIndexSequence]
    for item in dimensions:
        item.DimensionOrganizationUID = export.uid("dimensions", number)
    _add_provenance(dataset, path, mask_of(row), row, export)
    return dataset


def _pixels(path: Path) -> Any:
    """The pixels of one PNG, uint8 [H, W] or [H, W, 3]."""
    import numpy as np
    from PIL import Image

    with Image.open(io.BytesIO(read_capped(path, FILE_CAP_BYTES))) as picture:
        if picture.mode not in ("L", "RGB"):
            raise RefusedError(f"{path}: neither a grey nor an RGB picture")
        return np.asarray(picture)


def _patient_id(export: Export, number: str) -> str:
    """An id for each image, so that a split by patient is a split by image."""
    return f"SYNTHETIC-{number}-{export.manifest.name}-{export.manifest.version}"[:LONG_STRING]


def _add_provenance(
    dataset: Any, path: Path, name: str, row: Mapping[str, str], export: Export
) -> None:
    """Say that a file is synthetic, what made it and from which file of which release it is."""
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    manifest = export.manifest
    origin = f"release {manifest.name} {manifest.version}, {name}, SHA-256 {file_digest(path)}"
    signed = f"plan {manifest.study}, signed by {export.fingerprint}"
    dataset.PatientOrientation = None  # nothing is known of it
    dataset.SyntheticData = "YES"
    dataset.PatientIdentityRemoved = "YES"
    dataset.DeidentificationMethod = METHOD
    code = Dataset()
    code.CodeValue = "SYNTHETIC"
    code.CodingSchemeDesignator = "99KOHORT"
    code.CodeMeaning = "Synthetic, no header of a patient"
    dataset.DeidentificationMethodCodeSequence = Sequence([code])

    purpose = Dataset()
    purpose.CodeValue = "109102"
    purpose.CodingSchemeDesignator = "DCM"
    purpose.CodeMeaning = "Processing Equipment"
    equipment = Dataset()
    equipment.PurposeOfReferenceCodeSequence = Sequence([purpose])
    equipment.Manufacturer = MANUFACTURER
    equipment.ContributionDateTime = export.date + MIDNIGHT
    equipment.ContributionDescription = f"{origin}; {signed}"
    dataset.ContributingEquipmentSequence = Sequence([equipment])

    dataset.SeriesDescription = f"Synthetic: {row['label']}"
    dataset.StudyDescription = f"Synthetic: {manifest.name} {manifest.version}"[:LONG_STRING]
    for keyword in ("SeriesDate", "ContentDate", "InstanceCreationDate"):
        setattr(dataset, keyword, export.date)
        setattr(dataset, keyword.replace("Date", "Time"), MIDNIGHT)


def _save(dataset: Any, path: Path) -> None:
    """Write one file, and its folder where it is new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
