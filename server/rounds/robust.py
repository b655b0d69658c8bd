"""Aggregation that bounds a hostile site: the trimmed mean and norm weights, over files.

In: the accepted sites' updates, one at a time; a folder for scratch files.
Out: the step that the weights take, in float64.
  trimmed mean  in each number, the m smallest and the m largest values are left out, m = floor(trim
                x sites); the others are averaged with their public weights. With at most m hostile
                sites each number lies between values of honest sites (Yin et al. 2018).
  norm weights  a site's weight x min(1, median norm / its norm).
Guarantees: the order of arrival changes no byte; no step is longer than `longest`; memory is one
step and a block of numbers, whatever the number of sites.
Not covered: which rule a plan has (aggregate.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.errors import disk_faults_named
from common.study.sections import trimmed_sites
from common.wire.tensors import Arrays

BLOCK_NUMBERS = 1 << 22  # of all sites together, in memory at once
Step = dict[str, NDArray[np.float64]]


class Scratch:
    """The sites' updates as flat float32 files, so that a few numbers of each can be read."""

    def __init__(self, folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._folder = folder
        self.shapes = dict(shapes)
        self._sites: list[str] = []

    def add(self, site: str, arrays: Arrays) -> None:
        """Write one site's update; raises EnvironmentFault where the disk does not take it."""
        with disk_faults_named("cannot write a scratch file", self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            with self._file(site).open("wb") as file:
                for name in self.shapes:
                    arrays[name].astype("<f4").tofile(file)
        self._sites.append(site)

    def blocks(self) -> Iterator[tuple[str, int, NDArray[np.float64]]]:
        """Yield (tensor, first number, values [sites, n]), the sites in the order of adding."""
        start = 0
        for name, shape in self.shapes.items():
            size = math.prod(shape)
            block = max(1, BLOCK_NUMBERS // len(self._sites))
            for first in range(0, size, block):
                count = min(block, size - first)
                yield name, first, self._rows(start + first, count)
            start += size

    def _rows(self, first: int, count: int) -> NDArray[np.float64]:
        """So many numbers of every site, from one place on."""
        rows = [
            np.fromfile(self._file(site), "<f4", count, offset=4 * first) for site in self._sites
        ]
        return np.stack(rows).astype(np.float64)

    def _file(self, site: str) -> Path:
        return self._folder / f"{site}.flat"


def trimmed_step(scratch: Scratch, shares: Sequence[float], trim: float) -> Step:
    """Return the trimmed mean of the sites in `scratch`, whose weights are `shares`."""
    step = {name: np.zeros(shape, np.float64) for name, shape in scratch.shapes.items()}
    for name, first, values in scratch.blocks():
        flat = step[name].reshape(-1)
        flat[first : first + values.shape[1]] = trimmed_mean(values, np.array(shares), trim)
    return step


def trimmed_mean(
    values: NDArray[np.float64], shares: NDArray[np.float64], trim: float
) -> NDArray[np.float64]:
    """Return the weighted mean [n] of the middle of each column of values [sites, n]."""
    out = trimmed_sites(trim, len(values))
    order = np.argsort(values, axis=0, kind="stable")[out : len(values) - out]
    weights = shares[order]
    kept = np.take_along_axis(values, order, axis=0)
    mean: NDArray[np.float64] = (weights * kept).sum(axis=0) / weights.sum(axis=0)
    return mean


def norm_shares(shares: Mapping[str, float], norms: Mapping[str, float]) -> dict[str, float]:
    """Return each site's share x min(1, median norm / its norm); as they are for a median of 0."""
    median = float(np.median(list(norms.values())))
    if not median:
        return dict(shares)
    found = {}
    for site, share in shares.items():
        larger = norms[site] > median
        found[site] = share * median / norms[site] if larger else share
    return found


def within(step: Step, longest: float) -> Step:
    """Return the step, its L2 norm over all tensors at most `longest`; a longer one is scaled."""
    norm = math.sqrt(sum(float(np.square(array).sum()) for array in step.values()))
    if norm <= longest:
        return step
    return {name: array * (longest / norm) for name, array in step.items()}
