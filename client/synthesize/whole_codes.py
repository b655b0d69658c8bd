"""Codes as whole numbers, and distances between them that no order of summation changes.

In: codes float [n, D].
Out: whole numbers float64 [n, D]; Euclidean distances, rounded to whole numbers.
Guarantees: whole numbers are so small that each product and sum of them is exact. Threads, BLAS and
the size of a block change nothing, and distances are exactly symmetric.
Not covered: raw codes in float64, as the paper groups them (partition.py).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from common.arrays import Floats

Singles = NDArray[np.float32]

BLOCK = 512  # rows at a time, so that a block stays in cache


def to_whole(points: Floats, terms: int) -> Floats:
    """Return whole numbers: sums of `terms` products over all coordinates stay below 2^53.

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
    centred *= (2**bits - 1) / largest
    return np.asarray(np.rint(centred, out=centred))


def square_norms(rows: Floats) -> Floats:
    """Return the squared norm of each row, [n]."""
    return np.asarray(np.einsum("nd,nd->n", rows, rows))


def distances(rows: Floats, others: Floats) -> Singles:
    """Return distances [n, m], `BLOCK` rows at a time."""
    theirs = square_norms(others)
    found = np.empty((len(rows), len(others)), np.float32)
    for at in range(0, len(rows), BLOCK):
        found[at : at + BLOCK] = distances_to(rows[at : at + BLOCK], others, theirs)
    return found


def distances_to(rows: Floats, others: Floats, others_squares: Floats) -> Floats:
    """Return distances [n, m] at once; `others_squares` [m]: the squared norms of `others`."""
    found = (-2.0 * rows) @ others.T
    found += others_squares
    found += square_norms(rows)[:, None]
    np.sqrt(found, out=found)
    return np.asarray(np.rint(found, out=found))


def sum_distances(rows: Floats) -> Floats:
    """Return the sum of each row's distances to all rows, [n], by blocks."""
    squares = square_norms(rows)
    sums = np.zeros(len(rows))
    for at in range(0, len(rows), BLOCK):
        some = slice(at, at + BLOCK)
        for start in range(at, len(rows), BLOCK):
            others = slice(start, start + BLOCK)
            block = distances_to(rows[some], rows[others], squares[others])
            sums[some] += block.sum(axis=1)
            # distances are symmetric: each block counts for its columns too
            if start > at:
                sums[others] += block.sum(axis=0)
    return sums
