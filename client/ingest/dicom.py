"""Reads one DICOM file as one 8-bit image and the patient's id.

In: an open file.
Out: a `DicomImage`; one file is one image.
Guarantees: only allow-listed attributes are parsed, and every bound holds before pixels are read
(dicom_header.py). The limits of the decoding child hold for what a codec does within these bounds.
Not covered: text burned into pixels that the header does not admit.

  1. to 4. bound, header, rules and size: dicom_header.py
  5. decode one frame; of a multi-frame object the middle one, (frames - 1) // 2
  6. display: see `display_table` for grey; colour and palettes become RGB, 16 bits become 8
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut, convert_color_space
from pydicom.pixels.utils import as_pixel_options

from client.ingest.codestream import stated_size
from client.ingest.dicom_header import (
    GREY,
    bound_inflation,
    check_rules,
    check_size,
    number_of,
    read_header,
    text_of,
)
from client.ingest.images import strips
from client.ingest.quarantine import Reason, Unusable
from common.arrays import Pixels

Window = tuple[float, float]
T = TypeVar("T", bound=np.generic)

SIDES = {"R": 2, "L": 1}


@dataclass(frozen=True)
class DicomImage:
    """A decoded image with its person.

    `pixels`: uint8 [H, W, 1 or 3]. The raw patient id and issuer are for the HMAC and then dropped.
    `laterality`: 0 unknown, 1 left, 2 right.
    """

    pixels: Pixels
    patient_id: str
    issuer: str
    laterality: int


def read_dicom(
    file: BinaryIO, modalities: tuple[str, ...], window: Window | None, max_bytes: int
) -> DicomImage:
    """Return the image in a DICOM file with a preamble.

    Raises Unusable; a codec's own errors become `undecodable`.
    """
    try:
        # (1, 2) bound the inflation and read the header
        bound_inflation(file, max_bytes)
        header = read_header(file, pixels=False)
        identity = (
            text_of(header, "PatientID"),
            text_of(header, "IssuerOfPatientID"),
            _side(header),
        )
        # (3) check the rules
        check_rules(header, modalities)
    except (Unusable, MemoryError):
        raise
    except Exception as error:
        raise Unusable(Reason.DAMAGED_HEADER) from error
    # (4) check the declared size
    check_size(header, max_bytes)
    try:
        # (5) decode one frame
        full, stored = decode_frame(file, header)
        # (6) map it to the 8 bits that a viewer would show
        shown = _render(full, stored, window)
    except (Unusable, MemoryError):
        raise
    except Exception as error:
        raise Unusable(Reason.UNDECODABLE) from error
    return DicomImage(shown, *identity)


def _side(header: Dataset) -> int:
    """Left or right from ImageLaterality, else Laterality; both eyes or neither is unknown."""
    return SIDES.get(text_of(header, "ImageLaterality") or text_of(header, "Laterality"), 0)


def decode_frame(file: BinaryIO, header: Dataset) -> tuple[Dataset, NDArray[np.integer[Any]]]:
    """Return the full data set and the stored values of its middle frame.

    The values are [H, W], or [H, W, 3] in RGB. Raises Unusable (not-an-image, truncated,
    undecodable).
    """
    full = read_header(file, pixels=True)
    frames = number_of(header, "NumberOfFrames", 1)
    if "PixelData" not in full:
        raise Unusable(Reason.NOT_AN_IMAGE)

    # uncompressed pixel data has a length, and it must be enough
    native = not full["PixelData"].is_undefined_length
    if native and len(full.PixelData) < native_bytes(full, frames):
        raise Unusable(Reason.TRUNCATED)

    # a compressed image of another size than the header's is not decoded
    index = (frames - 1) // 2
    size = (int(full.Rows), int(full.Columns))
    if not native and stated_size(
        get_frame(full.PixelData, index, number_of_frames=frames)
    ) not in (
        None,
        size,
    ):
        raise Unusable(Reason.UNDECODABLE)

    # decode, and check that a codec gave what the header declares
    stored = _decode(full, index)
    del full.PixelData
    if stored.shape[:2] != size or stored.dtype.kind not in "iu" or stored.dtype.itemsize > 2:
        raise Unusable(Reason.UNDECODABLE)
    return full, stored.astype(stored.dtype.newbyteorder("="), copy=False)


def _decode(full: Dataset, index: int) -> NDArray[Any]:
    """The stored values of one frame; luma and chroma become RGB strip by strip."""
    decoder = get_decoder(full.file_meta.TransferSyntaxUID)
    stored, facts = decoder.as_array(full, index=index, raw=True, **as_pixel_options(full))
    if facts["photometric_interpretation"] in ("YBR_FULL", "YBR_FULL_422"):
        for rows in strips(*stored.shape[:2]):
            stored[rows] = convert_color_space(stored[rows], "YBR_FULL", "RGB")
    return stored


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
        table = display_table(header, count_values(raw), bits, stored.dtype.kind == "i", window)
        return map_values(raw, table)[..., None]
    # palette: its colours; some 16-bit palettes hold 8-bit values
    palette = kind == "PALETTE COLOR"
    if palette:
        bits = 8
        largest = max(int(apply_color_lut(stored[rows], header).max()) for rows in _rows(stored))
        if largest > 255:
            bits = 16
    # colour: the upper eight bits
    shown = np.empty((*stored.shape[:2], 3), np.uint8)
    for rows in _rows(stored):
        strip = stored[rows]
        if palette:
            strip = apply_color_lut(strip, header)
        shown[rows] = strip >> max(bits - 8, 0) << max(8 - bits, 0)
    return shown


def _rows(stored: NDArray[Any]) -> Iterator[slice]:
    """The rows of each strip of stored values [H, W, ...]."""
    return strips(*stored.shape[:2])


def count_values(raw: NDArray[Any]) -> NDArray[np.int64]:
    """Return how often each unsigned pattern of [H, W] occurs, [256] or [65536]."""
    counts = np.zeros(1 << 8 * raw.dtype.itemsize, np.int64)
    for rows in _rows(raw):
        # strip by strip, because bincount widens its input
        counts += np.bincount(raw[rows].ravel(), minlength=len(counts))
    return counts


def map_values(raw: NDArray[Any], table: NDArray[T]) -> NDArray[T]:
    """Return the table's entry for each unsigned pattern of [H, W]."""
    found = np.empty(raw.shape, table.dtype)
    for rows in _rows(raw):
        found[rows] = table[raw[rows]]
    return found


