"""Exchanges pairs of rows between parts while that lowers the squared error.

Guarantees: the sizes of the parts stay.
Not covered: similar rows in one part leak more than random ones.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from common.arrays import Floats, Integers

Singles = NDArray[np.float32]

SWAP_NEIGHBOURS = 20
SWAP_SWEEPS = 60
# of the mean squared distance to the mean: ten times what float32 rounds away
SWAP_LEAST_GAIN = 1e-5
# rows at a time, so that a block stays in cache
BLOCK = 1024
LOOKED = 256


def swap_pairs(rows: Floats, group_of: Integers, distances: Singles | None) -> Integers:
    """Return the parts after exchanges of pairs, best first, each part at most once a sweep."""
    swaps = Swaps(rows, group_of, distances)
    stale = np.ones(len(rows), bool)
    for _ in range(SWAP_SWEEPS):
        swaps.look(np.flatnonzero(stale))
        changed = swaps.apply()
        if not changed.any():
            break
        # look again only at rows whose own part or a neighbour's changed: the best pair of the
        # others did not
        stale = changed[swaps.group_of] | changed[swaps.group_of[swaps.neighbours]].any(axis=1)
    return swaps.group_of


class Swaps:
    """Parts under exchange: members, products of part means with all rows, best exchanges.

    `table` [parts, slots]: the rows of each part, -1 where a slot is empty. `slot`: each row's
    place in it. `inner` [parts, n]: twice the product of a part's mean and a row. `gain` and
    `partner`: each row's best exchange.
    """

    def __init__(self, rows: Floats, group_of: Integers, distances: Singles | None) -> None:
        # rows and parts
        self.rows = rows
        self.group_of = group_of.copy()
        self.distances = distances
        self.sizes = np.bincount(group_of)
        self.squares = (rows**2).sum(axis=1)
        self.least = SWAP_LEAST_GAIN * float(((rows - rows.mean(axis=0)) ** 2).sum(axis=1).mean())
        self.neighbours = self._neighbours()
        self.gain = np.zeros(len(rows), np.float32)
        self.partner = np.zeros(len(rows), np.int64)

        # the members of each part
        order = np.argsort(group_of, kind="stable")
        starts = np.cumsum(self.sizes) - self.sizes
        self.slot = np.empty(len(rows), np.int64)
        self.slot[order] = np.arange(len(rows)) - np.repeat(starts, self.sizes)
        self.table = np.full((len(self.sizes), int(self.sizes.max())), -1, np.int64)
        self.table[group_of, self.slot] = np.arange(len(rows))

        # the sums of the parts, and the products of their means
        self.sums = np.add.reduceat(rows[order], starts, axis=0)
        self.inner = np.empty((len(self.sizes), len(rows)), np.float32)
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
        """Find the best exchange of each of these rows i, of part a, with a member j of a part b.

        gain = 2 (x_j - x_i)·(mean_a - mean_b) + |x_i - x_j|² (1/n_a + 1/n_b)
        """
        # the neighbours' parts, each once, without the row's own
        parts = np.sort(self.group_of[self.neighbours[some]], axis=1)
        fresh = parts != self.group_of[some, None]
        fresh[:, 1:] &= parts[:, 1:] != parts[:, :-1]
        which, column = np.nonzero(fresh)  # one (row, part) pair a line, lines of one row together
        self.gain[some] = 0.0
        if not len(which):
            return

        # the best member of each part, by the terms that depend on j
        i = some[which]
        b = parts[which, column]
        a = self.group_of[i]
        j = self.table[b]
        gain = self._squared_distances(i, j)
        gain *= (1 / self.sizes[a] + 1 / self.sizes[b]).astype(np.float32)[:, None]
        gain += self.inner.take(j + (a * len(self.rows))[:, None], mode="clip")
        gain -= members_own[b]
        best = gain.argmax(axis=1)

        # with the other terms, the best part of each row; of equals the first
        lines = np.arange(len(i))
        value = gain[lines, best] + (self.inner[b, i] - own[i])
        partner = j[lines, best]
        first = np.flatnonzero(np.append(True, which[1:] != which[:-1]))
        top = np.maximum.reduceat(value, first)
        lines = np.flatnonzero(value == np.repeat(top, np.diff(np.append(first, len(which)))))[::-1]
        self.gain[i[lines]] = value[lines]
        self.partner[i[lines]] = partner[lines]

    def _squared_distances(self, i: Integers, j: Integers) -> Singles:
        """Squared distances of rows i [P] to rows j [P, s]."""
        found: Singles
        if self.distances is not None:
            found = self.distances.take(j + (i * len(self.rows))[:, None], mode="clip")
            found *= found
            return found
        pairs = zip(i, j, strict=True)
        inner = np.stack([self.rows[columns] @ self.rows[row] for row, columns in pairs])
        squared = self.squares[i, None] + self.squares[j] - 2.0 * inner
        found = squared.astype(np.float32)
        return found

    def apply(self) -> NDArray[np.bool_]:
        """Make the exchanges, best first, each part at most once; return which parts changed."""
        # by falling gain, as far as their parts did not change in this sweep
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
        """Compute the products with the means of these parts anew."""
        for at in range(0, len(parts), LOOKED):
            some = parts[at : at + LOOKED]
            products = self.sums[some] @ self.rows.T
            products *= 2.0 / self.sizes[some, None]
            self.inner[some] = products

    def _exchange(self, i: int, j: int) -> None:
        """Exchange rows i and j between their parts."""
        a = self.group_of[i]
        b = self.group_of[j]
        at = self.slot[i]
        to = self.slot[j]

        # the sums, then the members
        moved = self.rows[j] - self.rows[i]
        self.sums[a] += moved
        self.sums[b] -= moved
        self.table[a, at] = j
        self.table[b, to] = i
        self.group_of[i] = b
        self.group_of[j] = a
        self.slot[i] = to
        self.slot[j] = at
