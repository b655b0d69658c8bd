"""Targets: pictures of anybody's, and a release's list of pixels."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pydicom

from kohort.detection import Released, examine, parse_pixels
from kohort.manifest import Manifest
from kohort.marks import mark_png
from server.release.pictures import pixel_digest
from tests.fuzz.harness import Parser, Target
from tests.fuzz.mutation import damaged, exchanged, revalued
from tests.fuzz.release_targets import png, png_maker

PIXELS = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3)


def dicom_file(pixels: np.ndarray) -> bytes:
    """A DICOM image as `kohort export` writes one, but for what says where it is from."""
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = "2.25.1"
    dataset.SyntheticData = "YES"
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 3, "RGB"
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.PixelData = pixels.tobytes()
    out = io.BytesIO()
    dataset.save_as(out, enforce_file_format=True)
    return out.getvalue()


def _detected(folder: Path) -> Parser:
    """A picture of anybody's, PNG or DICOM, beside a release's list of pixels."""
    path = folder / "file"
    listed = {"data/train/x/00000.png": pixel_digest(PIXELS)}
    released = Released(Manifest.model_construct(), parse_pixels(json.dumps(listed).encode()))
    pictures = [mark_png(png(kind)) for kind in (PIXELS, PIXELS[..., 0], PIXELS[..., 0] > 9)]

    def call(data: bytes) -> None:
        path.write_bytes(data)
        examine(path, released)

    sound = dicom_file(PIXELS)
    makers = (png_maker(*pictures), damaged(*pictures), damaged(sound), exchanged(sound))
    return Parser(call, makers, good=sound)


def _listed_pixels(folder: Path) -> Parser:
    """The list of a release's pixels."""
    text = json.dumps({f"data/train/x/0000{i}.png": str(i) * 64 for i in range(3)}).encode()
    return Parser(parse_pixels, (revalued(text), exchanged(text)))


TARGETS = (
    Target(
        "detected-picture",
        ("kohort.detection:examine", "kohort.detection:_read_dicom"),
        _detected,
        memory_mib=128,  # a file of up to 64 MiB
        few=800,
    ),
    Target(
        "release-pixels",
        ("kohort.detection:parse_pixels", "kohort.detection:read_released"),
        _listed_pixels,
    ),
)
