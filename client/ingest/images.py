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

import functools
from collections.abc import Iterator

import numpy as np

from client.ingest.quarantine import Reason, Unusable
from client.ingest.resize import picture_of, resize, resize_fast
from common.arrays import Pixels
from common.field_of_view import Field, Resize, find_field, frame_field, side_of

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
    return Framer(pixels, channels, field_of_view=field_of_view).frame(size_px)


class Framer:
    """One image, uint8 [H, W, 1 or 3], framed at several sizes; its field is looked for once.

    Raises Unusable (wrong-channels) for grey where colour is asked.
    """

    def __init__(self, pixels: Pixels, channels: int, *, field_of_view: bool) -> None:
        self._pixels = _with_channels(pixels, channels)
        self._field_of_view = field_of_view

    def frame(self, size_px: int) -> Pixels:
        """Return what the study takes, uint8 [size_px, size_px, channels].

        Raises Unusable: blank-image, too-small, no-field-of-view.
        """
        if max(self._pixels.shape[:2]) < size_px / 2:
            raise Unusable(Reason.TOO_SMALL)
        if self._field_of_view:
            # a blank image is no failure to find the field
            down, across = (max(1, length // size_px) for length in self._pixels.shape[:2])
            _refuse_blank(self._pixels[::down, ::across])
            if self._field is None:
                raise Unusable(Reason.NO_FIELD)
        if not self._fills(size_px):
            raise Unusable(Reason.TOO_SMALL)
        square = self._square(size_px, resize)
        _refuse_blank(square)
        return square

    def look(self, side_px: int) -> Pixels | None:
        """Return the same frame in a hurry, to be looked at; None where the image is too small.

        uint8 [side_px, side_px, channels]. Only for an image that `frame` took.
        """
        if not self._fills(side_px):
            return None
        return self._square(side_px, resize_fast)

    @functools.cached_property
    def _field(self) -> Field | None:
        return find_field(self._pixels)

    def _fills(self, size_px: int) -> bool:
        """Whether what is framed is at least half as large as the frame."""
        side: float = max(self._pixels.shape[:2])
        if self._field_of_view and self._field is not None:
            side = side_of(self._field)
        return side >= size_px / 2

    def _square(self, size_px: int, resize: Resize) -> Pixels:
        if self._field_of_view and self._field is not None:
            return frame_field(self._pixels, self._field, size_px, resize)
        return _frame_whole(self._pixels, size_px, resize)


def _frame_whole(pixels: Pixels, size_px: int, resize: Resize) -> Pixels:
    """The whole image, its longer side as long as the square's."""
    height, width = pixels.shape[:2]
    scale = size_px / max(height, width)
    resized = resize(pixels, max(1, round(height * scale)), max(1, round(width * scale)))
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
