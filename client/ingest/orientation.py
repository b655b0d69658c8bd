"""Reads how a camera was turned, and turns the picture upright.

In: an EXIF block; decoded pixels.
Out: the orientation, 1..8; pixels.
Guarantees: nothing but the orientation is taken from an EXIF block, and any bytes have one.
Not covered: orientation in XMP or in text chunks.

EXIF 2.32, 4.6.4 A (tag 0x0112).
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from common.arrays import Pixels

PREFIX = b"Exif\0\0"
ORDERS: dict[bytes, Literal["little", "big"]] = {b"II": "little", b"MM": "big"}
TIFF_MARK = 42
ORIENTATION = 0x0112
SHORT = 3
ENTRY_BYTES = 12
UPRIGHT = 1


def read_orientation(exif: bytes) -> int:
    """Return the orientation that an EXIF block states, 1..8; upright where it states none."""
    data = exif.removeprefix(PREFIX)
    order = ORDERS.get(data[:2])
    if order is None:
        return UPRIGHT

    def number(at: int, size: int) -> int:
        return int.from_bytes(data[at : at + size], order)

    # the entries of the first directory
    start = number(4, 4)
    if number(2, 2) != TIFF_MARK:
        return UPRIGHT
    end = min(start + 2 + ENTRY_BYTES * number(start, 2), len(data) - ENTRY_BYTES + 1)
    for entry in range(start + 2, end, ENTRY_BYTES):
        if number(entry, 2) == ORIENTATION and number(entry + 2, 2) == SHORT:
            stated = number(entry + 8, 2)
            if 1 <= stated <= 8:
                return stated
            return UPRIGHT
    return UPRIGHT


def turn_upright(pixels: Pixels, orientation: int) -> Pixels:
    """Return pixels [H, W, C] as the scene was: the orientation says where its top left lies."""
    # 5 to 8: rows of the scene are stored as columns
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    # mirrored sideways, upside down, or both
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)
