"""Noise of a Gaussian release for its epsilon and delta, and the cosine that it leaves.

In: epsilon, delta, clip sets, scales: public constants. Out: numbers.
Guarantees: the noise is rounded up, so a stated epsilon holds at its delta.
Not covered: drawing noise (noise.py), or composing releases (accounting.py).
Sources: Balle and Wang 2018 (arXiv 1805.06530), Theorem 8; docs/methods/dp-glow.md (cosines).
"""

import math
from functools import lru_cache

MEAN_MAGNITUDE = math.sqrt(2 / math.pi)  # E |z| of a standard normal latent: 0.80


@lru_cache(maxsize=64)
def analytic_noise_multiplier(epsilon: float, delta: float) -> float:
    """Return the least noise multiplier of a Gaussian with (epsilon, delta), rounded up to 2^-20.

    The noise's standard deviation over the sensitivity (Balle and Wang 2018).
    """
    low = 0.0
    high = 1.0
    while gaussian_delta(epsilon, high) > delta:
        high *= 2.0
    while high - low > 2.0**-22 * high:
        middle = (low + high) / 2
        if gaussian_delta(epsilon, middle) > delta:
            low = middle
        else:
            high = middle
    return math.ceil(high * 2**20) / 2**20


def gaussian_delta(epsilon: float, noise_multiplier: float) -> float:
    """Return the least delta of a Gaussian (Theorem 8).

    Phi(1/(2s) - e s) - exp(e) Phi(-1/(2s) - e s), with s its noise multiplier and e epsilon.
    """
    half = 1 / (2 * noise_multiplier)
    shift = epsilon * noise_multiplier
    above = 0.5 * math.erfc((shift - half) / math.sqrt(2))
    tail = 0.5 * math.erfc((shift + half) / math.sqrt(2))
    if tail <= 0:
        return above
    return above - math.exp(epsilon + math.log(tail))


def cosine(signal_to_noise: float) -> float:
    """Return the expected cosine between a latent and its release at this ratio of variances."""
    return math.sqrt(signal_to_noise / (1 + signal_to_noise))


def clipped_variance(clip: str, radius: float) -> float:
    """Return the variance of a standard normal latent's coordinate after the clip.

    For the l1 ball: of a latent of typical length.
    """
    if clip == "l1_ball":
        return min(1.0, radius / MEAN_MAGNITUDE) ** 2
    outside = math.erfc(radius / math.sqrt(2))
    inside = 1 - outside - radius * MEAN_MAGNITUDE * math.exp(-(radius**2) / 2)
    return inside + radius**2 * outside
