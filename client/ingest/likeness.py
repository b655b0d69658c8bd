"""Finds images that are nearly identical, without comparing each image with each other one.

In: uint8 images, reduced one by one to sums of at most 64 x 64 fields (`reduce_images`).
Out: pairs that join whatever is alike.
Guarantees:
  - two images are alike when their grey values at 64 px correlate by more than 0.997, and by more
    than 0.95 where both are lit: a black frame around haze makes nobody one person. Images of one
    even shade are like nothing
  - this is decided exactly, in whole numbers: neither the order of the images nor a processor's
    rounding changes it
  - no pair that is alike is missed (see `sign_images`)
  - memory holds 512 bytes an image and two neighbourhoods
Not covered: two different photographs of one person.

Let x, y be the fields of two images with their mean taken away, at unit length: the correlation is
<x, y>. Let P project onto low frequencies, and Q onto all others. By Cauchy and Schwarz
<x, y> = <Px, Py> + <Qx, Qy> <= <Px, Py> + |Qx| |Qy| = <s(x), s(y)> with s(x) = (Px, |Qx|).
So where x, y are alike, their signatures s(x), s(y) are: <s(x), s(y)> > 0.997. They have unit
length, hence |s(x) - s(y)|^2 < 2 (1 - 0.997).

  1. sign each image: 63 low frequencies, and how much is left
  2. sort the signatures into neighbourhoods of 256, each with the box that it fills
  3. compare neighbourhoods whose boxes are near, by signatures
  4. compare what passes by all fields
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from common.arrays import Flags, Floats, Integers

ALIKE_PER_MILLE = 997  # lower thresholds join strangers with similar discs
ALIKE = ALIKE_PER_MILLE / 1000
# Copies have 0.958 and more; hazy photographs of strangers up to 0.94 (decision 0045)
LIT_ALIKE_PER_MILLE = 950
FRAME = 2  # fields: what is as near to black shows a frame
LEAST_LIT = 4  # where less than one in four fields is lit, the whole picture decides
SIDE_PX = 64
FREQUENCIES = 8  # along each side
BLOCK = 256
# A signature has 64 numbers, each rounded to 24 bits; a sum of 64 products adds as much a term.
# 66 x 2^-24 < 1e-5.
SIGNATURE_SLACK = 1e-5
# 4096 products in double precision: 4096 x 2^-52 < 1e-11
DOUBLE_SLACK = 1e-11

Fields = NDArray[np.uint16]  # [N, fields]: sums over the pixels and channels of each field
Progress = Callable[[int, int], None]


class Rows(Protocol):
    """Fields of many images, in memory or in a file."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Integers) -> Fields: ...


