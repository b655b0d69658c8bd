"""Reads one DICOM file as one 8-bit image and the patient's id.

In: an open file.
Out: a `DicomImage`; one file is one image.
Guarantees: only allow-listed attributes are parsed, and every bound holds before pixels are read
(dicom_header.py). The limits of the decoding child hold for what a codec does within these bounds.
Not covered: text that the header does not admit (text_detector.py).

  1. to 4. bound, header, rules and size: dicom_header.py; the rules also of origin.py, content.py
  5. decode one frame; a photograph or radiograph has only one, of other multi-frame objects it is
     the middle one, (frames - 1) // 2
  6. display: see `display_table` for grey, palettes.py for palettes; colour is RGB of 8 bits
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.processing import convert_color_space

from client.ingest import codecs
from client.ingest.content import CLASS, check_content
from client.ingest.dicom_header import (
    GREY,
    STUDY,
    bound_inflation,
    check_rules,
    check_size,
    count_frames,
    numbers_of,
    read_header,
    text_of,
)
from client.ingest.images import strips
from client.ingest.lookup import is_swapped, look_up, read_table
from client.ingest.origin import check_origin
from client.ingest.palettes import palette_colours
from client.ingest.patterns import count_values, map_values
from client.ingest.quarantine import Reason, Unusable
from client.ingest.request import Choices, Wanted
from client.ingest.window import Window, apply_window, header_window
from common.arrays import Pixels

SIDES = {"R": 2, "L": 1}
ONE_FRAME = {"OP", "CR", "DX"}


@dataclass(frozen=True)
class DicomImage:
    """A decoded image with its person.

    `pixels`: uint8 [H, W, 1 or 3]. The raw patient id, issuer and StudyInstanceUID are for the HMAC
    and then dropped. `laterality`: 0 unknown, 1 left, 2 right. `silent`: what is wanted and the
    header does not name.
    """

    pixels: Pixels
    patient_id: str
    issuer: str
    laterality: int
    silent: tuple[str, ...] = ()
    study: str = ""


def read_dicom(
    file: BinaryIO,
    modalities: tuple[str, ...],
    window: Window | None,
    max_bytes: int,
    wanted: Wanted = Wanted(),
    choices: Choices = Choices(),
) -> DicomImage:
    """Return the image in a DICOM file with a preamble, if it is what is `wanted`.

    Raises Unusable; a codec's own errors become `undecodable`.
    """
    try:
        # (1, 2) bound the inflation and read the header
        bound_inflation(file, max_bytes)
        header = read_header(file, pixels=False, more=CLASS)
        identity = (
            text_of(header, "PatientID"),
            text_of(header, "IssuerOfPatientID"),
            _side(header),
        )
        study = text_of(header, STUDY)
        # (3) check the rules
        check_rules(header, modalities)
        check_origin(header, accept_derived=choices.accept_derived)
        silent = check_content(header, wanted, refuse_silent=choices.refuse_silent)
    except (Unusable, MemoryError):
        raise
    except Exception as error:
        raise Unusable(Reason.DAMAGED_HEADER) from error
    # (4) check the declared size
    check_size(header, max_bytes)
    _check_single(header)
    try:
        # (5) decode one frame
        full, stored = decode_frame(file, header)
    except (Unusable, MemoryError):
        raise
    except Exception as error:
        raise Unusable(Reason.UNDECODABLE) from error
    try:
        # (6) map it to the 8 bits that a viewer would show
        shown = _render(full, stored, window)
    except (Unusable, MemoryError):
        raise
    except Exception as error:  # what fails here is what the header says of the display
        raise Unusable(Reason.DAMAGED_HEADER) from error
    return DicomImage(shown, *identity, silent, study)


def _check_single(header: Dataset) -> None:
    """Refuse several frames of a photograph or radiograph: each can be of another side."""
    photograph = text_of(header, "Modality") in ONE_FRAME
    if photograph and count_frames(header) > 1:
        raise Unusable(Reason.SEVERAL_FRAMES)


def _side(header: Dataset) -> int:
    """Left or right from ImageLaterality, else Laterality; both eyes or neither is unknown."""
    return SIDES.get(text_of(header, "ImageLaterality") or text_of(header, "Laterality"), 0)


def decode_frame(file: BinaryIO, header: Dataset) -> tuple[Dataset, NDArray[np.integer[Any]]]:
    """Return the full data set and the stored values of its middle frame.

    The values are [H, W], or [H, W, 3] in RGB. Raises Unusable (not-an-image, truncated,
    undecodable).
    """
    full = read_header(file, pixels=True)
    frames = count_frames(header)
    full.NumberOfFrames = frames
    stored = read_frame(full, (frames - 1) // 2, frames)
    del full.PixelData
    return full, stored


def read_frame(full: Dataset, index: int, frames: int) -> NDArray[np.integer[Any]]:
    """Return the stored values of frame `index` of `frames`; see `decode_frame`."""
    if "PixelData" not in full:
        raise Unusable(Reason.NOT_AN_IMAGE)

    # uncompressed pixel data has a length, and it must be enough
    native = not full["PixelData"].is_undefined_length
    if native and len(full.PixelData) < native_bytes(full, frames):
        raise Unusable(Reason.TRUNCATED)

    # decode, and check that a codec gave what the header declares
    stored, colours = codecs.decode(full, index, frames)
    size = (int(full.Rows), int(full.Columns))
    if stored.shape[:2] != size or stored.dtype.kind not in "iu" or stored.dtype.itemsize > 2:
        raise Unusable(Reason.UNDECODABLE)
    if colours in ("YBR_FULL", "YBR_FULL_422"):
        stored = _rgb_of(stored)
    return stored.astype(stored.dtype.newbyteorder("="), copy=False)


def _rgb_of(stored: NDArray[Any]) -> NDArray[Any]:
    """Luma and chroma as RGB, strip by strip."""
    colours = np.empty_like(stored)
    for rows in strips(*stored.shape[:2]):
        colours[rows] = convert_color_space(stored[rows], "YBR_FULL", "RGB")
    return colours


def native_bytes(header: Dataset, frames: int) -> int:
    """Return the bytes of uncompressed pixel data; 4:2:2 chroma takes two thirds."""
    samples = int(header.Rows) * int(header.Columns) * int(header.SamplesPerPixel) * frames
    size = samples * int(header.BitsAllocated) // 8
    if header.PhotometricInterpretation == "YBR_FULL_422":
        return size * 2 // 3
    return size


def _render(header: Dataset, stored: NDArray[np.integer[Any]], window: Window | None) -> Pixels:
    """Stored values as uint8 [H, W, 1 or 3], as a viewer would show them."""
    kind = header.PhotometricInterpretation
    bits = min(int(header.BitsStored), 8 * stored.dtype.itemsize)
    # grey: one table over all possible values
    if kind in GREY:
        raw = stored.view(f"u{stored.dtype.itemsize}")
        counts = _counts_for(header, raw, bits, window)
        table = display_table(header, counts, bits, stored.dtype.kind == "i", window)
        return map_values(raw, table)[..., None]
    # palette: its colours
    if kind == "PALETTE COLOR":
        raw = stored.view(f"u{stored.dtype.itemsize}")
        counts = count_values(raw)
        patterns = stored_values(len(counts), bits, stored.dtype.kind == "i")
        colours = palette_colours(header, patterns, counts)
        return np.stack([map_values(raw, colour) for colour in colours], axis=-1)
    # colour: the upper eight bits
    shown = np.empty((*stored.shape[:2], 3), np.uint8)
    for rows in _rows(stored):
        shown[rows] = stored[rows] >> max(bits - 8, 0) << max(8 - bits, 0)
    return shown


def _counts_for(
    header: Dataset, raw: NDArray[Any], bits: int, window: Window | None
) -> NDArray[np.int64]:
    """How often each pattern occurs; 1 for each where the display does not depend on it.

    It does where there is padding or a lookup table, and where the window is the image's range.
    """
    names = ("PixelPaddingValue", "ModalityLUTSequence", "VOILUTSequence")
    windowed = bits <= 8 or window is not None or header_window(header) is not None
    if windowed and all(header.get(name) is None for name in names):
        return np.ones(1 << 8 * raw.dtype.itemsize, np.int64)
    return count_values(raw)


def _rows(stored: NDArray[Any]) -> Iterator[slice]:
    """The rows of each strip of stored values [H, W, ...]."""
    return strips(*stored.shape[:2])


def display_table(
    header: Dataset, counts: NDArray[np.int64], bits: int, signed: bool, window: Window | None
) -> NDArray[np.uint8]:
    """Return the uint8 grey level of every possible stored value, [256] or [65536].

    First the modality LUT or rescale, then the window (window.py), then polarity. Padding becomes
    black. `counts`: how often each value occurs. Raises Unusable (bad-rescale, bad-lookup-table).
    (DICOM PS3.3 C.11.1, C.11.2, C.7.6.3)
    """
    # a table needs no float copy of the image
    values = stored_values(len(counts), bits, signed)
    padding = padding_of(header, values, counts)
    counts = np.where(padding, 0, counts)
    modality = modality_values(header, values, counts)
    shown = apply_window(header, modality, counts, bits, window)
    if is_inverted(header):
        shown = 1 - shown
    return np.asarray(np.rint(255 * np.where(padding, 0, shown)), dtype=np.uint8)


def is_inverted(header: Dataset) -> bool:
    """Return whether low values are bright, by PresentationLUTShape, else MONOCHROME1 (C.11.6)."""
    shape = text_of(header, "PresentationLUTShape")
    if shape in ("INVERSE", "IDENTITY"):
        return shape == "INVERSE"
    return bool(header.PhotometricInterpretation == "MONOCHROME1")


def stored_values(size: int, bits: int, signed: bool) -> NDArray[np.int64]:
    """Return the number that each raw pattern means: the low `bits`, two's complement if signed.

    Old overlays in the bits above are ignored.
    """
    values = np.arange(size) & ((1 << bits) - 1)
    if signed:
        values = values - ((values >> (bits - 1)) << bits)
    return np.asarray(values, dtype=np.int64)


def padding_of(
    header: Dataset, values: NDArray[np.int64], counts: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Return which stored values are padding; none are, if the whole image would be.

    Padding may stand beyond the bits that are stored, and 16 bits of it may be meant with or
    without a sign, whatever the header calls them.
    """
    stated = numbers_of(header, "PixelPaddingValue")
    if not stated or not np.isfinite(stated[0]):
        return np.zeros(len(values), bool)
    limit = numbers_of(header, "PixelPaddingRangeLimit")
    if not limit or not np.isfinite(limit[0]):
        limit = stated
    signed = bool(values.min() < 0)
    low, high = sorted(_as_stored(bound[0], len(values), signed) for bound in (stated, limit))
    # as stored, and with all bits of the pattern
    whole = stored_values(len(values), len(values).bit_length() - 1, signed)
    padding = ((values >= low) & (values <= high)) | ((whole >= low) & (whole <= high))
    return padding & bool(counts[~padding].any())


