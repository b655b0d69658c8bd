"""Resizes a decoded image, of which memory holds no second copy.

In: pixels, which may be a part of a larger image.
Out: the pixels at another size, as Pillow's `resize` with BICUBIC and a `reducing_gap` of GAP.
Guarantees: beside the pixels and the result, memory holds one strip and the reduced image.
Not covered: enlarging in strips.

  1. reduce: average whole blocks, as far as the image stays GAP times as large as the result
  2. resize what is left by antialiased bicubic interpolation
"""

from __future__ import annotations

import cv2
import numpy as np
from PIL import Image

from common.arrays import Pixels

GAP = 3.0  # from three times the size on, Pillow's own choice, bicubic sees no block
STRIP_PIXELS = 1 << 20


def resize(pixels: Pixels, height: int, width: int) -> Pixels:
    """Return uint8 [height, width, C] of uint8 [H, W, C], C 1 or 3."""
    # (1) reduce
    rows, columns, channels = pixels.shape
    down = max(1, int(rows / height / GAP))
    across = max(1, int(columns / width / GAP))
    reduced = _reduce(pixels, down, across)
    # (2) resize; the last block may be a part of one, so the image ends inside it
    box = (0, 0, columns / across, rows / down)
    resized = reduced.resize((width, height), Image.Resampling.BICUBIC, box)
    return np.asarray(resized).reshape(height, width, channels)


def resize_fast(pixels: Pixels, height: int, width: int) -> Pixels:
    """Return uint8 [height, width, C] of uint8 [H, W, C], C 1 or 3, for a look and not to keep.

    Whole blocks become their means, the rest is linear; what is left of a block at the lower and
    right border is not shown.
    """
    rows, columns, channels = pixels.shape
    block = max(1, min(rows // height, columns // width))
    rows, columns = rows // block, columns // block
    pixels = pixels[: rows * block, : columns * block]
    reduced = cv2.resize(pixels, (columns, rows), interpolation=cv2.INTER_AREA)
    resized = cv2.resize(reduced, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(resized, dtype=np.uint8).reshape(height, width, channels)


def picture_of(pixels: Pixels) -> Image.Image:
    """Return pixels [H, W, 1 or 3] as Pillow holds them."""
    if pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    return Image.fromarray(np.ascontiguousarray(pixels))


def _reduce(pixels: Pixels, down: int, across: int) -> Image.Image:
    """The means of blocks of `down` x `across` pixels, made strip by strip."""
    rows, columns, channels = pixels.shape
    mode = "RGB"
    if channels == 1:
        mode = "L"
    reduced = Image.new(mode, (-(-columns // across), -(-rows // down)))
    step = max(1, STRIP_PIXELS // columns // down) * down
    for top in range(0, rows, step):
        strip = picture_of(pixels[top : top + step])
        if (across, down) != (1, 1):
            strip = strip.reduce((across, down))
        reduced.paste(strip, (0, top // down))
    return reduced
