"""Rows of codes into parts of k to 2k-1: the numerics of grouping, without patients, files or randomness.

In: codes float [n, D] in canonical order, k, and for cells the public centres. Out: for every row the number of its part.

Guaranteed
1. Every row is in exactly one part; greedy parts have k to 2k-1 rows, and swaps keep the sizes.
2. Outside `paper`, codes are whole numbers so small that each product and sum is exact: neither threads nor the order
   of summation change a part, and where k divides n the greedy parts are those of the naive rule on these numbers.
3. Memory: one float32 matrix [n, n] up to `DENSE_ROWS` rows (10,000: 400 MB); above, O(n·D) by running sums of squared
   distances, another criterion for "outlier first", never used in `paper`.

Not covered: who the rows are (group.py), and that similar rows in one part leak more than random ones.
Source: Jeon et al. 2022 (`nearestNeighborClust`); methods/ksalsa.md 3.3 for the remainder, the swaps and the sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.arrays import Floats, Integers

Singles = NDArray[np.float32]
Rule = Callable[[Floats, int], Integers]

DENSE_ROWS = 15_000
# rows at a time, so that a block stays in cache
BLOCK = 1024
LOOKED = 256
SWAP_NEIGHBOURS = 20
SWAP_SWEEPS = 60
SWAP_LEAST_GAIN = (
    1e-5  # of the mean squared distance to the mean: ten times what float32 rounds away
)
CELL_LEAST = 2  # times k: cells of 2k rows or more, about 4k on average


@dataclass(frozen=True)
class Cells:
    """Centres float64 [J, D] in the space of the codes, of generator samples alone. Only `metric` and `anchors` make them."""

    centres: Floats


def greedy(points: Floats, k: int) -> Integers:
    """Outlier first: the row with the largest sum of distances to those left, with its k-1 nearest; returns int [n].

    When fewer than k are left, each joins the part of the nearest row that is in one. Ties go to the lowest row.
    """
    if len(points) > DENSE_ROWS:
        return _greedy_by_sums(_lattice(points, len(points)), k)
    return _greedy(_distances(_lattice(points, 2 * k)), k)


def greedy_paper(points: Floats, k: int) -> Integers:
    """The same rule in float64 on the points as they are, for parity with the paper."""
    squares = (points**2).sum(axis=1)
    products = points @ points.T
    squared = squares[:, None] + squares[None, :] - (products + products.T)
    np.fill_diagonal(squared, 0.0)
    return _greedy(np.sqrt(np.maximum(squared, 0.0, out=squared), out=squared), k)


def greedy_swapped(points: Floats, k: int) -> Integers:
    """`greedy`, then exchanges of pairs between parts while one lowers the squared error by more than rounding."""
    if len(points) > DENSE_ROWS:
        rows = _lattice(points, len(points))
        return _swapped(rows, _greedy_by_sums(rows, k), None)
    rows = _lattice(points, 2 * k)
    distances = _distances(rows)
    return _swapped(rows, _greedy(distances, k), distances)


def cells_of_rows(points: Floats, centres: Floats, least: int) -> Integers:
    """The cell of every row: nearest centre; then the smallest cell below `least` is dissolved, again and again.

    Its rows go to the nearest centre that is left. Ends with every cell at `least` rows or more, or with one cell.
    """
    both = _lattice(np.concatenate([points, centres]), 2)
    away = _distances(both[: len(points)], both[len(points) :])
    cell = away.argmin(axis=1)
    sizes = np.bincount(cell, minlength=len(centres)).astype(np.float64)
    away[:, sizes == 0] = np.inf
    sizes[sizes == 0] = np.inf
    while np.isfinite(sizes).sum() > 1 and sizes.min() < least:
        small = int(sizes.argmin())
        away[:, small], sizes[small] = np.inf, np.inf
        moved = np.flatnonzero(cell == small)
        cell[moved] = away[moved].argmin(axis=1)
        sizes += np.bincount(cell[moved], minlength=len(centres))
    return np.asarray(np.unique(cell, return_inverse=True)[1], np.int64)


def nearest(points: Floats, centres: Floats) -> Integers:
    """The nearest centre of every row; each row's own doing, whoever the others are."""
    found = np.empty(len(points), np.int64)
    for at in range(0, len(points), LOOKED):
        apart = (
            points[at : at + LOOKED, None] - centres
        )  # differences, not products: no row's rounding knows another row
        found[at : at + LOOKED] = np.square(apart, out=apart).sum(axis=2).argmin(axis=1)
    return found


def parts_of(group_of: Integers) -> list[list[int]]:
    """Rows of each part number, in order."""
    order = np.argsort(group_of, kind="stable")
    edges = np.cumsum(np.bincount(group_of))[:-1]
    return [part.tolist() for part in np.split(order, edges)]


# --- exact numbers


