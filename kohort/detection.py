"""Says of a file whether it is marked as synthetic, and of which release its pixels are.

In: files from anybody, and a release that verified. Out: values; nothing is printed here.
Guarantees: a file is read up to a cap.
Not covered: proof that a picture is real. A mark can be removed, and pixels can be changed.
"""

from __future__ import annotations

import importlib
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kohort.errors import ConfigurationError, RefusedError, damage_named
from kohort.extras import how_to_install
from kohort.files import read_capped
from kohort.layout import PIXELS, TEXT_CAP_BYTES, is_allowed_name
from kohort.manifest import Manifest
from kohort.marks import DICOM, png_marks
from kohort.png import FILE_CAP_BYTES, SAMPLES_CAP, Picture, as_rgb, is_png, read_picture

DICOM_AT = 128  # where the four letters DICM stand
NATIVE = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1")  # little endian, not compressed
DEFLATED = b"1.2.840.10008.1.2.1.99"
DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Finding:
    """What one file says of itself, and which file of the release has its pixels."""

    kind: str
    marks: tuple[str, ...]
    released_as: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Released:
    """The pictures of a verified release, by the digest of their pixels."""

    manifest: Manifest
    names: dict[str, tuple[str, ...]]


def read_released(release: Path, manifest: Manifest) -> Released:
    """Return the pictures of a release; `manifest` is what `verify` returned for it.

    Raises ConfigurationError for a release without a list of pixels.
    """
    if not (release / PIXELS).is_file():
        raise ConfigurationError(
            f"{release}: this release lists no pixels: {PIXELS} is missing",
            hint="compare `sha256sum FILE` with its SHA256SUMS",
        )
    data = read_capped(release / PIXELS, TEXT_CAP_BYTES)
    return Released(manifest, parse_pixels(data))


def parse_pixels(data: bytes) -> dict[str, tuple[str, ...]]:
    """Return {digest of pixels: names of the files that have them}; raises RefusedError."""
    damage = RefusedError(f"{PIXELS}: not a list of file names with the SHA-256 of their pixels")
    with damage_named(damage):
        listed = json.loads(data)
    if not isinstance(listed, dict):
        raise damage
    found: dict[str, list[str]] = {}
    for name, digest in sorted(listed.items()):
        known = isinstance(digest, str) and DIGEST.fullmatch(digest)
        if not known or not is_allowed_name(name):
            raise damage
        found.setdefault(digest, []).append(name)
    return {digest: tuple(names) for digest, names in found.items()}


def examine(path: Path, released: Released | None = None) -> Finding:
    """Return what a PNG or DICOM file says; with `released` also which of its files it is.

    Raises RefusedError for other and damaged files, and for pixels that cannot be compared.
    """
    data = read_capped(path, FILE_CAP_BYTES)
    if is_png(data):
        marks = png_marks(data, str(path))
        return Finding("PNG", marks, _find(released, data, str(path), read_picture))
    if data[DICOM_AT : DICOM_AT + 4] == b"DICM":
        marks = dicom_marks(data, str(path))
        return Finding("DICOM", marks, _find(released, data, str(path), dicom_picture))
    raise RefusedError(f"{path}: neither a PNG nor a DICOM file")


def _find(released: Released | None, data: bytes, what: str, read: Any) -> tuple[str, ...] | None:
    """The names of the released pictures with the pixels of `data`; None where nobody asked."""
    if released is None:
        return None
    picture: Picture = read(data, what)
    return released.names.get(picture.digest(), ())


def dicom_marks(data: bytes, what: str) -> tuple[str, ...]:
    """Return whether a DICOM file says SyntheticData = YES, as a tuple of names of marks.

    Needs pydicom. Raises RefusedError for a damaged file.
    """
    dataset = _read_dicom(data, what, pixels=False)
    with damage_named(RefusedError(f"{what}: damaged: SyntheticData cannot be read")):
        said = str(dataset.get("SyntheticData", "")).strip()
    return (DICOM,) if said == "YES" else ()


def dicom_picture(data: bytes, what: str) -> Picture:
    """Return the pixels of a DICOM image: one frame, not compressed, 8 bits grey or RGB, or a SEG.

    A segmentation of one bit counts as a mask of 0 and 255. Needs pydicom. Raises RefusedError for
    anything else.
    """
    dataset = _read_dicom(data, what, pixels=True)
    with damage_named(RefusedError(f"{what}: damaged: its pixels cannot be read")):
        width, height = int(dataset.Columns), int(dataset.Rows)
        kind = str(dataset.PhotometricInterpretation)
        samples = {"MONOCHROME2": 1, "RGB": 3}.get(kind, 0)
        bits = int(dataset.BitsAllocated)
        plain = (
            str(dataset.file_meta.TransferSyntaxUID) in NATIVE
            and bits in (1, 8)
            and bits == dataset.BitsStored
            and int(dataset.get("NumberOfFrames", 1)) == 1
            and dataset.SamplesPerPixel == samples
            and not dataset.get("PlanarConfiguration", 0)
        )
        size = width * height * samples
        values = bytes(dataset.PixelData)
    if not plain or not 0 < size <= SAMPLES_CAP or len(values) * 8 < size * bits:
        raise RefusedError(f"{what}: only plain images of 8 bits, grey or RGB, are compared")
    if bits == 1:
        values = bytes(255 * (values[i >> 3] >> (i & 7) & 1) for i in range(size))
    return Picture(width, height, as_rgb(values[:size], samples))


def _read_dicom(data: bytes, what: str, *, pixels: bool) -> Any:
    """The data set of a DICOM file."""
    try:
        pydicom = importlib.import_module("pydicom")
    except ImportError as error:
        raise ConfigurationError(
            f"{what}: reading DICOM needs pydicom, which is not installed here",
            hint=how_to_install("dicom"),
        ) from error
    # pydicom would unpack such a file whole, to whatever size
    if DEFLATED in data:
        raise RefusedError(f"{what}: a deflated DICOM file is not read")
    with damage_named(RefusedError(f"{what}: damaged: not a DICOM file that can be read")):
        return pydicom.dcmread(io.BytesIO(data), stop_before_pixels=not pixels)
