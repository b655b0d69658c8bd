"""Exchanges pairs of rows between parts while that lowers the squared error.

In: rows of whole numbers, and their parts. Out: the parts after the exchanges.
Guarantees: the sizes of the parts stay; memory is O(n·D), since distances and products with the
means of parts are computed where they are asked for.
Not covered: similar rows in one part leak more than random ones.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from client.synthesize.whole_codes import Singles, distances_to, square_norms
from common.arrays import Floats, Integers

SWAP_NEIGHBOURS = 20
SWAP_SWEEPS = 60
# of the mean squared distance to the mean: ten times what float32 rounds away
SWAP_LEAST_GAIN = 1e-5
BLOCK = 1 << 21  # distances at a time
LOOKED = 1024  # rows at a time


def swap_pairs(rows: Floats, group_of: Integers, *, rounded: bool) -> Integers:
    """Return the parts after exchanges of pairs, best first, each part at most once a sweep.

    `rounded`: distances between rows are rounded to whole numbers.
    """
    swaps = Swaps(rows, group_of, rounded=rounded)
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
    """Parts under exchange: members, sums, best exchanges.

    `table` [parts, slots]: the rows of each part, -1 where a slot is empty. `slot`: each row's
    place in it. `own` [n]: twice the product of a row and its own part's mean. `gain` and
    `partner`: each row's best exchange.
    """

    def __init__(self, rows: Floats, group_of: Integers, *, rounded: bool) -> None:
        # rows and parts
        self.rows = rows
        self.group_of = group_of.copy()
        self.rounded = rounded
        self.sizes = np.bincount(group_of)
        self.squares = square_norms(rows)
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

        # the sums of the parts, and each row's product with its part's mean
        self.sums = np.add.reduceat(rows[order], starts, axis=0)
        self.own = np.empty(len(rows), np.float32)
        self._update(np.arange(len(self.sizes)))

    def _neighbours(self) -> Integers:
        """The nearest rows of each row, itself among them, int [n, <= 21]."""
        count = min(SWAP_NEIGHBOURS, len(self.rows) - 1)
        found = []
        block = max(1, BLOCK // len(self.rows))
        for at in range(0, len(self.rows), block):
            some = self.rows[at : at + block]
            near: Floats | Singles
            if self.rounded:
                near = distances_to(some, self.rows, self.squares).astype(np.float32)
            else:
                near = self.squares - 2.0 * (some @ self.rows.T)
            found.append(np.argpartition(near, count, axis=1)[:, : count + 1].copy())
        return np.concatenate(found)

    def look(self, some: Integers) -> None:
        """Find the best exchange of each of these rows with a member of a neighbour's part."""
        members_own = self.own[self.table]
        members_own[self.table < 0] = np.inf
        for at in range(0, len(some), LOOKED):
            self._look(some[at : at + LOOKED], members_own)

    def _look(self, some: Integers, members_own: Singles) -> None:
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

        # lines of one part b together, so that its members are compared with all of them at once
        i = some[which]
        b = parts[which, column]
        order = np.argsort(b, kind="stable")
        value, partner = self._best_members(i[order], b[order], members_own)

        # the best part of each row; of equals the first
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        value = value[place]
        partner = partner[place]
        first = np.flatnonzero(np.append(True, which[1:] != which[:-1]))
        top = np.maximum.reduceat(value, first)
        lines = np.flatnonzero(value == np.repeat(top, np.diff(np.append(first, len(which)))))[::-1]
        self.gain[i[lines]] = value[lines]
        self.partner[i[lines]] = partner[lines]

    def _best_members(
        self, i: Integers, b: Integers, members_own: Singles
    ) -> tuple[Singles, Integers]:
        """The best exchange of rows i [P] with a member of parts b [P]: its gain, and the member.

        b is sorted.
        """
        # products of i, and of the sum of its part a, with the members j of b
        a = self.group_of[i]
        towards = np.stack([self.rows[i], self.sums[a]], axis=1).reshape(2 * len(i), -1)
        products = np.empty((2 * len(i), self.table.shape[1]))
        edges = np.flatnonzero(np.diff(b, prepend=-1, append=-1)).tolist()
        for start, end in itertools.pairwise(edges):
            members = self.rows[self.table[b[start]]]
            some = slice(2 * start, 2 * end)
            np.matmul(towards[some], members.T, out=products[some])

        # the best member of each part, by the terms that depend on j
        j = self.table[b]
        gain = self._squared_distances(i, j, products[0::2])
        gain *= (1 / self.sizes[a] + 1 / self.sizes[b]).astype(np.float32)[:, None]
        gain += self._of_means(products[1::2], a[:, None])
        gain -= members_own[b]
        best = gain.argmax(axis=1)

        # with the other terms
        lines = np.arange(len(i))
        with_theirs = self._of_means(np.einsum("nd,nd->n", self.sums[b], self.rows[i]), b)
        return gain[lines, best] + (with_theirs - self.own[i]), j[lines, best]

    def _squared_distances(self, i: Integers, j: Integers, products: Floats) -> Singles:
        """Squared distances of rows i [P] to rows j [P, s], whose products are given."""
        squared = self.squares[i, None] + self.squares[j] - 2.0 * products
        if not self.rounded:
            return squared.astype(np.float32)
        found: Singles = np.rint(np.sqrt(squared, out=squared), out=squared).astype(np.float32)
        found *= found
        return found

    def _of_means(self, products: Floats, parts: Integers) -> Singles:
        """Twice the products with the means of parts, from those with their sums."""
        twice: Singles = (products * (2.0 / self.sizes[parts])).astype(np.float32)
        return twice

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
        """Compute the products of the rows of these parts with their own means anew."""
        rows = self.table[parts]
        rows = rows[rows >= 0]
        for at in range(0, len(rows), LOOKED):
            some = rows[at : at + LOOKED]
            own = self.group_of[some]
            products = np.einsum("nd,nd->n", self.sums[own], self.rows[some])
            self.own[some] = self._of_means(products, own)

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
