"""Composes every noised draw of one group's average, whoever formed the group.

In: mechanisms on latents, delta. Out: one epsilon, per average.
Guarantees: an upper bound. Pure epsilons add up; Gaussians compose exactly as one Gaussian (Dong,
Roth and Su 2022, Corollary 3.3), and their epsilon at delta is added.
Not covered: epsilon per patient (accounting.py). These mechanisms take the group as given.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from common.privacy.calibration import gaussian_delta
from common.privacy.latent_mechanisms import Latent


def compose_draws(draws: Iterable[Latent], delta: float) -> float:
    """Return epsilon at `delta` of all draws of one average together; 0 for none."""
    pure = 0.0
    precision = 0.0
    for draw in draws:
        for kind, value in draw.losses:
            if kind == "gaussian":
                precision += 1 / value**2
            else:
                pure += value
    if precision:
        pure += gaussian_epsilon(1 / math.sqrt(precision), delta)
    return pure


def gaussian_epsilon(noise_multiplier: float, delta: float) -> float:
    """Return the epsilon of a Gaussian at `delta`, rounded up (Balle and Wang 2018)."""
    low = 0.0
    high = 1.0
    while gaussian_delta(high, noise_multiplier) > delta:
        high *= 2.0
    while high - low > 2.0**-20 * high:
        middle = (low + high) / 2
        if gaussian_delta(middle, noise_multiplier) > delta:
            low = middle
        else:
            high = middle
    return high
