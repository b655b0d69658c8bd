"""Reads the size that a compressed image states of itself, before anything is decoded.

In: the bytes of one JPEG, JPEG-LS or JPEG 2000 image.
Out: rows and columns, or None where they cannot be told.
Not covered: whether the rest of the image is sound.
"""

from __future__ import annotations

JPEG = b"\xff\xd8"
JPEG_2000 = b"\xff\x4f\xff\x51"  # start of codestream, then the image sizes
JP2 = (
    b"\x00\x00\x00\x0cjP  "  # the first box of a JP2 file; the codestream follows within BOX_BYTES
)
BOX_BYTES = 4096
JPEG_LS = 0xF7
# frame headers: of JPEG all but DHT, JPG and DAC; of JPEG-LS SOF55
FRAMES = (set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}) | {JPEG_LS}
ALONE = {0x01, *range(0xD0, 0xD8)}  # markers without a length
SCAN = 0xDA


def stated_size(data: bytes) -> tuple[int, int] | None:
    """Return (rows, columns) as the image states them; None where it states none in its head."""
    if data.startswith(JPEG):
        return _jpeg_size(data)
    start = -1
    if data.startswith((JPEG_2000, JP2)):
        start = data.find(JPEG_2000, 0, BOX_BYTES)
    if start < 0 or len(data) < start + 24:
        return None
    # marker, length, capabilities, then the grid's size and the image's offset in it
    width, height, left, top = (
        int.from_bytes(data[start + at : start + at + 4], "big") for at in (8, 12, 16, 20)
    )
    return height - top, width - left


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """The size in the frame header of JPEG or JPEG-LS; None without one.

    A JPEG of zero rows states them after its pixels. A decoder that does not know them takes memory
    without end, so zero is what it states.
    """
    at = len(JPEG)
    while at + 9 <= len(data) and data[at] == 0xFF:
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
            if kind == JPEG_LS and not (rows and columns):  # stated in a segment of its own
                return None
            return rows, columns
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None
