"""Reads photographs (PNG, JPEG) and frames every image of a cohort.

In: an open file, or decoded pixels.
Out: uint8 [H, W, C], or the square uint8 [S, S, C] of the study.
Guarantees: width x height is checked before anything is decoded; EXIF, comments and colour profiles
are never read. Beside the codec's own copy and the result, memory holds one strip of the image.
Not covered: text inside the field of view; EXIF rotation.

Framing:
  1. fundus only: crop to the bounding box of the field of view
  2. resize the longer side to S (antialiased bicubic)
  3. fundus only: blank the corners outside the circle of the field
  4. pad the shorter side with black to a square, the image in the middle
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from client.ingest.quarantine import Reason, Unusable
from common.arrays import Pixels

SURROUND_LEVEL = 16  # the surround of a fundus camera is black plus JPEG noise, well under this
STRAY_SHARE = 0.2  # with more light than this outside the circle there are no corners to blank
SEARCH_PX = 500
BLANK_SPREAD = 1.0  # grey levels of standard deviation
COLOUR_MODES = {"RGB", "RGBA", "P", "YCbCr", "CMYK"}
GREY_MODES = {"L", "LA", "1"}
DEEP_MODES = {"I;16", "I;16B", "I", "I;16L"}
DEEP_LEVELS = 1 << 16
STRIP_PIXELS = 1 << 20


def read_photograph(file: BinaryIO, max_pixel_bytes: int) -> Pixels:
    """Return the uint8 [H, W, 1 or 3] pixels of a PNG or JPEG file.

    Raises Unusable: declared-too-large, before decoding; undecodable; unsupported-pixels.
    """
    # open reads the header alone; the cap below is lower than Pillow's own
    Image.MAX_IMAGE_PIXELS = None
    try:
        picture = Image.open(file, formats=("PNG", "JPEG"))
    except (OSError, ValueError, SyntaxError) as error:
        raise Unusable(Reason.UNDECODABLE) from error
    if picture.width * picture.height * 4 > max_pixel_bytes:
        raise Unusable(Reason.DECLARED_TOO_LARGE)

    # decode by mode: 16-bit grey, grey or colour
    if picture.mode in DEEP_MODES:
        return _read_deep(picture)
    if picture.mode not in COLOUR_MODES | GREY_MODES:
        raise Unusable(Reason.UNSUPPORTED_PIXELS)
    if picture.mode in GREY_MODES:
        return _read_shallow(picture, "L", 1)
    return _read_shallow(picture, "RGB", 3)


def strips(height: int, width: int) -> Iterator[slice]:
    """Yield the rows of each strip of an image, STRIP_PIXELS at a time."""
    step = max(1, STRIP_PIXELS // width)
    for top in range(0, height, step):
        yield slice(top, min(top + step, height))


def _read_shallow(picture: Image.Image, mode: str, channels: int) -> Pixels:
    """A picture of 8 bits in grey (L) or colour (RGB), uint8 [H, W, channels]."""
    width, height = picture.size
    pixels = np.empty((height, width, channels), np.uint8)
    for rows in strips(height, width):
        strip = picture.crop((0, rows.start, width, rows.stop)).convert(mode)
        pixels[rows] = np.asarray(strip).reshape(-1, width, channels)
    return pixels


def _read_deep(picture: Image.Image) -> Pixels:
    """A 16-bit grey picture, uint8 [H, W, 1]: its middle 99 % of values spread over 0..255."""
    width, height = picture.size
    counts = np.zeros(DEEP_LEVELS, np.int64)
    for rows in strips(height, width):
        counts += np.bincount(_deep_strip(picture, rows).ravel(), minlength=DEEP_LEVELS)
    low, high = _percentile(counts, 0.005), _percentile(counts, 0.995)
    shares = np.clip((np.arange(DEEP_LEVELS) - low) / max(high - low, 1), 0, 1)
    table = np.rint(255 * shares).astype(np.uint8)
    pixels = np.empty((height, width, 1), np.uint8)
    for rows in strips(height, width):
        pixels[rows, :, 0] = table[_deep_strip(picture, rows)]
    return pixels


def _deep_strip(picture: Image.Image, rows: slice) -> NDArray[np.int64]:
    """Some rows of a deep picture. Raises Unusable for a value of more than 16 bits."""
    strip = picture.crop((0, rows.start, picture.width, rows.stop))
    values = np.asarray(strip, dtype=np.int64)
    if values.min() < 0 or values.max() >= DEEP_LEVELS:
        raise Unusable(Reason.UNSUPPORTED_PIXELS)
    return values


def _percentile(counts: NDArray[np.int64], share: float) -> float:
    """The value that a share of all is not above, between two values in proportion.

    `counts`: how often each value occurs. It is what np.percentile returns of the values.
    """
    ends = np.cumsum(counts)
    place = share * float(ends[-1] - 1)
    below = int(place)
    above = min(below + 1, int(ends[-1]) - 1)
    low, high = np.searchsorted(ends, (below, above), side="right").tolist()
    part = place - below
    if part < 0.5:
        return float(low + (high - low) * part)
    return float(high - (high - low) * (1 - part))


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
