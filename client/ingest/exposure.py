"""Finds photographs and films of one exposure that were processed differently.

In: the fields of likeness.py: sums of at most 64 x 64 places of each image.
Out: pairs of images that show one exposure.
Guarantees:
  - grey levels do not count, only which place is brighter than its neighbours: two windows, a
    brighter copy and a gamma give the same structure
  - two images are of one exposure when their structures correlate by more than 0.6 (0.7 where
    there are 48 x 48 places alone); one of 32 x 32 places has too little structure, and none
  - memory holds 1 KiB an image
Not covered: a picture that was cropped into (crops.py) or turned (around a fundus photograph, black
margins may differ: it is framed by its field of view first); a window that saturates most of the
image; two photographs of one person (same_eye.py).

  1. the structure of each image: at each place, how many of the 24 neighbours are darker, less how
     many are brighter
  2. a sketch of it: its products with 256 fixed rows of signs (Johnson and Lindenstrauss 1984)
  3. compare sketches, each with each other one
  4. compare what passes by the whole structures
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
from numpy.typing import NDArray

from client.ingest.likeness import BLOCK, Fields, Rows, reduce_images
from common.arrays import Flags

# By places along a side: fewer places agree by chance more often (docs/measurements/exposure.md)
ONE_EXPOSURE_PER_CENT = {64: 60, 48: 70}
# A sketch's product strays from the correlation by 1 / 16 or so: this is two and a half times less
SKETCHES_ALIKE = 0.45
SKETCH = 256
REACH = 2  # places to each side: 24 neighbours
_HALF = [(0, 1), (0, 2), *((down, right) for down in (1, 2) for right in range(-2, 3))]
GREY_LEVELS = 255

Progress = Callable[[int, int], None]
Sketches = NDArray[np.float32]


def same_exposures(
    fields: Rows, progress: Progress = lambda done, total: None
) -> Iterator[tuple[int, int]]:
    """Yield pairs (i, j), i < j, of images with these fields that are of one exposure.

    `progress(done, total)` counts the images that were compared with all earlier ones.
    """
    blocks = []
    for start in range(0, len(fields), BLOCK):
        rows = np.arange(start, min(start + BLOCK, len(fields)))
        own = _sketch(fields[rows])
        blocks.append(own)
        for index, earlier in enumerate(blocks):
            candidates = earlier @ own.T > SKETCHES_ALIKE
            if index * BLOCK == start:
                candidates = np.triu(candidates, 1)
            yield from _confirm(fields, fields, candidates, (index * BLOCK, start))
        progress(int(rows[-1]) + 1, len(fields))


def same_exposures_among(
    images: NDArray[np.uint8], others: NDArray[np.uint8]
) -> Iterator[tuple[int, int]]:
    """Yield every pair (i, j) of an image and one of the others that are of one exposure.

    Both are uint8 [N, S, S, C]. The others are read once.
    """
    if not len(images):
        return
    fields = reduce_images(images)
    own = _sketch(fields)
    for start in range(0, len(others), BLOCK):
        right = reduce_images(others[start : start + BLOCK])
        candidates = own @ _sketch(right).T > SKETCHES_ALIKE
        for i, j in _confirm(fields, right, candidates, (0, 0)):
            yield i, start + j


def structure_of(fields: Fields) -> NDArray[np.int8]:
    """Return the structure of images, int8 [N, places], of their fields, uint16 [N, fields].

    Neighbours that differ by less than a grey level count for neither; a place beside black counts
    for nothing, so that no frame and no padding makes two images alike.
    """
    count = len(fields)
    side = math.isqrt(fields.shape[1])
    values = fields.reshape(count, side, side).astype(np.int32)
    level = np.maximum(1, values.max(axis=(1, 2)) // GREY_LEVELS)[:, None, None]
    found = np.zeros(values.shape, np.int8)
    # what a place is to its neighbour, the neighbour is to the place: half of them say it all
    for down, right in _HALF:
        one = (slice(None), *_overlap(down, side), *_overlap(right, side))
        other = (slice(None), *_overlap(-down, side), *_overlap(-right, side))
        more = values[one] - values[other]
        sign = (more >= level).astype(np.int8) - (more <= -level)
        found[one] += sign
        found[other] -= sign
    inner = slice(REACH, side - REACH)
    structure = found[:, inner, inner]
    structure[~_lit(values > 0)] = 0
    return structure.reshape(count, -1)


def _overlap(step: int, side: int) -> tuple[slice]:
    """The places along one side that have a neighbour a step back."""
    return (slice(max(step, 0), side + min(step, 0)),)


def _lit(bright: Flags) -> Flags:
    """Which inner places have no black in reach, of [N, side, side]."""
    for axis in (1, 2):
        windows = np.lib.stride_tricks.sliding_window_view(bright, 2 * REACH + 1, axis=axis)
        bright = np.asarray(windows.all(axis=-1), dtype=bool)
    return bright


def _sketch(fields: Fields) -> Sketches:
    """The sketches of images, [N, SKETCH], at unit length; zero where there is no structure."""
    if math.isqrt(fields.shape[1]) not in ONE_EXPOSURE_PER_CENT:
        return np.zeros((len(fields), SKETCH), np.float32)
    structures = structure_of(fields).astype(np.float32)
    structures -= structures.mean(axis=1, keepdims=True)
    sketches = structures @ _signs(structures.shape[1])
    lengths = np.linalg.norm(sketches, axis=1, keepdims=True)
    return np.asarray(sketches / np.maximum(lengths, 1), dtype=np.float32)


@cache
def _signs(places: int) -> Sketches:
    """Rows of signs, [places, SKETCH], the same for all: a constant, and no secret."""
    chance = np.random.default_rng(0)
    return chance.choice(np.array([-1, 1], np.float32), (places, SKETCH))


def _confirm(
    left: Rows, right: Rows, candidates: Flags, first: tuple[int, int]
) -> Iterator[tuple[int, int]]:
    """Yield those candidates [N, M] that are of one exposure, by whole structures.

    Their rows and columns begin at the places `first` of left and right.
    """
    rows, columns = np.nonzero(candidates)
    if not len(rows):
        return
    places, i = np.unique(rows, return_inverse=True)
    other_places, j = np.unique(columns, return_inverse=True)
    one = structure_of(left[places + first[0]])
    other = structure_of(right[other_places + first[1]])
    alike = _correlate(one, other)[i, j]
    for row, column in zip(rows[alike].tolist(), columns[alike].tolist(), strict=True):
        yield row + first[0], column + first[1]


def _correlate(left: NDArray[np.int8], right: NDArray[np.int8]) -> Flags:
    """Which structures [N, places] correlate with which others [M, places]."""
    # sums of 3,600 products of at most 24 x 24, times 3,600: a double holds them exactly
    one = left.astype(np.float64)
    other = right.astype(np.float64)
    count = one.shape[1]
    products = count * (one @ other.T) - np.outer(one.sum(axis=1), other.sum(axis=1))
    spread = count * np.square(one).sum(axis=1) - np.square(one.sum(axis=1))
    other_spread = count * np.square(other).sum(axis=1) - np.square(other.sum(axis=1))
    per_cent = ONE_EXPOSURE_PER_CENT[math.isqrt(count) + 2 * REACH]
    limits = per_cent * np.sqrt(spread)[:, None] * np.sqrt(other_spread)
    return np.asarray(100 * products > limits)
