"""Finds the nearest real image of each image, and the nearest one of another patient, by blocks.

In: uint8 images [Q, H, W, C] that ask, uint8 real ones [N, H, W, C] of owners int [N].
Out: a `Found` for each space (spaces.py).
Guarantees: real images are read once for every `MOST_QUERIES` images that ask, `BLOCK_ROWS` at a
time; spaces share the products of their common parts; nothing of size N x N, and nothing else that
grows with N, is in memory. Ties go to the lowest row.
Not covered: rounding. `Found.error` bounds it, and the caller asks again in float64 where it
matters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from client.egress.spaces import SPACES, Views, view
from client.ingest.cohort import release_pages
from common.arrays import Flags, Floats, Images, Integers

MOST_QUERIES = 2048
BLOCK_ROWS = 256
# rounding of |a|² + |b|² - 2 a·b as a share of |a|² + |b|²: about ten times the largest seen
ERRORS = {np.dtype(np.float32): 2e-5, np.dtype(np.float64): 1e-13}

Array = NDArray[np.floating]


class Stack(Protocol):
    """Images [Q, H, W, C] that are read some at a time: an array, or a `Chain`."""

    def __len__(self) -> int:
        """Return how many there are."""

    def __getitem__(self, rows: slice, /) -> Images:
        """Return some of them."""


@dataclass(frozen=True)
class Chain:
    """Some images, then those rows of others: nothing is copied before it is asked for."""

    first: Images
    others: Images
    rows: Integers

    def __len__(self) -> int:
        return len(self.first) + len(self.rows)

    def __getitem__(self, rows: slice, /) -> Images:
        start, stop, _ = rows.indices(len(self))
        ends = len(self.first)
        own = self.first[start:stop]
        more = self.rows[max(0, start - ends) : max(0, stop - ends)]
        if not len(more):
            return own
        found = np.concatenate([own, self.others[more]])
        release_pages(self.others)
        return found


@dataclass(frozen=True)
class Found:
    """One space. For each image that asks, [Q]: the row of the nearest real image, its mean square
    difference, that of the nearest image of any patient but the nearest one's, and how far both may
    be off by rounding.
    """

    rows: Integers
    least: Floats
    others: Floats
    error: Floats

    def take(self, places: Flags, better: Found) -> Found:
        """Return this with `better` in the marked places."""
        merged: list[NDArray[np.generic]] = []
        for own, theirs in zip(vars(self).values(), vars(better).values(), strict=True):
            own = own.copy()
            own[places] = theirs
            merged.append(own)
        return Found(*merged)  # type: ignore[arg-type]


def find_nearest(
    asking: Stack,
    real: Images,
    owner: NDArray[np.integer],
    *,
    own: NDArray[np.integer] | None = None,
    spaces: Sequence[str] = SPACES,
    dtype: type[np.floating] = np.float32,
) -> dict[str, Found]:
    """Return what is nearest in each space. `own` int [Q]: an owner whose images do not count."""
    nobody = np.full(len(asking), -1, np.int64)
    own_rows = nobody if own is None else np.asarray(own, np.int64)
    parts: list[dict[str, Found]] = []
    for start in range(0, len(asking), MOST_QUERIES):
        rows = slice(start, start + MOST_QUERIES)
        asked = _Asked(asking, rows, spaces, dtype)
        parts.append(_find(asked, own_rows[rows], real, owner))
    found: dict[str, Found] = {}
    for name in spaces:
        columns = zip(*(vars(part[name]).values() for part in parts), strict=True)
        found[name] = Found(*map(np.concatenate, columns))
    return found


def _find(
    asked: _Asked, own: Integers, real: Images, owner: NDArray[np.integer]
) -> dict[str, Found]:
    """One pass over the real images."""
    searches = {name: _Search(own) for name in asked.spaces}
    for start in range(0, len(real), BLOCK_ROWS):
        block = real[start : start + BLOCK_ROWS]
        owners = owner[start : start + BLOCK_ROWS]
        for name, apart in asked.compare(block).items():
            searches[name].look(apart, owners, start)
        release_pages(real)
    return {name: search.found(asked.error(name)) for name, search in searches.items()}


class _Asked:
    """Some rows of the images that ask, in each space."""

    def __init__(
        self, asking: Stack, rows: slice, spaces: Sequence[str], dtype: type[np.floating]
    ) -> None:
        self.spaces = spaces
        self.dtype = dtype
        blocks: list[Views] = []
        for start in range(*rows.indices(len(asking))[:2], BLOCK_ROWS):
            stop = min(start + BLOCK_ROWS, rows.stop)
            blocks.append(view(asking[start:stop], spaces, dtype))
            release_pages(asking)
        self.views = Views.join(blocks)
        # differences stay; norms get small, and with them the rounding
        self.centres = {part: self.views.parts[part].mean(axis=0) for part in self.views.movable}
        self._centre(self.views)
        self.squares = {name: self.views.square_norms(name) for name in spaces}
        self.largest = dict.fromkeys(spaces, 0.0)

    def compare(self, images: Images) -> dict[str, Array]:
        """Return the mean square differences to the real images of a block, [Q, B] a space."""
        block = view(images, self.spaces, self.dtype)
        self._centre(block)
        products: dict[str, Array] = {}
        for part, rows in block.parts.items():
            # always as many columns, so that equal images have equal products wherever they stand
            full = np.zeros((BLOCK_ROWS, rows.shape[1]), self.dtype)
            full[: len(rows)] = rows
            of_part = (self.views.parts[part] @ full.T)[:, : len(rows)]
            for name in self.spaces:
                if part in block.factors[name]:
                    self._add(products, name, part, of_part, block)
        for name, found in products.items():
            # |a|² + |b|² - 2 a·b
            squares = block.square_norms(name)
            self.largest[name] = max(self.largest[name], float(squares.max()))
            found *= -2
            found += squares.astype(self.dtype)
            found += self.squares[name].astype(self.dtype)[:, None]
            np.maximum(found, 0, out=found)
            found /= self.views.sizes[name]
        return products

    def error(self, name: str) -> Floats:
        """Return how far off by rounding the differences in a space may be, [Q]."""
        share = ERRORS[np.dtype(self.dtype)] / self.views.sizes[name]
        return np.asarray(share * (self.squares[name] + self.largest[name]))

    def _centre(self, views: Views) -> None:
        """Move views by the centres of what asks."""
        for part, centre in self.centres.items():
            views.parts[part] -= centre

    def _add(
        self, products: dict[str, Array], name: str, part: str, of_part: Array, block: Views
    ) -> None:
        """Add a part's products [Q, B] to those of a space, by the factors of both images."""
        factors = block.factors[name][part]
        ours = self.views.factors[name][part]
        if factors is not None and ours is not None:
            of_part = of_part * ours.astype(self.dtype)[:, None]
            of_part *= factors.astype(self.dtype)
        if name in products:
            products[name] += of_part
        else:
            products[name] = of_part.copy()


