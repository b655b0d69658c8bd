"""Reads the size that a compressed image states of itself, before anything is decoded.

In: the bytes of one JPEG, JPEG-LS, JPEG 2000 or RLE image.
Out: its rows, columns, components and bits, or None where they cannot be told.
Guarantees: at most the head is read, in steps of at least a byte.
Not covered: whether the rest of the image is sound.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

JPEG = b"\xff\xd8"
JPEG_2000 = b"\xff\x4f\xff\x51"  # start of codestream, then the image sizes
JP2 = b"\x00\x00\x00\x0cjP  "  # the first box of a JP2 file
CODESTREAM_BOX = b"jp2c"
MOST_BOXES = 64  # a JP2 file holds its codestream in one of the first boxes
JPEG_LS = 0xF7
# frame headers: of JPEG all but DHT, JPG and DAC; of JPEG-LS SOF55
FRAMES = (set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}) | {JPEG_LS}
ALONE = {0x01, *range(0xD0, 0xD8)}  # markers without a length
SCAN = 0xDA
END = b"\xff\xd9"
MOST_FILL_BYTES = 1 << 10
RLE_HEADER_BYTES = 64
MOST_RLE_SEGMENTS = 15


@dataclass(frozen=True)
class Stated:
    """What an image states of itself: `bits` a sample, of `components` samples a pixel."""

    rows: int
    columns: int
    components: int
    bits: int


def stated_size(data: bytes) -> Stated | None:
    """Return what a JPEG, JPEG-LS or JPEG 2000 image states; None where its head states nothing."""
    if data.startswith(JPEG):
        return _jpeg_size(data)
    if data.startswith(JPEG_2000):
        return _jpeg_2000_size(data, 0)
    if data.startswith(JP2):
        start = _codestream_start(data)
        if start is not None:
            return _jpeg_2000_size(data, start)
    return None


def count_segments(data: bytes) -> int | None:
    """Return how many segments (one byte of one sample each) an RLE image states.

    None where its header is cut off or its segments do not follow one another inside the data.
    (DICOM PS3.5 G.5)
    """
    words = [int.from_bytes(data[at : at + 4], "little") for at in range(0, RLE_HEADER_BYTES, 4)]
    count = words[0]
    if len(data) < RLE_HEADER_BYTES or not 0 < count <= MOST_RLE_SEGMENTS:
        return None
    starts = words[1 : 1 + count]
    follow = all(first < second for first, second in pairwise(starts))
    if starts[0] != RLE_HEADER_BYTES or not follow or starts[-1] >= len(data):
        return None
    return count


def is_cut_off(data: bytes) -> bool:
    """Return whether a JPEG image lacks its end marker; bytes of fill (0 or 255) may follow it."""
    return not data[-MOST_FILL_BYTES:].rstrip(b"\0\xff").endswith(END)


def _codestream_start(data: bytes) -> int | None:
    """Where the codestream of a JP2 file starts: behind the header of its box."""
    at = 0
    for _ in range(MOST_BOXES):
        size = int.from_bytes(data[at : at + 4], "big")
        kind = data[at + 4 : at + 8]
        head = 8
        if size == 1:  # the size follows in eight bytes
            size = int.from_bytes(data[at + 8 : at + 16], "big")
            head = 16
        if kind == CODESTREAM_BOX:
            return at + head
        if size < head:
            return None
        at += size
    return None


def _jpeg_2000_size(data: bytes, start: int) -> Stated | None:
    """The size in the first segment of a codestream (ISO/IEC 15444-1 A.5.1).

    None without one, and where components are of different precision or of fewer pixels.
    """
    if data[start : start + 4] != JPEG_2000 or len(data) < start + 42:
        return None
    # marker, length, capabilities, then the grid's size and the image's offset in it
    width, height, left, top = (
        int.from_bytes(data[start + at : start + at + 4], "big") for at in (8, 12, 16, 20)
    )
    # each component: precision and sign, then the steps of its grid
    components = int.from_bytes(data[start + 40 : start + 42], "big")
    parts = data[start + 42 : start + 42 + 3 * components]
    first = parts[:3]
    if len(parts) < 3 * components or not components or parts != first * components:
        return None
    if first[1:] != b"\1\1":
        return None
    return Stated(height - top, width - left, components, (first[0] & 0x7F) + 1)


def _jpeg_size(data: bytes) -> Stated | None:
    """The size in the frame header of JPEG or JPEG-LS; None without one.

    An image of zero rows or columns states them later. A decoder that does not know them takes
    memory or time without end, so zero is what it states.
    """
    at = len(JPEG)
    while at + 10 <= len(data) and data[at] == 0xFF:
        kind = data[at + 1]
        if kind == 0xFF:  # a byte of fill
            at += 1
        elif kind in ALONE:
            at += 2
        elif kind == SCAN:
            return None
        elif kind in FRAMES:
            rows = int.from_bytes(data[at + 5 : at + 7], "big")
            columns = int.from_bytes(data[at + 7 : at + 9], "big")
            return Stated(rows, columns, data[at + 9], data[at + 4])
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None
