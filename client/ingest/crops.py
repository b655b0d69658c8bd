"""Finds pictures that were cut out of one film or photograph.

In: the fields of images (likeness.py), 64 or 48 places a side; whose each image is.
Out: pairs of images of different persons, of which one is a crop of the other, or both of a third.
Guarantees:
  - up to an eighth may be missing at each side, or a fifth at one; grey levels do not count
  - two images are joined when their structures (exposure.py) correlate by more than ALIKE_PER_CENT
    where both show something, and that is at least half of what one shows
  - what joins is decided by whole numbers; memory holds 256 bytes an image
Not covered: a picture that was turned, flipped or stretched; less than 48 places a side. A crop is
missed where its middle is none of the CANDIDATES most like a window of the other.

  1. compare the middle of each image with the windows of each other one (crop_windows.py)
  2. place the CANDIDATES: all windows in finer scales, at 32 px
  3. register the FEW best at 64 px: scale and shift near that place; decide
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from client.ingest.crop_windows import (
    COARSE_PX,
    FINE_SCALES,
    SCALES,
    Values,
    find_weights,
    middles_of,
    reach_of,
    reduce_fields,
    squares_of,
    structures_at,
    unit_rows,
    windows_of,
)
from client.ingest.likeness import Fields, Rows, reduce_images
from common.arrays import Floats, Integers

# By places along a side, as in exposure.py; docs/measurements/crops.md
ALIKE_PER_CENT = {64: 60, 48: 70}
STRIDE = 2
CANDIDATES = 64
MIDDLES_ALIKE = 0.5
FEW = 4
PLACED_ALIKE = 0.6
BLOCK = 64  # images whose windows are compared at once
OTHERS = 512  # with so many middles
NEAR_SCALES = (1.0, 0.975, 1.025)
FAR = 0.35  # where the first scale fits so little, no other is tried
NEAR = 2  # places that a shift may be off
LEAST_COMMON = 0.5

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Fit:
    """Two images, and how well one fits into the other as a crop, in per cent."""

    whole: int
    cut: int
    per_cent: float


@dataclass(frozen=True)
class _Place:
    """Where the middle of a crop lies in another image: a scale, and places of 32 off its middle.

    `alike`: how well it fits there.
    """

    cut: int
    scale: float
    down: int
    right: int
    alike: float


def same_crops(
    fields: Rows, persons: Integers, progress: Progress = lambda done, total: None
) -> Iterator[tuple[int, int]]:
    """Yield pairs (i, j), i < j, of images of different persons that were cut out of one.

    `persons` [N]: images of one person are not compared. `progress(done, total)` counts images.
    """
    if not _may_be_placed(fields):
        progress(len(fields), len(fields))
        return
    limit = ALIKE_PER_CENT[_side_of(fields)]
    for fit in fit_crops(fields, persons, progress):
        if fit.per_cent > limit:
            yield min(fit.whole, fit.cut), max(fit.whole, fit.cut)


def fit_crops(
    fields: Rows, persons: Integers, progress: Progress = lambda done, total: None
) -> Iterator[Fit]:
    """Yield how well an image fits into one of another person, where that was looked at."""
    yield from fit_into(fields, fields, persons, persons, find_weights([fields]), progress)


def same_crops_among(
    images: NDArray[np.uint8], others: NDArray[np.uint8]
) -> Iterator[tuple[int, int]]:
    """Yield pairs (i, j) of an image and one of the others that were cut out of one.

    Both are uint8 [N, S, S, C].
    """
    if not len(images) or not len(others):
        return
    own = reduce_images(images)
    theirs = _Reduced(others)
    if not _may_be_placed(own):
        return
    limit = ALIKE_PER_CENT[_side_of(own)]
    weights = find_weights([own, theirs])
    persons = np.zeros(len(own), np.int64)
    strangers = np.ones(len(others), np.int64)
    for fit in fit_into(own, theirs, persons, strangers, weights):
        if fit.per_cent > limit:
            yield fit.whole, fit.cut
    for fit in fit_into(theirs, own, strangers, persons, weights):
        if fit.per_cent > limit:
            yield fit.cut, fit.whole


@dataclass(frozen=True, eq=False)
class _Reduced:
    """The fields of images, reduced when they are read."""

    images: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: Integers) -> Fields:
        return reduce_images(self.images[rows])


def _may_be_placed(fields: Rows) -> bool:
    """Whether images are large enough."""
    return bool(len(fields)) and _side_of(fields) in ALIKE_PER_CENT


def _side_of(fields: Rows) -> int:
    """The places along a side."""
    return math.isqrt(fields[np.array([0])].shape[1])


def fit_into(
    wholes: Rows,
    cuts: Rows,
    persons: Integers,
    strangers: Integers,
    weights: Values,
    progress: Progress = lambda done, total: None,
) -> Iterator[Fit]:
    """Yield how the best candidates fit: `cuts` into `wholes`, of different persons.

    `persons`, `strangers`: whose each of them is. `weights`: of find_weights.
    """
    middles = [_middles(cuts, rows) @ weights for rows in _blocks(len(cuts))]
    vectors = unit_rows(np.concatenate(middles))
    for rows in _blocks(len(wholes)):
        # (1) candidates
        coarse = reduce_fields(wholes[rows])
        alike = _compare(coarse, vectors, weights)
        alike[persons[rows][:, None] == strangers] = 0
        chosen = [_choose(of_one) for of_one in alike]
        asking = np.array([place for place, found in enumerate(chosen) if len(found)], np.int64)
        # (2) place them
        fine = _in_fine_scales(coarse[asking])
        for at, place in enumerate(asking.tolist()):
            own = chosen[place]
            found = _place([structures[at] for structures in fine], _middles(cuts, own), own)
            # (3) register the best
            whole = int(rows[place])
            for one in found[:FEW]:
                yield Fit(whole, one.cut, _register(wholes, whole, cuts, one))
        progress(int(rows[-1]) + 1, len(wholes))


def _in_fine_scales(coarse: Floats) -> list[NDArray[np.int8]]:
    """The structures of pictures in each of FINE_SCALES; none of no picture."""
    if not len(coarse):
        return []
    return [structures_at(coarse, scale) for scale in FINE_SCALES]


def _blocks(count: int) -> Iterator[Integers]:
    """The rows of each block."""
    for start in range(0, count, BLOCK):
        yield np.arange(start, min(start + BLOCK, count))


def _middles(fields: Rows, rows: Integers) -> Values:
    return middles_of(reduce_fields(fields[rows]))


def _compare(coarse: Floats, middles: Values, weights: Values) -> Values:
    """How well the middles [M, WAVES] fit into the windows of pictures, [N, M]."""
    parts = [windows_of(structures_at(coarse, scale), STRIDE) @ weights for scale in SCALES]
    windows = unit_rows(np.concatenate(parts, axis=1))
    alike = np.empty((len(coarse), len(middles)), np.float32)
    # parts that a processor's cache holds
    for start in range(0, len(middles), OTHERS):
        some = middles[start : start + OTHERS].T
        for place, own in enumerate(windows):
            (own @ some).max(axis=0, out=alike[place, start : start + OTHERS])
    return alike


def _choose(alike: Values) -> Integers:
    """The images that fit best, at most CANDIDATES; where there are so few, all of others."""
    chosen = np.flatnonzero(alike > MIDDLES_ALIKE)
    if len(alike) <= CANDIDATES:
        return np.flatnonzero(alike)
    if len(chosen) > CANDIDATES:
        best = np.argpartition(-alike[chosen], CANDIDATES)[:CANDIDATES]
        chosen = np.sort(chosen[best])
    return chosen


def _place(structures: Sequence[NDArray[np.int8]], middles: Values, cuts: Integers) -> list[_Place]:
    """Where each of these middles fits best into a picture; the best first.

    `structures`: of the picture in FINE_SCALES, each [side, side].
    """
    units = unit_rows(middles)
    best: dict[int, _Place] = {}
    for scale, structure in zip(FINE_SCALES, structures, strict=True):
        reach = reach_of(len(structure), 1)
        products = unit_rows(windows_of(structure[None], 1)[0]) @ units.T
        for column, at in enumerate(products.argmax(axis=0).tolist()):
            down, right = divmod(at, 2 * reach + 1)
            fits = float(products[at, column])
            place = _Place(int(cuts[column]), scale, down - reach, right - reach, fits)
            if column not in best or fits > best[column].alike:
                best[column] = place
    found = [place for place in best.values() if place.alike > PLACED_ALIKE]
    return sorted(found, key=lambda place: (-place.alike, place.cut))


def _register(wholes: Rows, whole: int, cuts: Rows, place: _Place) -> float:
    """How well an image fits into another one near a place, in per cent."""
    picture = squares_of(wholes[np.array([whole])])
    cut = squares_of(cuts[np.array([place.cut])])
    structure = structures_at(cut, 1.0)[0]
    best = 0.0
    for factor in NEAR_SCALES:
        scale = max(1.0, place.scale * factor)
        across = cut.shape[1] / COARSE_PX * scale / place.scale
        shift = (round(place.down * across), round(place.right * across))
        best = max(best, _correlate(structures_at(picture, scale)[0], structure, shift))
        if best < FAR:
            break
    return 100 * best


def _correlate(whole: NDArray[np.int8], cut: NDArray[np.int8], shift: tuple[int, int]) -> float:
    """The best correlation of a structure with another one, shifted so and up to NEAR more."""
    size = len(cut)
    reach = size // 2 + NEAR
    padded = np.pad(whole, reach)
    top = (len(padded) - size) // 2 + shift[0] - NEAR
    left = (len(padded) - size) // 2 + shift[1] - NEAR
    part = padded[top : top + size + 2 * NEAR, left : left + size + 2 * NEAR]
    windows = np.lib.stride_tricks.sliding_window_view(part, (size, size))
    rows = windows.reshape(-1, size * size).astype(np.float32)
    own = cut.reshape(-1).astype(np.float32)
    # whole numbers below 2^24: a float holds them exactly
    shown = (rows != 0).astype(np.float32)
    own_shown = (own != 0).astype(np.float32)
    products = rows @ own
    spread = (rows**2 @ own_shown) * (shown @ own**2)
    common = shown @ own_shown
    enough = LEAST_COMMON * min(float(own_shown.sum()), float(np.count_nonzero(whole)))
    scores = np.where(common >= enough, products / np.sqrt(np.maximum(spread, 1)), 0)
    return float(scores.max())
