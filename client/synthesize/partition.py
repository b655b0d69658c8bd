"""Partitions rows of codes into parts of k to 2k-1: numerics without patients, files or randomness.

In: codes float [n, D] in canonical order, k, and for cells the public centres.
Out: for every row the number of its part.
Guarantees:
  1. every row is in exactly one part; greedy parts have k to 2k-1 rows, and swaps keep the sizes
  2. outside `paper`, codes are whole numbers so small that each product and sum is exact: threads
     and the order of summation change no part; where k divides n, greedy parts are those of the
     naive rule on these numbers
  3. memory: one float32 matrix [n, n] up to `DENSE_ROWS` rows (10,000 rows: 400 MB); above, O(n·D)
     by running sums of squared distances, another criterion for "outlier first", never used in
     `paper`
Not covered: who the rows are (group.py); similar rows in one part leak more than random ones.

Source: Jeon et al. 2022, `nearestNeighborClust`; remainder and swaps: docs/methods/k-salsa.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from client.synthesize.swaps import swap_pairs
from common.arrays import Floats, Integers

Singles = NDArray[np.float32]
Rule = Callable[[Floats, int], Integers]

DENSE_ROWS = 15_000
# rows at a time, so that a block stays in cache
BLOCK = 1024
LOOKED = 256
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
    if len(points) > DENSE_ROWS:
        return _greedy_by_sums(_lattice(points, len(points)), k)
    return _greedy(_distances(_lattice(points, 2 * k)), k)


def greedy_paper(points: Floats, k: int) -> Integers:
    """Return the parts of the same rule, in float64 on the points as they are, as in the paper."""
    squares = (points**2).sum(axis=1)
    products = points @ points.T
    squared = squares[:, None] + squares[None, :] - (products + products.T)
    np.fill_diagonal(squared, 0.0)
    return _greedy(np.sqrt(np.maximum(squared, 0.0, out=squared), out=squared), k)


def greedy_with_swaps(points: Floats, k: int) -> Integers:
    """Return greedy parts after exchanges of pairs that lower the squared error beyond rounding."""
    if len(points) > DENSE_ROWS:
        rows = _lattice(points, len(points))
        return swap_pairs(rows, _greedy_by_sums(rows, k), None)
    rows = _lattice(points, 2 * k)
    distances = _distances(rows)
    return swap_pairs(rows, _greedy(distances, k), distances)


def cells_of_rows(points: Floats, centres: Floats, least: int) -> Integers:
    """Return the cell of every row: its nearest centre, after small cells are dissolved.

    While a cell has fewer than `least` rows, the smallest is dissolved; its rows go to the nearest
    centre left.
    """
    # the nearest centre; empty cells are no cells
    both = _lattice(np.concatenate([points, centres]), 2)
    away = _distances(both[: len(points)], both[len(points) :])
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


# --- exact numbers


def _lattice(points: Floats, terms: int) -> Floats:
    """The points as whole numbers: sums of `terms` products over all coordinates stay below 2^53.

    The grid has steps of 2^-b of the largest coordinate, about the middle of the range. At k = 20
    and D = 64, b is 20.
    """
    count, dimension = points.shape
    if not count or not dimension:
        return np.zeros((count, max(dimension, 1)))
    # bits a coordinate: sums of products stay below 2^53, whole distances below 2^24 (float32)
    by_products = (50 - math.log2(dimension) - math.log2(terms)) // 2
    by_distances = 23 - math.log2(dimension) / 2
    bits = int(min(by_products, by_distances))
    centred = points - (points.max(axis=0) + points.min(axis=0)) / 2
    largest = float(np.abs(centred).max())
    if not largest > 0:
        return np.zeros_like(centred)
    return np.asarray(np.rint(centred * ((2**bits - 1) / largest)))


def _distances(rows: Floats, others: Floats | None = None) -> Singles:
    """Euclidean distances [n, m], rounded to whole numbers: sums of them are exact.

    Among `rows` alone they are exactly symmetric.
    """
    if others is None:
        others = rows
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
    """Greedy parts from all distances, in O(n²)."""
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


def _greedy_by_sums(rows: Floats, k: int) -> Integers:
    """Greedy parts by sums of squared distances, n·|x|² - 2 x·S + Q.

    S and Q: the sums of x and |x|² over the n rows in no part. O(n·D) memory, O(n²·D/k) time.
    """
    # the rows that are left in the arrays, and their products with S; Q is the same for all
    group_of = np.full(len(rows), -1, np.int64)
    names = np.arange(len(rows))
    left = rows
    squares = (left**2).sum(axis=1)
    inner = left @ left.sum(axis=0)
    free = np.ones(len(left), bool)
    for g in range(len(rows) // k):
        # the outlier and its nearest rows
        score = (len(rows) - g * k) * squares - 2.0 * inner
        seed = int(np.where(free, score, -np.inf).argmax())
        away = np.where(free, squares - 2.0 * (left @ left[seed]), np.inf)
        away[seed] = -np.inf
        part = _smallest(away, k)
        group_of[names[part]] = g

        # S loses the finished part; finished rows leave the arrays once they are a fifth of them
        free[part] = False
        inner -= left @ left[part].sum(axis=0)
        if free.sum() < 0.8 * len(free):
            names = names[free]
            left = left[free]
            squares = squares[free]
            inner = inner[free]
            free = np.ones(len(left), bool)

    # each row that is left joins the part of its nearest row
    joined = np.flatnonzero(group_of >= 0)
    for i in np.flatnonzero(group_of < 0):
        away = (rows[joined] ** 2).sum(axis=1) - 2.0 * (rows[joined] @ rows[i])
        group_of[i] = group_of[joined[away.argmin()]]
    return group_of
