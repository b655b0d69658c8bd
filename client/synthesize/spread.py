"""The spread that averaging takes away, given back: codes of averages moved out along the generator's main directions.

In: the codes of averages, and `Directions` with one public factor each. Out: codes of the same shape.
Guaranteed
1. Directions and factors are computed from generator samples and the plan's grouping and k alone: never from the cohort.
2. What becomes of a code depends on that code and public numbers: post-processing, which tells nothing that the average
   itself does not. An attacker could do the same to averages that were not moved, or undo it.
3. A factor lies between 1 and the square root of k, what averages of k strangers lose.

Why: the mean of k codes lies near the middle, so a release of averages varies less than photographs do, most of all in
colour and brightness. Not covered: more than k patients behind an image, or new detail; an image shows the average's
way of differing from the middle larger than it is, and the release says so (server/release/limits.py).
Own design; measured in benchmarks/RESULTS.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from client.synthesize.anchors import cells_of
from client.synthesize.group import Mode, form_groups, roster
from client.synthesize.invert import Reference
from client.synthesize.partition import Cells
from common.arrays import Floats
from common.errors import Bug

SAMPLES_KEY = b"kohort-public-generator-samples!"  # orders samples of the generator; there is nothing to keep secret
LEAST_GROUPS = 6  # fewer averages have no deviation to speak of: then the factor is that of the largest k that gives so many


@dataclass(frozen=True)
class Directions:
    """A point float64 [D], orthonormal directions [m, D] and a factor [m] each. Only `directions_of` makes them."""

    middle: Floats
    axes: Floats
    factors: Floats

    def moved(self, codes: Tensor) -> Tensor:
        """Return codes [G, L, d_w] whose distance from the middle along each direction is multiplied by its factor."""
        away = codes.detach().double().flatten(1).numpy() - self.middle
        added = (away @ self.axes.T * (self.factors - 1)) @ self.axes
        return codes + torch.from_numpy(added).to(codes.dtype).reshape(codes.shape)


def directions_of(
    known: Reference, count: int, k: int, mode: Mode, share: float = 1.0
) -> Directions:
    """Return the first `count` principal directions of generator codes and what averages of k lose along each.

    The factor is the deviation of the samples' whitened codes over that of the means of their groups, formed by `mode`
    with this k as a cohort's would be, to the power `share`: 1 gives all of the spread back, 0 none. Raises Bug for anything
    but a `Reference`, which holds no image of a cohort.
    """
    if not isinstance(known, Reference):
        raise Bug(
            "directions_of takes a Reference; the cohort's codes must not shape what is done to averages"
        )
    white = known.whitening(known.samples.codes)
    used = known.whitening.directions[:, :count].T
    axes = used / np.linalg.norm(used, axis=1, keepdims=True)
    cells = cells_of(known.samples, known.whitening) if mode == "cells" else None
    return Directions(known.whitening.mean, axes, _factors(white, k, mode, cells)[:count] ** share)


def _factors(white: Floats, k: int, mode: Mode, cells: Cells | None) -> Floats:
    """Deviation of codes [M, m] over that of the means of their groups of k, within promise 3; [m]."""
    most = math.sqrt(k)
    k = min(k, len(white) // LEAST_GROUPS)
    if mode == "random" or k < 2:
        return np.full(white.shape[1], most if mode == "random" else 1.0)
    names = [f"{i:06d}" for i in range(len(white))]
    who = roster(names, np.arange(len(white)), np.zeros(len(white), np.int64), key=SAMPLES_KEY)
    ordered = white[[rows[0] for rows in who.images]]
    grouping = form_groups(who, k, mode, key=SAMPLES_KEY, codes=ordered, cells=cells)
    means = np.stack(
        [white[[int(name) for name in group.members]].mean(axis=0) for group in grouping.groups]
    )
    lost = white.std(axis=0) / np.maximum(means.std(axis=0), 1e-12)
    return np.asarray(np.clip(lost, 1.0, most))
