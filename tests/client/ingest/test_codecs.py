"""client/ingest/codecs.py: one codec a transfer syntax, asked only for what the header declares."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from imagecodecs import jpeg8_encode, jpegls_encode
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.uid import (
    JPEG2000,
    UID,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from client.ingest import codecs
from client.ingest.dicom import read_dicom
from client.ingest.quarantine import Reason, Unusable
from tests import phantoms

CAP = 1 << 20
FULL = (0.0, 4095.0)
SCAN = b"\xff\xda"


def framed(frame: bytes, syntax: UID, pixels: Any, photometric: str, bits: int) -> Dataset:
    """A data set that declares `pixels` and holds `frame`."""
    modality = "OP" if pixels.ndim == 3 else "DX"
    dataset = phantoms.with_pixels(phantoms.header(modality), pixels, photometric, bits)
    return phantoms.encapsulated(dataset, frame, syntax, photometric)


def read(dataset: Dataset, tmp_path: Path, window: tuple[float, float] | None = FULL) -> Any:
    path = phantoms.save(dataset, tmp_path / "case.dcm")
    with open(path, "rb") as file:
        return read_dicom(file, ("OP", "DX"), window, CAP).pixels.squeeze()


def refused(dataset: Dataset, tmp_path: Path) -> Reason:
    with pytest.raises(Unusable) as refusal:
        read(dataset, tmp_path)
    return refusal.value.reason


def shown(pixels: Any) -> Any:
    """12-bit values in the window FULL."""
    return np.rint(255 * (pixels / 4095)).astype(np.uint8)


@pytest.mark.parametrize("syntax", codecs.CODECS, ids=lambda uid: uid.name)
def test_each_syntax_has_the_codec_that_is_named(syntax: UID) -> None:
    assert codecs.is_readable(syntax)


@pytest.mark.parametrize("syntax", [JPEGLossless, JPEGLosslessSV1], ids=lambda uid: uid.name)
@pytest.mark.parametrize("predictor", [1, 4, 7])
def test_lossless_jpeg_gives_what_was_written(syntax: UID, predictor: int, tmp_path: Path) -> None:
    pixels = phantoms.grey(1, bits=12)
    frame = jpeg8_encode(pixels, lossless=True, bitspersample=12, predictor=predictor)
    image = read(framed(frame, syntax, pixels, "MONOCHROME2", 12), tmp_path)
    assert np.array_equal(image, shown(pixels))


def test_lossless_jpeg_leaves_colours_as_they_are(tmp_path: Path) -> None:
    pixels = phantoms.fundus(2, 64)
    frame = jpeg8_encode(pixels, lossless=True, colorspace="RGB", outcolorspace="RGB")
    assert np.array_equal(read(framed(frame, JPEGLossless, pixels, "RGB", 8), tmp_path), pixels)


def test_jpeg_ls_gives_what_was_written(tmp_path: Path) -> None:
    pixels = phantoms.grey(3, bits=12)
    plain = phantoms.with_pixels(phantoms.header("DX"), pixels, "MONOCHROME2", 12)
    assert np.array_equal(read(phantoms.compressed(plain, JPEGLSLossless), tmp_path), shown(pixels))


def ending_at(frame: bytes, last: int) -> bytes:
    """A JPEG whose scan says that its spectrum ends at coefficient `last`."""
    scan = frame.index(SCAN)
    place = scan + 2 + int.from_bytes(frame[scan + 2 : scan + 4], "big") - 2
    assert frame[place - 1] == 0 and frame[place] == 63
    return frame[:place] + bytes([last]) + frame[place + 1 :]


@pytest.mark.parametrize("last", [0, 1, 255])
@pytest.mark.parametrize("bits", [8, 12])
def test_a_scan_that_ends_its_spectrum_too_early_is_read_whole(
    bits: int, last: int, tmp_path: Path
) -> None:
    pixels = phantoms.grey(4, bits=bits)
    frame = jpeg8_encode(pixels, level=95, bitspersample=bits)
    window = (0.0, 2.0**bits - 1)
    right, odd = (
        read(framed(data, JPEGExtended12Bit, pixels, "MONOCHROME2", bits), tmp_path, window)
        for data in (frame, ending_at(frame, last))
    )
    assert np.array_equal(right, odd)
    expected = np.rint(255 * (pixels / window[1]))
    assert np.abs(right.astype(float) - expected).mean() < 2


@pytest.mark.parametrize(
    "syntax", [JPEGLossless, JPEGExtended12Bit, JPEGLSLossless], ids=lambda uid: uid.name
)
def test_an_image_that_is_cut_off_is_not_filled_with_grey(syntax: UID, tmp_path: Path) -> None:
    pixels = phantoms.grey(5, bits=12)
    frame = jpeg8_encode(pixels, bitspersample=12, lossless=syntax == JPEGLossless)
    if syntax == JPEGLSLossless:
        frame = jpegls_encode(pixels)
    read(framed(frame + bytes(8), syntax, pixels, "MONOCHROME2", 12), tmp_path)
    for length in (len(frame) // 2, len(frame) - 2):
        cut = framed(frame[:length], syntax, pixels, "MONOCHROME2", 12)
        assert refused(cut, tmp_path) is Reason.UNDECODABLE


def jpeg(shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros(shape, np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def jpeg_2000(shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros(shape, np.uint8)).save(buffer, "JPEG2000", no_jp2=True)
    return buffer.getvalue()


def jpeg_ls(rows: int, columns: int, components: int = 1, bits: int = 8) -> bytes:
    size = rows.to_bytes(2, "big") + columns.to_bytes(2, "big")
    return b"\xff\xd8\xff\xf7\x00\x0b" + bytes([bits]) + size + bytes([components]) + bytes(9)


def rle(segments: int) -> bytes:
    starts = (segments, *range(64, 64 + 2 * segments, 2), *[0] * (15 - segments))
    return b"".join(word.to_bytes(4, "little") for word in starts) + b"\x81\0" * segments


MANY = b"\x40\x00" + b"\x07\1\1" * 0x4000  # components of a JPEG 2000, and what each is
# each states something else than one plane of 96 x 96 pixels of 8 bits
OTHERS: dict[str, tuple[bytes, UID]] = {
    "JPEG of other rows": (jpeg((97, 96)), JPEGBaseline8Bit),
    "JPEG of colour": (jpeg((96, 96, 3)), JPEGBaseline8Bit),
    "JPEG of 12 bits": (
        jpeg8_encode(phantoms.grey(1, bits=12), bitspersample=12),
        JPEGExtended12Bit,
    ),
    "JPEG of no frame": (b"\xff\xd8\xff\xd9", JPEGLossless),
    "JPEG-LS that states its rows later": (jpeg_ls(0, 96), JPEGLSLossless),
    "JPEG-LS of four components": (jpeg_ls(96, 96, 4), JPEGLSLossless),
    "JPEG-LS of 16 bits": (jpeg_ls(96, 96, 1, 16), JPEGLSLossless),
    "JPEG 2000 of other columns": (jpeg_2000((96, 20_000)), JPEG2000),
    "JPEG 2000 of thousands of components": (
        jpeg_2000((96, 96)).replace(b"\x00\x01\x07\1\1", MANY, 1),
        JPEG2000,
    ),
    "JPEG 2000 of nothing": (b"", JPEG2000Lossless),
    "RLE of two segments": (rle(2), RLELossless),
    "RLE of none": (rle(0), RLELossless),
    "RLE that ends in its header": (rle(1)[:20], RLELossless),
}


@pytest.mark.parametrize("case", OTHERS)
def test_no_codec_sees_an_image_that_states(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame, syntax = OTHERS[case]
    pixels = phantoms.grey(1, bits=8)
    assert pixels.shape == (96, 96)
    dataset = framed(frame or b"\0\0", syntax, pixels, "MONOCHROME2", 8)

    class Untouched:
        available_plugins = tuple(codecs.CODECS.values())

        def as_array(self, *_: object, **__: object) -> None:
            pytest.fail("a codec was asked")

    monkeypatch.setattr(codecs, "get_decoder", lambda _: Untouched())
    assert refused(dataset, tmp_path) is Reason.UNDECODABLE


def run_of(length: int) -> bytes:
    """RLE that gives `length` sevens, a multiple of 128."""
    return b"\x81\x07" * (length // 128)


@pytest.mark.parametrize("surplus", [0, 128])
def test_a_codec_that_panics_costs_its_file_and_not_the_child(surplus: int, tmp_path: Path) -> None:
    """A first segment that is too long; what Rust raises then is no Exception."""
    pixels = np.full((96, 96), 0x0707, np.uint16)
    segments = (run_of(pixels.size + surplus), run_of(pixels.size))
    starts = (2, 64, 64 + len(segments[0]), *[0] * 13)
    frame = b"".join(word.to_bytes(4, "little") for word in starts) + b"".join(segments)
    dataset = framed(frame, RLELossless, pixels, "MONOCHROME2", 12)
    if surplus:
        assert refused(dataset, tmp_path) is Reason.UNDECODABLE
    else:
        assert np.array_equal(read(dataset, tmp_path), shown(pixels & 0xFFF))
