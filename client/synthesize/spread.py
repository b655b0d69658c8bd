"""Restores the variance that averaging removes: moves averages along the generator's directions.

In: the codes of averages, and `Directions` with one public factor each.
Out: codes of the same shape.
Guarantees:
  1. directions and factors come from generator samples, the plan's grouping and k: never from the
     cohort
  2. the new code depends on the code and public numbers. This is post-processing: it tells nothing
     that the average does not, and an attacker could do or undo it
  3. a factor lies between 1 and the square root of k, what averages of k strangers lose
Not covered: more than k patients behind an image, or new detail. An image shows the average's
deviation from the middle larger than it is, and the release says so (server/release/limits.py).

Own design (docs/methods/k-salsa.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from client.synthesize.anchors import make_cells
from client.synthesize.group import Mode, form_groups, roster
from client.synthesize.partition import Cells
from client.synthesize.reference import Reference
from common.arrays import Floats
from common.errors import Bug

# orders samples of the generator; there is nothing to keep secret
SAMPLES_KEY = b"kohort-public-generator-samples!"
LEAST_GROUPS = 6  # with fewer averages, the factor of the largest k that gives so many is taken


@dataclass(frozen=True)
class Directions:
    """A point float64 [D], orthonormal directions [m, D] and a factor [m] each."""

    middle: Floats
    axes: Floats
    factors: Floats

    def move_out(self, codes: Tensor) -> Tensor:
        """Return codes [G, L, d_w].

        Their distance from the middle times each direction's factor.
        """
        away = codes.detach().double().flatten(1).cpu().numpy() - self.middle
        added = (away @ self.axes.T * (self.factors - 1)) @ self.axes
        return codes + torch.from_numpy(added).to(codes).reshape(codes.shape)


def find_directions(
    known: Reference, count: int, k: int, mode: Mode, share: float = 1.0
) -> Directions:
    """Return the first `count` principal directions of generator codes, and a factor for each.

    The factor is the deviation of the samples' whitened codes over that of their groups' means. The
    groups are formed by `mode` with this k. The factor is taken to the power `share`: 1 restores
    all of the variance, 0 none. Raises Bug for anything but a `Reference`, which holds no image of
    a cohort.
    """
    if not isinstance(known, Reference):
        raise Bug(
            "find_directions takes a Reference; the cohort's codes must not shape the directions"
        )

    # orthonormal directions
    used = known.whitening.directions[:, :count].T
    axes = used / np.linalg.norm(used, axis=1, keepdims=True)

    # a factor for each
    white = known.whitening(known.samples.codes)
    cells = None
    if mode == "cells":
        cells = make_cells(known.samples, known.whitening)
    factors = _factors(white, k, mode, cells)[:count] ** share
    return Directions(known.whitening.mean, axes, factors)


def _mean_of(white: Floats, members: Sequence[str]) -> Floats:
    """The mean of the samples that a group names."""
    rows = [int(name) for name in members]
    return np.asarray(white[rows].mean(axis=0))


def _factors(white: Floats, k: int, mode: Mode, cells: Cells | None) -> Floats:
    """Deviation [m] of codes [M, m] over that of the means of their groups, within guarantee 3."""
    # random groups are groups of strangers, so the factor is known
    most = math.sqrt(k)
    if mode == "random":
        return np.full(white.shape[1], most)

    # group the samples as the site groups its patients, one sample a patient
    k = min(k, len(white) // LEAST_GROUPS)
    if k < 2:
        return np.ones(white.shape[1])
    names = [f"{i:06d}" for i in range(len(white))]
    who = roster(names, np.arange(len(white)), np.zeros(len(white), np.int64), key=SAMPLES_KEY)
    ordered = white[[rows[0] for rows in who.images]]
    grouping = form_groups(who, k, mode, key=SAMPLES_KEY, codes=ordered, cells=cells)

    # what averaging took from their deviation
    means = np.stack([_mean_of(white, group.members) for group in grouping.groups])
    lost = white.std(axis=0) / np.maximum(means.std(axis=0), 1e-12)
    return np.asarray(np.clip(lost, 1.0, most))