def _lattice(points: Floats, terms: int) -> Floats:
    """The points as whole numbers (promise 2): sums of `terms` products over all coordinates stay below 2^53.

    The grid is 2^-b of the largest coordinate about the middle of the range; b is 20 at k = 20 and D = 64.
    """
    count, dimension = points.shape
    if not count or not dimension:
        return np.zeros((count, max(dimension, 1)))
    bits = int(
        min((50 - math.log2(dimension) - math.log2(terms)) // 2, 23 - math.log2(dimension) / 2)
    )
    centred = points - (points.max(axis=0) + points.min(axis=0)) / 2
    largest = float(np.abs(centred).max())
    return np.rint(centred * ((2**bits - 1) / largest)) if largest > 0 else np.zeros_like(centred)


def _distances(rows: Floats, others: Floats | None = None) -> Singles:
    """Euclidean distances [n, m], rounded to whole numbers, block by block: exact sums, exactly symmetric."""
    others = rows if others is None else others
    squares = (rows**2).sum(axis=1)
    theirs = (others**2).sum(axis=1)
    found = np.empty((len(rows), len(others)), np.float32)
    for at in range(0, len(rows), BLOCK):
        block = rows[at : at + BLOCK] @ others.T
        block *= -2.0
        block += theirs
        block += squares[at : at + BLOCK, None]
        found[at : at + BLOCK] = np.rint(np.sqrt(block, out=block), out=block)
    return found


# --- greedy


def _greedy(distances: NDArray[np.floating], k: int) -> Integers:
    """Greedy parts from all distances; the sums lose the columns of each finished part, so all of it is O(n²)."""
    count = len(distances)
    sums = np.array([row.sum(dtype=np.float64) for row in distances])
    taken = np.zeros(count, distances.dtype)  # infinite where a row is in a part
    group_of = np.full(count, -1, np.int64)
    for g in range(count // k):
        seed = int(sums.argmax())
        away = distances[seed] + taken
        away[seed] = -1.0
        part = _smallest(away, k)
        group_of[part], taken[part] = g, np.inf
        for i in part:
            sums -= distances[i]
        sums[part] = -np.inf
    left = np.flatnonzero(group_of < 0)
    away = distances[left]
    away[:, left] = np.inf
    group_of[left] = group_of[away.argmin(axis=1)]
    return group_of


def _smallest(values: NDArray[np.floating], count: int) -> Integers:
    """Positions of the `count` smallest values; ties go to the lowest position."""
    limit = np.partition(values, count - 1)[count - 1]
    found = np.flatnonzero(values <= limit)
    if len(found) > count:
        ties = found[values[found] == limit]
        found = np.setdiff1d(found, ties[count - len(found) :], assume_unique=True)
    return found


def _greedy_by_sums(rows: Floats, k: int) -> Integers:
    """Greedy parts by sums of squared distances, n·|x|² - 2 x·S + Q over those left: O(n·D) memory, O(n²·D/k) time."""
    group_of = np.full(len(rows), -1, np.int64)
    names = np.arange(len(rows))
    left = rows
    squares = (left**2).sum(axis=1)
    inner = left @ left.sum(axis=0)
    free = np.ones(len(left), bool)
    for g in range(len(rows) // k):
        score = (len(rows) - g * k) * squares - 2.0 * inner
        seed = int(np.where(free, score, -np.inf).argmax())
        away = np.where(free, squares - 2.0 * (left @ left[seed]), np.inf)
        away[seed] = -np.inf
        part = _smallest(away, k)
        group_of[names[part]], free[part] = g, False
        inner -= left @ left[part].sum(axis=0)
        if free.sum() < 0.8 * len(free):
            names = names[free]
            left = left[free]
            squares = squares[free]
            inner = inner[free]
            free = np.ones(len(left), bool)
    joined = np.flatnonzero(group_of >= 0)
    for i in np.flatnonzero(group_of < 0):
        away = (rows[joined] ** 2).sum(axis=1) - 2.0 * (rows[joined] @ rows[i])
        group_of[i] = group_of[joined[away.argmin()]]
    return group_of


# --- swaps


def _swapped(rows: Floats, group_of: Integers, distances: Singles | None) -> Integers:
    """Exchange pairs while one lowers the squared error; best first, each part at most once a sweep (ksalsa.md 3.3).

    Only rows with a changed part among those of their nearest neighbours are looked at again: the others' best pair is
    what it was.
    """
    swaps = _Swaps(rows, group_of, distances)
    stale = np.ones(len(rows), bool)
    for _ in range(SWAP_SWEEPS):
        swaps.look(np.flatnonzero(stale))
        changed = swaps.apply()
        if not changed.any():
            break
        stale = changed[swaps.group_of] | changed[swaps.group_of[swaps.neighbours]].any(axis=1)
    return swaps.group_of


class _Swaps:
    """Parts under exchange: member table, part means as inner products with all rows, and each row's best exchange."""

    def __init__(self, rows: Floats, group_of: Integers, distances: Singles | None) -> None:
        self.rows = rows
        self.group_of = group_of.copy()
        self.distances = distances
        self.sizes = np.bincount(group_of)
        self.squares = (rows**2).sum(axis=1)
        self.least = SWAP_LEAST_GAIN * float(((rows - rows.mean(axis=0)) ** 2).sum(axis=1).mean())
        self.neighbours = self._neighbours()
        self.gain = np.zeros(len(rows), np.float32)
        self.partner = np.zeros(len(rows), np.int64)
        order = np.argsort(group_of, kind="stable")
        starts = np.cumsum(self.sizes) - self.sizes
        self.slot = np.empty(len(rows), np.int64)
        self.slot[order] = np.arange(len(rows)) - np.repeat(starts, self.sizes)
        self.table = np.full((len(self.sizes), int(self.sizes.max())), -1, np.int64)
        self.table[group_of, self.slot] = np.arange(len(rows))
        self.sums = np.add.reduceat(rows[order], starts, axis=0)
        self.inner = np.empty(
            (len(self.sizes), len(rows)), np.float32
        )  # 2 x·mean of every part's mean and every row
        self._update(np.arange(len(self.sizes)))

    def _neighbours(self) -> Integers:
        """The nearest rows of each row, itself among them, int [n, <= 21]."""
        count = min(SWAP_NEIGHBOURS, len(self.rows) - 1)
        found = []
        for at in range(0, len(self.rows), BLOCK):
            if self.distances is None:
                near = self.squares - 2.0 * (self.rows[at : at + BLOCK] @ self.rows.T)
            else:
                near = self.distances[at : at + BLOCK]
            found.append(np.argpartition(near, count, axis=1)[:, : count + 1].copy())
        return np.concatenate(found)

    def look(self, some: Integers) -> None:
        """Find the best exchange of each of these rows with a member of a neighbour's part."""
        own = self.inner[self.group_of, np.arange(len(self.rows))]
        members_own = own[self.table]
        members_own[self.table < 0] = np.inf
        for at in range(0, len(some), LOOKED):
            self._look(some[at : at + LOOKED], own, members_own)

    def _look(self, some: Integers, own: Singles, members_own: Singles) -> None:
        """gain = 2 (x_j - x_i)·(mean_a - mean_b) + |x_i - x_j|² (1/n_a + 1/n_b), for i in a and each j in b."""
        parts = np.sort(self.group_of[self.neighbours[some]], axis=1)
        fresh = parts != self.group_of[some, None]
        fresh[:, 1:] &= parts[:, 1:] != parts[:, :-1]
        which, column = np.nonzero(fresh)  # one (row, part) pair a line, lines of one row together
        self.gain[some] = 0.0
        if not len(which):
            return
        i = some[which]
        b = parts[which, column]
        a = self.group_of[i]
        j = self.table[b]
        gain = self._squared(i, j)
        gain *= (1 / self.sizes[a] + 1 / self.sizes[b]).astype(np.float32)[:, None]
        gain += self.inner.take(j + (a * len(self.rows))[:, None], mode="clip")
        gain -= members_own[b]
        best = gain.argmax(axis=1)
        lines = np.arange(len(i))
        value = gain[lines, best] + (self.inner[b, i] - own[i])
        partner = j[lines, best]
        first = np.flatnonzero(np.append(True, which[1:] != which[:-1]))
        top = np.maximum.reduceat(value, first)
        lines = np.flatnonzero(value == np.repeat(top, np.diff(np.append(first, len(which)))))[::-1]
        self.gain[i[lines]], self.partner[i[lines]] = (
            value[lines],
            partner[lines],
        )  # of equals the first line stays

    def _squared(self, i: Integers, j: Integers) -> Singles:
        """Squared distances of rows i [P] to rows j [P, s]."""
        if self.distances is not None:
            found: Singles = self.distances.take(j + (i * len(self.rows))[:, None], mode="clip")
            found *= found
            return found
        inner = np.stack(
            [self.rows[columns] @ self.rows[row] for row, columns in zip(i, j, strict=True)]
        )
        squared: Singles = (self.squares[i, None] + self.squares[j] - 2.0 * inner).astype(
            np.float32
        )
        return squared

    def apply(self) -> NDArray[np.bool_]:
        """Make the exchanges, best first, each part at most once; returns which parts changed."""
        changed = np.zeros(len(self.sizes), bool)
        rows = np.flatnonzero(self.gain > self.least)
        rows = rows[np.argsort(-self.gain[rows], kind="stable")]
        for i, j in zip(rows.tolist(), self.partner[rows].tolist(), strict=True):
            a = self.group_of[i]
            b = self.group_of[j]
            if not changed[a] and not changed[b]:
                changed[a] = changed[b] = True
                self._exchange(i, j)
        self._update(np.flatnonzero(changed))
        return changed

    def _update(self, parts: Integers) -> None:
        """The inner products with the means of these parts."""
        for at in range(0, len(parts), LOOKED):
            some = parts[at : at + LOOKED]
            products = self.sums[some] @ self.rows.T
            products *= 2.0 / self.sizes[some, None]
            self.inner[some] = products

    def _exchange(self, i: int, j: int) -> None:
        """Let rows i and j change places."""
        a = self.group_of[i]
        b = self.group_of[j]
        at = self.slot[i]
        to = self.slot[j]
        moved = self.rows[j] - self.rows[i]
        self.sums[a] += moved
        self.sums[b] -= moved
        self.table[a, at], self.table[b, to] = j, i
        self.group_of[i], self.group_of[j], self.slot[i], self.slot[j] = b, a, to, at
