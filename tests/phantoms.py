"""Image files with known truth: PNG, and DICOM of several modalities and transfer syntaxes.

Everything is small, seeded and invented. `MARKERS` are planted in every header text that must never
reach a cohort.
"""

from __future__ import annotations

import csv
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

SOP_CLASSES = {
    "OP": "1.2.840.10008.5.1.4.1.1.77.1.5.1",
    "CR": "1.2.840.10008.5.1.4.1.1.1",
    "DX": "1.2.840.10008.5.1.4.1.1.1.1",
    "MR": "1.2.840.10008.5.1.4.1.1.4",
}
MARKERS = (
    "MARKERSURNAME",
    "MARKERGIVEN",
    "19310417",
    "20190923",
    "MARKERCOMMENT",
    "MARKERCLINIC",
    "MARKERSERIAL",
    "MARKERPRIVATE",
    "2.25.314159265358979323846264338327",
)


def fundus(seed: int, size: int = 128) -> NDArray[np.uint8]:
    """Return a fundus-like photograph uint8 [size, size, 3].

    It shows a lit disc with a bright spot and dark vessels on black.
    """
    chance = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size - 0.5
    disc = np.hypot(x, y) < 0.48
    spot = np.exp(
        -((x - chance.uniform(-0.3, 0.3)) ** 2 + (y - chance.uniform(-0.2, 0.2)) ** 2) / 0.004
    )
    vessels = sum(
        np.exp(-((np.sin(8 * x * a + b) * 0.2 + y - c) ** 2) / 2e-4)
        for a, b, c in chance.uniform(-0.4, 3, (9, 3))
    )
    mottle = chance.normal(0, 0.05, (8, 8)).repeat(size // 8, 0).repeat(size // 8, 1)
    level = np.clip(0.45 + 0.4 * spot - 0.25 * np.clip(vessels, 0, 1) + mottle, 0.1, 1)
    shades = np.stack(
        [level, level * chance.uniform(0.4, 0.6), level * chance.uniform(0.1, 0.3)], axis=-1
    )
    return np.asarray(np.where(disc[..., None], shades * 255, 0), dtype=np.uint8)


def grey(seed: int, size: int = 96, bits: int = 12, signed: bool = False) -> NDArray[Any]:
    """Return a smooth grey phantom [size, size] that uses the whole stored range of `bits`."""
    chance = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size
    wave = (
        np.sin(6 * x * chance.uniform(0.5, 1.5))
        + np.cos(5 * y * chance.uniform(0.5, 1.5))
        + chance.normal(0, 0.2) * x * y
    )
    blobs = np.kron(chance.normal(0, 0.5, (8, 8)), np.ones((size // 8, size // 8)))
    share = (wave + blobs - (wave + blobs).min()) / np.ptp(wave + blobs)
    low = -(1 << (bits - 1)) if signed else 0
    kind = {(8, False): "u1", (8, True): "i1"}.get((bits, signed), "i2" if signed else "u2")
    return np.asarray(np.rint(share * ((1 << bits) - 1) + low), dtype=kind)


def header(
    modality: str = "OP", patient_id: str = "P-0001", *, syntax: UID = ExplicitVRLittleEndian
) -> Dataset:
    """Return a header full of `MARKERS`, still without pixels."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = UID(SOP_CLASSES[modality])
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = UID(MARKERS[8])
    dataset.SeriesInstanceUID = UID(MARKERS[8])
    # a study is of one person
    dataset.StudyInstanceUID = UID(f"{MARKERS[8]}.{zlib.crc32(patient_id.strip().encode())}")
    dataset.Modality, dataset.ImageType = modality, ["ORIGINAL", "PRIMARY"]
    dataset.PatientName, dataset.PatientID = f"{MARKERS[0]}^{MARKERS[1]}", patient_id
    dataset.PatientBirthDate, dataset.StudyDate = MARKERS[2], MARKERS[3]
    dataset.PatientComments = dataset.ImageComments = MARKERS[4]
    dataset.InstitutionName, dataset.DeviceSerialNumber = MARKERS[5], MARKERS[6]
    dataset.private_block(0x0011, "kohort tests", create=True).add_new(1, "LO", MARKERS[7])
    return dataset


def with_pixels(
    dataset: Dataset,
    pixels: NDArray[Any],
    photometric: str,
    bits: int | None = None,
    frames: int = 1,
) -> Dataset:
    """Return `dataset` with uncompressed `pixels` [H, W], [H, W, 3] or [F, H, W] in it."""
    shape = pixels.shape[1:] if frames > 1 else pixels.shape
    dataset.Rows, dataset.Columns = shape[:2]
    dataset.SamplesPerPixel = 3 if len(shape) == 3 else 1
    if dataset.SamplesPerPixel == 3:
        dataset.PlanarConfiguration = 0
    if frames > 1:
        dataset.NumberOfFrames = frames
    dataset.PhotometricInterpretation = photometric
    dataset.BitsAllocated = 8 * pixels.dtype.itemsize
    dataset.BitsStored = bits or dataset.BitsAllocated
    dataset.HighBit, dataset.PixelRepresentation = (
        dataset.BitsStored - 1,
        int(pixels.dtype.kind == "i"),
    )
    big = dataset.file_meta.TransferSyntaxUID == ExplicitVRBigEndian
    data = pixels.astype(pixels.dtype.newbyteorder(">" if big else "<")).tobytes()
    dataset.PixelData = data + b"\0" * (len(data) % 2)
    dataset["PixelData"].VR = "OW" if dataset.BitsAllocated > 8 else "OB"
    return dataset


def save(dataset: Dataset, path: Path) -> Path:
    """Write `dataset` with its file meta to `path` (folders are made), and return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    syntax = dataset.file_meta.TransferSyntaxUID
    implicit = syntax == ImplicitVRLittleEndian
    little = syntax != ExplicitVRBigEndian
    dataset.save_as(path, enforce_file_format=True, implicit_vr=implicit, little_endian=little)
    return path


def write_fundus(
    path: Path,
    patient_id: str,
    pixels: NDArray[np.uint8],
    *,
    laterality: str = "R",
    **attributes: Any,
) -> Path:
    """Write an uncompressed Ophthalmic Photography file.

    `attributes` are set last, even where they break the file.
    """
    dataset = with_pixels(header("OP", patient_id), pixels, "RGB")
    dataset.ImageLaterality = laterality
    for name, value in attributes.items():
        setattr(dataset, name, value)
    return save(dataset, path)


def compressed(dataset: Dataset, syntax: UID) -> Dataset:
    """Re-encode an uncompressed data set with one of pydicom's encoders.

    RLE is always there, JPEG-LS and JPEG 2000 where installed.
    """
    dataset.compress(syntax, generate_instance_uid=False)
    return dataset


def encapsulated(dataset: Dataset, frame: bytes, syntax: UID, photometric: str) -> Dataset:
    """Put one ready-made codestream into `dataset`."""
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PhotometricInterpretation = photometric
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].is_undefined_length = True
    return dataset


def hollow_png(width: int, height: int) -> bytes:
    """Return a PNG that declares width x height colour pixels and holds almost none."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + head
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )


def write_labels(path: Path, rows: Sequence[Sequence[str]], columns: str = "patient,label") -> Path:
    """Write a labels CSV with `columns`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns.split(","), *rows])
    return path


def write_photographs(
    folder: Path,
    patients: int,
    images_each: int = 1,
    labels: Sequence[str] = ("none",),
    size: int = 64,
) -> Path:
    """Write PNG photographs of `patients` persons, with labels in turn.

    Returns the labels CSV beside `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for patient in range(patients):
        for number in range(images_each):
            name = f"{patient:03d}-{number}.png"
            Image.fromarray(fundus(1000 * patient + number, size)).save(folder / name)
            rows.append((name, f"P-{patient:04d}", labels[patient % len(labels)]))
    return write_labels(folder.parent / f"{folder.name}-labels.csv", rows, "file,patient,label")
