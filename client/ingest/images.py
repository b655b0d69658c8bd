"""Frames every image of a cohort.

In: decoded pixels.
Out: the square uint8 [S, S, C] of the study.
Guarantees: beside the pixels and Pillow's copy of them, memory holds one strip of the image.
Not covered: text inside the field of view.

Framing:
  1. fundus only: crop to the bounding box of the field of view
  2. resize the longer side to S (antialiased bicubic)
  3. fundus only: blank the corners outside the circle of the field
  4. pad the shorter side with black to a square, the image in the middle
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from client.ingest.quarantine import Reason, Unusable
from common.arrays import Pixels

SURROUND_LEVEL = 16  # the surround of a fundus camera is black plus JPEG noise, well under this
STRAY_SHARE = 0.2  # with more light than this outside the circle there are no corners to blank
SEARCH_PX = 500
BLANK_SPREAD = 1.0  # grey levels of standard deviation
STRIP_PIXELS = 1 << 20


def strips(height: int, width: int) -> Iterator[slice]:
    """Yield the rows of each strip of an image, STRIP_PIXELS at a time."""
    step = max(1, STRIP_PIXELS // width)
    for top in range(0, height, step):
        yield slice(top, min(top + step, height))


def frame_image(pixels: Pixels, size_px: int, channels: int, *, field_of_view: bool) -> Pixels:
    """Return uint8 [size_px, size_px, channels] of uint8 [H, W, 1 or 3].

    Raises Unusable: wrong-channels (grey where colour is asked), blank-image, too-small.
    """
    pixels = _with_channels(pixels, channels)
    # (1) crop to the field of view
    if field_of_view:
        pixels = pixels[field_box(pixels)]
    height, width = pixels.shape[:2]
    if max(height, width) < size_px / 2:
        raise Unusable(Reason.TOO_SMALL)
    # (2) resize the longer side to the study's size
    scale = size_px / max(height, width)
    resized = _resize(pixels, max(1, round(height * scale)), max(1, round(width * scale)))
    # (3) blank the corners outside the field of view
    if field_of_view:
        resized = _blank_corners(resized)
    if float(resized.std(axis=(0, 1)).max()) < BLANK_SPREAD:
        raise Unusable(Reason.BLANK)
    # (4) pad to a square
    square = np.zeros((size_px, size_px, channels), np.uint8)
    height, width = resized.shape[:2]
    top = (size_px - height) // 2
    left = (size_px - width) // 2
    square[top : top + height, left : left + width] = resized
    return square


def _resize(pixels: Pixels, height: int, width: int) -> Pixels:
    """Pixels [H, W, 1 or 3] at another height and width, by antialiased bicubic interpolation."""
    # Pillow's copy is filled strip by strip: the pixels may be a part of a larger image
    channels = pixels.shape[2]
    mode = "RGB"
    if channels == 1:
        mode = "L"
    picture = Image.new(mode, (pixels.shape[1], pixels.shape[0]))
    for rows in strips(*pixels.shape[:2]):
        picture.paste(_picture_of(pixels[rows]), (0, rows.start))
    resized = picture.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized).reshape(height, width, channels)


def _picture_of(pixels: Pixels) -> Image.Image:
    """Pixels [H, W, 1 or 3] as Pillow holds them."""
    if pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    return Image.fromarray(np.ascontiguousarray(pixels))


def _with_channels(pixels: Pixels, channels: int) -> Pixels:
    """Colour to grey by ITU-R 601 luma; grey is never passed off as colour."""
    if pixels.shape[2] == channels:
        return pixels
    if channels == 3:
        raise Unusable(Reason.WRONG_CHANNELS)
    grey = np.empty((*pixels.shape[:2], 1), np.uint8)
    for rows in strips(*pixels.shape[:2]):
        grey[rows, :, 0] = np.asarray(_picture_of(pixels[rows]).convert("L"))
    return grey


def field_box(pixels: Pixels) -> tuple[slice, slice]:
    """Return the rows and columns of a fundus photograph's field of view.

    A row or column belongs to it when it has an unbroken bright stretch of a twentieth of its
    length. Strokes of letters beside the circle have none. Large images are searched on a grid of
    about SEARCH_PX places. Raises Unusable (blank-image) when all is dark.
    """
    step = max(1, max(pixels.shape[:2]) // SEARCH_PX)
    lit = pixels[::step, ::step].max(axis=2) > SURROUND_LEVEL
    top, bottom = _span_of_bright_lines(lit)
    left, right = _span_of_bright_lines(lit.T)
    return slice(top * step, bottom * step), slice(left * step, right * step)


def _span_of_bright_lines(lit: NDArray[np.bool_]) -> tuple[int, int]:
    """First line, and one past the last, of [lines, places] with a bright stretch.

    A stretch is a twentieth of the places without a gap.
    """
    # a stretch ends where the running sum has grown by its whole length
    run = max(2, lit.shape[1] // 20)
    sums = np.cumsum(np.pad(lit, ((0, 0), (1, 0))), axis=1, dtype=np.int32)
    inside = np.flatnonzero((sums[:, run:] - sums[:, :-run] == run).any(axis=1))
    if not len(inside):
        raise Unusable(Reason.BLANK)
    return int(inside[0]), int(inside[-1]) + 1


def _blank_corners(pixels: Pixels) -> Pixels:
    """Set the corners outside the field's circle to black, unless the image fills them."""
    height, width = pixels.shape[:2]
    rows = np.arange(height)[:, None] - (height - 1) / 2
    columns = np.arange(width)[None, :] - (width - 1) / 2
    outside = np.hypot(rows, columns) > 1.02 * max(height, width) / 2
    lit = pixels.max(axis=2)[outside] > SURROUND_LEVEL
    if not lit.any() or lit.mean() > STRAY_SHARE:
        return pixels
    return np.asarray(np.where(outside[..., None], 0, pixels), dtype=np.uint8)