def count_fields(side_px: int) -> int:
    """Return the number of fields of an image of this side."""
    step = -(-side_px // SIDE_PX)  # 2 for 96 and 128
    return (side_px // step) ** 2


def reduce_images(images: NDArray[np.uint8]) -> Fields:
    """Return the fields, uint16 [N, fields], of uint8 images [N, S, S, C] with S x C <= 1536.

    Images of at most 64 px have a field a pixel, those of 96 px 48 x 48 fields. All sums are exact:
    a field of 8 x 8 pixels and three channels has at most 48,960.
    """
    count, side = images.shape[:2]
    across = math.isqrt(count_fields(side))
    rows = images.reshape(count, across, side // across, -1).sum(axis=2, dtype=np.uint16)
    fields = rows.reshape(count, across, across, -1).sum(axis=3, dtype=np.uint16)
    return np.asarray(fields.reshape(count, -1), dtype=np.uint16)


def near_duplicates(images: NDArray[np.uint8]) -> Iterator[tuple[int, int]]:
    """Yield pairs (i, j), i < j, of uint8 images [N, S, S, C] that join whatever is alike.

    Each pair is alike, and any two images that are alike are linked through such pairs.
    """
    if len(images):
        yield from join_alike(_reduce_all(images))


def near_pairs(images: NDArray[np.uint8], others: NDArray[np.uint8]) -> Iterator[tuple[int, int]]:
    """Yield every pair (i, j) of an image and one of the others that are alike.

    Both are uint8 [N, S, S, C]. The others are read once.
    """
    fields = _reduce_all(images)
    for start in range(0, len(others), BLOCK):
        right = reduce_images(others[start : start + BLOCK])
        for a in range(0, len(fields), BLOCK):
            left = fields[a : a + BLOCK]
            for i, j in np.argwhere(_compare_fields(left, right)).tolist():
                if agree_where_lit(left[i], right[j]):
                    yield a + i, start + j


def _reduce_all(images: NDArray[np.uint8]) -> Fields:
    """The fields of images that are read block by block."""
    blocks = []
    for start in range(0, len(images), BLOCK):
        blocks.append(reduce_images(images[start : start + BLOCK]))
    return np.concatenate(blocks)


def join_alike(
    fields: Rows, progress: Progress = lambda done, total: None
) -> Iterator[tuple[int, int]]:
    """Yield pairs (i, j), i < j, that join whatever is alike among the images with these fields.

    `progress(done, total)` counts the images that were compared with all later ones.
    """
    # (1, 2) sign the images, and sort them into neighbourhoods
    signatures, rows = sign_images(fields)
    neighbourhoods = [rows[part] for part in _split(signatures, np.arange(len(rows)))]
    place = np.zeros(len(fields), np.int64)
    place[rows] = np.arange(len(rows))
    signed = [signatures[place[part]] for part in neighbourhoods]
    joined = _Joined(len(fields))

    # (3, 4) compare each with itself and with the later ones that are near
    compared = len(fields) - len(rows)
    for first, near in enumerate(_near_boxes(signed)):
        for second in near:
            candidates = _candidates(signed[first], signed[second], same=first == second)
            left = neighbourhoods[first][candidates[0]]
            right = neighbourhoods[second][candidates[1]]
            yield from _join(fields, left, right, joined)
        compared += len(neighbourhoods[first])
        progress(compared, len(fields))


def sign_images(fields: Rows) -> tuple[NDArray[np.float32], Integers]:
    """Return the signatures, float32 [M, 64], and the M rows that they are of.

    Rows of one even shade have none. Two signatures' product is at least the correlation of their
    images, but for SIGNATURE_SLACK; the module's docstring says why.
    """
    found = []
    rows = []
    for start in range(0, len(fields), BLOCK):
        block = np.arange(start, min(start + BLOCK, len(fields)))
        units, shows = _unit_rows(fields[block])
        rows.append(block[shows])
        low = units[shows] @ _low_frequencies(units.shape[1]).T
        left = np.sqrt(np.maximum(0, 1 - np.square(low).sum(axis=1, keepdims=True)))
        found.append(np.concatenate([low, left], axis=1).astype(np.float32))
    if not found:
        return np.empty((0, FREQUENCIES**2), np.float32), np.empty(0, np.int64)
    return np.concatenate(found), np.concatenate(rows)


def _low_frequencies(count: int) -> Floats:
    """An orthonormal basis, [frequencies, fields]: cosines of a square, without the even shade."""
    side = math.isqrt(count)
    kept = min(FREQUENCIES, side)
    waves = np.cos(np.pi / side * np.outer(np.arange(kept), np.arange(side) + 0.5))
    waves /= np.linalg.norm(waves, axis=1, keepdims=True)
    products = np.einsum("ai,bj->abij", waves, waves).reshape(kept * kept, count)
    return np.asarray(products[1:], dtype=np.float64)


def _unit_rows(fields: Fields) -> tuple[Floats, Flags]:
    """Rows of zero mean and unit length, and which show anything at all; the others are zero."""
    rows = fields - fields.mean(axis=1, keepdims=True)
    shows = fields.max(axis=1) > fields.min(axis=1)
    rows[~shows] = 0
    rows[shows] /= np.linalg.norm(rows[shows], axis=1, keepdims=True)
    return rows, shows


def _split(signatures: NDArray[np.float32], rows: Integers) -> Iterator[Integers]:
    """Neighbourhoods of at most BLOCK rows: halves along the direction of the widest spread."""
    if len(rows) <= BLOCK:
        if len(rows):
            yield rows
        return
    own = signatures[rows]
    half = len(rows) // 2
    order = np.argpartition(own[:, own.std(axis=0).argmax()], half)
    yield from _split(signatures, rows[order[:half]])
    yield from _split(signatures, rows[order[half:]])


def _near_boxes(signed: list[NDArray[np.float32]]) -> Iterator[list[int]]:
    """For each neighbourhood: itself and the later ones whose box is near enough for a pair."""
    reach = 2 * (1 - ALIKE) + 4 * SIGNATURE_SLACK
    low = np.array([part.min(axis=0) for part in signed])
    high = np.array([part.max(axis=0) for part in signed])
    for first in range(len(signed)):
        gaps = np.maximum(low[first:] - high[first], low[first] - high[first:])
        distances = np.square(np.maximum(0, gaps)).sum(axis=1)
        yield (first + np.flatnonzero(distances <= reach)).tolist()


def _candidates(
    left: NDArray[np.float32], right: NDArray[np.float32], *, same: bool
) -> tuple[Integers, Integers]:
    """Places in two neighbourhoods whose signatures are alike; within one, each pair once."""
    alike = left @ right.T > ALIKE - SIGNATURE_SLACK
    if same:
        alike = np.triu(alike, 1)
    rows, columns = np.divmod(np.flatnonzero(alike), alike.shape[1])
    return rows, columns


def _join(
    fields: Rows, left: Integers, right: Integers, joined: _Joined
) -> Iterator[tuple[int, int]]:
    """Join those candidates (left[k], right[k]) that are alike by all fields; yield what joined."""
    apart = joined.tree[left] != joined.tree[right]
    left = left[apart]
    right = right[apart]
    if not len(left):
        return
    rows, i = np.unique(left, return_inverse=True)
    columns, j = np.unique(right, return_inverse=True)
    own = fields[rows]
    others = fields[columns]
    alike = np.flatnonzero(_compare_fields(own, others)[i, j])
    for place in alike.tolist():
        one, other = int(left[place]), int(right[place])
        if joined.tree[one] == joined.tree[other]:
            continue
        if agree_where_lit(own[i[place]], others[j[place]]):
            joined.join(one, other)
            yield min(one, other), max(one, other)


def _compare_fields(left: Fields, right: Fields) -> Flags:
    """Which rows of the left, [N, fields], are like which of the right, [M, fields]: [N, M]."""
    correlations = _unit_rows(left)[0] @ _unit_rows(right)[0].T
    alike = correlations > ALIKE
    # what rounding could have decided is decided in whole numbers
    for i, j in np.argwhere(np.abs(correlations - ALIKE) < DOUBLE_SLACK).tolist():
        alike[i, j] = correlates(left[i], right[j])
    return alike


def correlates(
    left: NDArray[np.uint16], right: NDArray[np.uint16], per_mille: int = ALIKE_PER_MILLE
) -> bool:
    """Return whether fields correlate by more than this, 0.997 by default, in whole numbers."""
    values = np.stack([left, right]).astype(np.int64)
    count = values.shape[1]
    sums = values.sum(axis=1)
    # n times the covariance and the variances; Python's integers do not overflow
    (first, both), (_, second) = (count * (values @ values.T) - np.outer(sums, sums)).tolist()
    return bool(both > 0 and both * both * 1000**2 > per_mille**2 * first * second)


def agree_where_lit(left: NDArray[np.uint16], right: NDArray[np.uint16]) -> bool:
    """Return whether fields correlate by more than 0.95 where neither image is near to black.

    True where hardly anything is lit, as in a film of much air.
    """
    side = math.isqrt(len(left))
    lit = np.pad(((left > 0) & (right > 0)).reshape(side, side), FRAME, constant_values=True)
    for axis in (0, 1):
        windows = np.lib.stride_tricks.sliding_window_view(lit, 2 * FRAME + 1, axis=axis)
        lit = np.asarray(windows.all(axis=-1), dtype=bool)
    inside = lit.reshape(-1)
    if LEAST_LIT * int(inside.sum()) < len(left):
        return True
    return correlates(left[inside], right[inside], LIT_ALIKE_PER_MILLE)


class _Joined:
    """Which images are joined already: `tree` names the tree of each, int64 [N]."""

    def __init__(self, count: int) -> None:
        self.tree = np.arange(count)
        self._members: dict[int, list[int]] = {}

    def join(self, one: int, other: int) -> bool:
        """Join two images; return whether they were apart."""
        trees = sorted((int(self.tree[one]), int(self.tree[other])), key=self._size)
        gone, kept = trees
        if kept == gone:
            return False
        # the smaller tree takes the name of the larger
        members = self._members.pop(gone, [gone])
        self._members.setdefault(kept, [kept]).extend(members)
        self.tree[members] = kept
        return True

    def _size(self, tree: int) -> int:
        return len(self._members.get(tree, [tree]))