class _Search:
    """The nearest rows so far, in one space."""

    def __init__(self, own: Integers) -> None:
        count = len(own)
        self.own = own
        self.rows = np.zeros(count, np.int64)
        self.owners = np.full(count, -1, np.int64)
        self.least = np.full(count, np.inf)
        self.others = np.full(count, np.inf)

    def look(self, apart: Array, owners: NDArray[np.integer], start: int) -> None:
        """Look at the differences to one block of real images, whose first row is `start`."""
        apart[self.own[:, None] == owners[None, :]] = np.inf
        # the nearest of the block, and the nearest of any other patient
        at = apart.argmin(axis=1)
        least = apart[np.arange(len(at)), at].astype(np.float64)
        whose = owners[at]
        apart[whose[:, None] == owners[None, :]] = np.inf
        others = apart.min(axis=1).astype(np.float64)
        self._merge(at + start, whose, least, others)

    def _merge(self, rows: Integers, whose: Integers, least: Floats, others: Floats) -> None:
        """Keep the nearest of both, and the nearest of another patient than that one's."""
        closer = least < self.least
        winner = np.where(closer, others, self.others)
        # the loser counts as another patient's, unless it is the same one's
        loser = np.where(closer, self.least, least)
        behind = np.where(closer, self.others, others)
        loser = np.where(whose == self.owners, behind, loser)
        self.others = np.minimum(winner, loser)
        self.rows = np.where(closer, rows, self.rows)
        self.owners = np.where(closer, whose, self.owners)
        self.least = np.where(closer, least, self.least)

    def found(self, error: Floats) -> Found:
        """The result."""
        return Found(self.rows, self.least, self.others, error)