def _as_stored(bound: float, patterns: int, signed: bool) -> float:
    """A 16-bit number with the sign of the stored values; a number that fits stays as it is."""
    if signed and bound >= patterns / 2 and patterns == 1 << 16:
        return bound - (1 << 16)
    if not signed and bound < 0:
        return bound + (1 << 16)
    return bound


def modality_values(
    header: Dataset, values: NDArray[np.int64], counts: NDArray[np.int64] | None = None
) -> NDArray[np.float64]:
    """Return values through the modality LUT, or slope and intercept.

    `counts`: how often each value occurs. Raises Unusable (bad-lookup-table, bad-rescale).
    """
    if header.get("ModalityLUTSequence"):
        item = header.ModalityLUTSequence[0]
        table = read_table(
            item.get("LUTDescriptor"), item.get("LUTData"), swapped=is_swapped(header)
        )
        return look_up(table, values, counts).astype(np.float64)
    slope = numbers_of(header, "RescaleSlope") or (1.0,)
    intercept = numbers_of(header, "RescaleIntercept") or (0.0,)
    with np.errstate(over="ignore", invalid="ignore"):
        rescaled = np.asarray(values * slope[0] + intercept[0], dtype=np.float64)
    if not np.isfinite(rescaled).all() or rescaled.min() == rescaled.max():
        raise Unusable(Reason.RESCALE)
    return rescaled
