"""Partitions rows of codes into parts of k to 2k-1: numerics without patients, files or randomness.

In: codes float [n, D] in canonical order, k, and for cells the public centres.
Out: for every row the number of its part.
Guarantees:
  1. every row is in exactly one part; greedy parts have k to 2k-1 rows, and swaps keep the sizes
  2. outside `paper`, codes are whole numbers (whole_codes.py): threads and the order of summation
     change no part; where k divides n, greedy parts are those of the naive rule on these numbers
  3. memory is O(n·D): distances are computed where they are asked for. Only `paper`, which no plan
     admits, holds all of them
  4. above `MOST_BY_DISTANCES` rows "outlier first" goes by squared distances, whose sums cost less;
     never in `paper`
Not covered: who the rows are (group.py); similar rows in one part leak more than random ones.

Source: Jeon et al. 2022, `nearestNeighborClust`; remainder and swaps: docs/methods/k-salsa.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from client.synthesize.swaps import swap_pairs
from client.synthesize.whole_codes import (
    distances,
    distances_to,
    square_norms,
    sum_distances,
    to_whole,
)
from common.arrays import Flags, Floats, Integers

Rule = Callable[[Floats, int], Integers]

MOST_BY_DISTANCES = 15_000
LOOKED = 256  # rows at a time, so that a block stays in cache
CELL_LEAST = 2  # times k: cells of 2k rows or more, about 4k on average


@dataclass(frozen=True)
class Cells:
    """Centres float64 [J, D] in the space of the codes.

    metric.py and anchors.py make them from generator samples.
    """

    centres: Floats


def greedy(points: Floats, k: int) -> Integers:
    """Return greedy parts, int [n]: the row with the largest sum of distances with its k-1 nearest.

    So on until fewer than k are left; each of these joins the part of the nearest row that is in
    one. Ties go to the lowest row.
    """
    return _greedy(_to_whole(points, k), k)


def greedy_paper(points: Floats, k: int) -> Integers:
    """Return the parts of the same rule, in float64 on the points as they are, as in the paper."""
    squares = (points**2).sum(axis=1)
    products = points @ points.T
    squared = squares[:, None] + squares[None, :] - (products + products.T)
    np.fill_diagonal(squared, 0.0)
    return _greedy_dense(np.sqrt(np.maximum(squared, 0.0, out=squared), out=squared), k)


def greedy_with_swaps(points: Floats, k: int) -> Integers:
    """Return greedy parts after exchanges of pairs that lower the squared error beyond rounding."""
    rows = _to_whole(points, k)
    return swap_pairs(rows, _greedy(rows, k), rounded=len(rows) <= MOST_BY_DISTANCES)


def _to_whole(points: Floats, k: int) -> Floats:
    """The points as whole numbers, for sums over two parts, or over all rows."""
    if len(points) > MOST_BY_DISTANCES:
        return to_whole(points, len(points))
    return to_whole(points, 2 * k)


def cells_of_rows(points: Floats, centres: Floats, least: int) -> Integers:
    """Return the cell of every row: its nearest centre, after small cells are dissolved.

    While a cell has fewer than `least` rows, the smallest is dissolved; its rows go to the nearest
    centre left.
    """
    # the nearest centre; empty cells are no cells
    both = to_whole(np.concatenate([points, centres]), 2)
    away = distances(both[: len(points)], both[len(points) :])
    cell = away.argmin(axis=1)
    sizes = np.bincount(cell, minlength=len(centres)).astype(np.float64)
    away[:, sizes == 0] = np.inf
    sizes[sizes == 0] = np.inf

    # dissolve the smallest
    while np.isfinite(sizes).sum() > 1 and sizes.min() < least:
        small = int(sizes.argmin())
        away[:, small] = np.inf
        sizes[small] = np.inf
        moved = np.flatnonzero(cell == small)
        cell[moved] = away[moved].argmin(axis=1)
        sizes += np.bincount(cell[moved], minlength=len(centres))
    return np.asarray(np.unique(cell, return_inverse=True)[1], np.int64)


def nearest(points: Floats, centres: Floats) -> Integers:
    """Return the nearest centre of every row, whatever the other rows are."""
    found = np.empty(len(points), np.int64)
    for at in range(0, len(points), LOOKED):
        # differences, not products: no row's rounding depends on another row
        apart = points[at : at + LOOKED, None] - centres
        found[at : at + LOOKED] = np.square(apart, out=apart).sum(axis=2).argmin(axis=1)
    return found


def parts_of(group_of: Integers) -> list[list[int]]:
    """Return the rows of each part number, in order."""
    order = np.argsort(group_of, kind="stable")
    edges = np.cumsum(np.bincount(group_of))[:-1]
    return [part.tolist() for part in np.split(order, edges)]


# --- greedy


class _Rows(Protocol):
    """Rows under the greedy rule: how far out each lies, and how far it is from another one."""

    def outlying(self) -> Floats:
        """Return what is largest for the outlier among the rows in no part, [n]."""

    def away(self, row: int) -> Floats:
        """Return what orders the rows by their distance to one of them, [n]."""

    def lose(self, part: Integers) -> None:
        """Take a finished part's rows out of the sums."""

    def keep(self, free: Flags) -> _Rows:
        """Return the marked rows alone; no other one is in the sums."""