def display_table(
    header: Dataset, counts: NDArray[np.int64], bits: int, signed: bool, window: Window | None
) -> NDArray[np.uint8]:
    """Return the uint8 grey level of every possible stored value, [256] or [65536].

    First the modality LUT or rescale. Then the study's window, else the file's VOI LUT or window,
    else the full range of 8-bit data or the 0.5 to 99.5 percentiles of deeper data. MONOCHROME1 is
    inverted; padding becomes black. `counts`: how often each value occurs; percentiles need it.
    (DICOM PS3.3 C.11.1, C.11.2, C.7.6.3)
    """
    # a table needs no float copy of the image
    values = stored_values(len(counts), bits, signed)
    padding = padding_of(header, values, counts)
    modality = modality_values(header, values)
    shown = _apply_window(header, modality, np.where(padding, 0, counts), bits, window)
    if header.PhotometricInterpretation == "MONOCHROME1":
        shown = 1 - shown
    return np.asarray(np.rint(255 * np.where(padding, 0, shown)), dtype=np.uint8)


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
    """Return which stored values are padding; none are, if the whole image would be."""
    if header.get("PixelPaddingValue") is None:
        return np.zeros(len(values), bool)
    first = number_of(header, "PixelPaddingValue")
    low, high = sorted((first, number_of(header, "PixelPaddingRangeLimit", first)))
    padding = (values >= low) & (values <= high)
    return padding & bool(counts[~padding].any())


def modality_values(header: Dataset, values: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return values through the modality LUT, or slope and intercept."""
    if header.get("ModalityLUTSequence"):
        return _apply_lut(header.ModalityLUTSequence[0], values)[0]
    slope = header.get("RescaleSlope")
    intercept = header.get("RescaleIntercept")
    if slope is None:
        slope = 1
    if intercept is None:
        intercept = 0
    return np.asarray(values * float(slope) + float(intercept), dtype=np.float64)


def _apply_lut(item: Dataset, values: NDArray[Any]) -> tuple[NDArray[np.float64], float]:
    """Values through a DICOM LUT, and the largest output that its depth allows."""
    length, first, depth = (int(n) for n in item.LUTDescriptor)
    data = item.LUTData
    if isinstance(data, bytes):
        data = np.frombuffer(data, "<u2")
    table = np.asarray(data, dtype=np.float64)
    # a length of 0 stands for 2^16; the first value is signed where the stored values are
    size = min(length or 1 << 16, len(table))
    if first >= 1 << 15 and values.min() < 0:
        first = first - (1 << 16)
    places = np.clip(np.rint(values).astype(np.int64) - first, 0, size - 1)
    return np.take(table, places), float((1 << depth) - 1)


def _apply_window(
    header: Dataset,
    values: NDArray[np.float64],
    counts: NDArray[np.int64],
    bits: int,
    window: Window | None,
) -> NDArray[np.float64]:
    """Map modality values to shares of full brightness, 0..1."""
    if window is None and header.get("VOILUTSequence"):
        table, largest = _apply_lut(header.VOILUTSequence[0], values)
        return np.clip(table / largest, 0, 1)
    windowed = all(header.get(name) is not None for name in ("WindowCenter", "WindowWidth"))
    if window is None and windowed:
        return _header_window(header, values)
    low, high = window or _plain_range(values, counts, bits)
    return np.clip((values - low) / max(high - low, 1e-12), 0, 1)


def _header_window(header: Dataset, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The first window of the file by its VOI LUT function (C.11.2.1.2 and .3)."""
    center = float(np.ravel(header["WindowCenter"].value)[0])
    width = float(np.ravel(header["WindowWidth"].value)[0])
    function = text_of(header, "VOILUTFunction") or "LINEAR"
    if function == "SIGMOID":
        exponent = np.clip(-4 * (values - center) / width, -50, 50)
        return np.asarray(1 / (1 + np.exp(exponent)), dtype=np.float64)
    if function == "LINEAR":
        center = center - 0.5
        width = width - 1
    return np.clip((values - center) / max(width, 1e-12) + 0.5, 0, 1)


def _plain_range(values: NDArray[np.float64], counts: NDArray[np.int64], bits: int) -> Window:
    """The range where there is no window.

    All of 8-bit data, or the 0.5 to 99.5 percentiles of deeper data.
    """
    if bits <= 8:
        return float(values.min()), float(values.max())
    order = np.argsort(values, kind="stable")
    share = np.cumsum(counts[order]) / max(counts.sum(), 1)

    def percentile(p: float) -> float:
        place = min(int(np.searchsorted(share, p)), len(order) - 1)
        return float(values[order[place]])

    return percentile(0.005), percentile(0.995)
