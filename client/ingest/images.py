"""Frames every image of a cohort.

In: decoded pixels.
Out: the square uint8 [S, S, C] of the study.
Guarantees: beside the pixels, memory holds a strip of them and what resize.py holds.
Not covered: text inside the field of view.

Framing (resize.py):
  - a fundus photograph by its field of view (common/field_of_view.py), or it is refused
  - any other image by its longer side, which becomes S; the shorter one is padded with black, the
    image in the middle
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from client.ingest.quarantine import Reason, Unusable
from client.ingest.resize import picture_of, resize
from common.arrays import Pixels
from common.field_of_view import find_field, frame_field, side_of

BLANK_SPREAD = 1.0  # grey levels of standard deviation
STRIP_PIXELS = 1 << 20


def strips(height: int, width: int) -> Iterator[slice]:
    """Yield the rows of each strip of an image, STRIP_PIXELS at a time."""
    step = max(1, STRIP_PIXELS // width)
    for top in range(0, height, step):
        yield slice(top, min(top + step, height))


def frame_image(pixels: Pixels, size_px: int, channels: int, *, field_of_view: bool) -> Pixels:
    """Return uint8 [size_px, size_px, channels] of uint8 [H, W, 1 or 3].

    Raises Unusable: wrong-channels (grey where colour is asked), blank-image, too-small,
    no-field-of-view.
    """
    pixels = _with_channels(pixels, channels)
    if field_of_view:
        square = _frame_fundus(pixels, size_px)
    else:
        square = _frame_whole(pixels, size_px)
    return square


def _frame_fundus(pixels: Pixels, size_px: int) -> Pixels:
    """The field of view of a fundus photograph, its circle as wide as the square."""
    if max(pixels.shape[:2]) < size_px / 2:
        raise Unusable(Reason.TOO_SMALL)
    # a blank image is no failure to find the field
    grid = pixels[:: max(1, len(pixels) // size_px), :: max(1, pixels.shape[1] // size_px)]
    _refuse_blank(grid)
    field = find_field(pixels)
    if field is None:
        raise Unusable(Reason.NO_FIELD)
    if side_of(field) < size_px / 2:
        raise Unusable(Reason.TOO_SMALL)
    square = frame_field(pixels, field, size_px, resize)
    _refuse_blank(square)
    return square


def _frame_whole(pixels: Pixels, size_px: int) -> Pixels:
    """The whole image, its longer side as long as the square's."""
    height, width = pixels.shape[:2]
    if max(height, width) < size_px / 2:
        raise Unusable(Reason.TOO_SMALL)
    scale = size_px / max(height, width)
    resized = resize(pixels, max(1, round(height * scale)), max(1, round(width * scale)))
    _refuse_blank(resized)
    square = np.zeros((size_px, size_px, pixels.shape[2]), np.uint8)
    height, width = resized.shape[:2]
    top = (size_px - height) // 2
    left = (size_px - width) // 2
    square[top : top + height, left : left + width] = resized
    return square


def _refuse_blank(pixels: Pixels) -> None:
    """Raise Unusable for one even shade."""
    if float(pixels.std(axis=(0, 1)).max()) < BLANK_SPREAD:
        raise Unusable(Reason.BLANK)


def _with_channels(pixels: Pixels, channels: int) -> Pixels:
    """Colour to grey by ITU-R 601 luma; grey is never passed off as colour."""
    if pixels.shape[2] == channels:
        return pixels
    if channels == 3:
        raise Unusable(Reason.WRONG_CHANNELS)
    grey = np.empty((*pixels.shape[:2], 1), np.uint8)
    for rows in strips(*pixels.shape[:2]):
        grey[rows, :, 0] = np.asarray(picture_of(pixels[rows]).convert("L"))
    return grey