@dataclass
class _ByDistances:
    """Rows by `sums` [n], of distances to the rows in no part."""

    rows: Floats
    squares: Floats
    sums: Floats

    @classmethod
    def of(cls, rows: Floats) -> _ByDistances:
        return cls(rows, square_norms(rows), sum_distances(rows))

    def outlying(self) -> Floats:
        return self.sums

    def away(self, row: int) -> Floats:
        return np.asarray(distances_to(self.rows[row : row + 1], self.rows, self.squares)[0])

    def lose(self, part: Integers) -> None:
        self.sums -= distances_to(self.rows[part], self.rows, self.squares).sum(axis=0)

    def keep(self, free: Flags) -> _ByDistances:
        return _ByDistances(self.rows[free], self.squares[free], self.sums[free])


@dataclass
class _BySquares:
    """Rows by sums of squared distances to the `count` rows in no part: n·|x|² - 2 x·S + Q.

    S and Q: the sums of x and |x|² over these rows; Q is the same for all. `inner` [n]: x·S.
    """

    rows: Floats
    squares: Floats
    inner: Floats
    count: int

    @classmethod
    def of(cls, rows: Floats) -> _BySquares:
        return cls(rows, square_norms(rows), rows @ rows.sum(axis=0), len(rows))

    def outlying(self) -> Floats:
        return self.count * self.squares - 2.0 * self.inner

    def away(self, row: int) -> Floats:
        return np.asarray(self.squares - 2.0 * (self.rows @ self.rows[row]))

    def lose(self, part: Integers) -> None:
        self.inner -= self.rows @ self.rows[part].sum(axis=0)
        self.count -= len(part)

    def keep(self, free: Flags) -> _BySquares:
        return _BySquares(self.rows[free], self.squares[free], self.inner[free], self.count)


def _greedy(rows: Floats, k: int) -> Integers:
    """Greedy parts in O(n·D) memory: a distance is computed where it is asked for."""
    kind: type[_ByDistances] | type[_BySquares] = _ByDistances
    if len(rows) > MOST_BY_DISTANCES:
        kind = _BySquares
    # the rows that are left in the arrays, and their names
    group_of = np.full(len(rows), -1, np.int64)
    names = np.arange(len(rows))
    everyone: _Rows = kind.of(rows)
    left = everyone
    free = np.ones(len(rows), bool)
    for g in range(len(rows) // k):
        # the outlier and its nearest rows
        seed = int(np.where(free, left.outlying(), -np.inf).argmax())
        away = np.where(free, left.away(seed), np.inf)
        away[seed] = -np.inf
        part = _smallest(away, k)
        group_of[names[part]] = g

        # the sums lose the finished part; finished rows leave the arrays once they are a fifth
        left.lose(part)
        free[part] = False
        if free.sum() < 0.8 * len(free):
            names = names[free]
            left = left.keep(free)
            free = np.ones(len(names), bool)

    # each row that is left joins the part of its nearest row
    joined = group_of >= 0
    for i in np.flatnonzero(~joined):
        away = np.where(joined, everyone.away(int(i)), np.inf)
        group_of[i] = group_of[away.argmin()]
    return group_of


def _greedy_dense(distances: Floats, k: int) -> Integers:
    """Greedy parts from a matrix of all distances, [n, n]."""
    # each row's sum of distances to the rows in no part
    count = len(distances)
    sums = np.array([row.sum(dtype=np.float64) for row in distances])
    taken = np.zeros(count, distances.dtype)  # infinite where a row is in a part
    group_of = np.full(count, -1, np.int64)
    for g in range(count // k):
        # the outlier and its nearest rows
        seed = int(sums.argmax())
        away = distances[seed] + taken
        away[seed] = -1.0
        part = _smallest(away, k)
        group_of[part] = g

        # the sums lose the columns of the finished part
        taken[part] = np.inf
        for i in part:
            sums -= distances[i]
        sums[part] = -np.inf

    # each row that is left joins the part of its nearest row
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
