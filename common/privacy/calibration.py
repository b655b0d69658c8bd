"""How much noise a Gaussian release needs for its epsilon and delta, and how much of a latent is left under noise.

In: epsilon, delta, clip sets, scales: public constants. Out: numbers. Guaranteed: the noise is rounded up, so a stated epsilon
holds at its delta. Not: drawing noise (noise.py), or composing releases (accounting.py).

Sources: Balle and Wang 2018 (arXiv 1805.06530), Theorem 8; methods/dp-glow.md, section 5 (expected cosines, closed form).
"""

import math
from functools import lru_cache

MEAN_MAGNITUDE = math.sqrt(2 / math.pi)  # E |z| of a standard normal latent: 0.80


@lru_cache(maxsize=64)
def analytic_noise_multiplier(epsilon: float, delta: float) -> float:
    """The least deviation over sensitivity of a Gaussian with (epsilon, delta), rounded up to 2^-20 (Balle and Wang 2018)."""
    low, high = 0.0, 1.0
    while gaussian_delta(epsilon, high) > delta:
        high *= 2.0
    while high - low > 2.0**-22 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if gaussian_delta(epsilon, middle) > delta else (low, middle)
    return math.ceil(high * 2**20) / 2**20


def gaussian_delta(epsilon: float, noise_multiplier: float) -> float:
    """The least delta of a Gaussian: Phi(1/(2s) - e s) - exp(e) Phi(-1/(2s) - e s), s its noise multiplier (Theorem 8)."""
    half, shift = 1 / (2 * noise_multiplier), epsilon * noise_multiplier
    above = 0.5 * math.erfc((shift - half) / math.sqrt(2))
    tail = 0.5 * math.erfc((shift + half) / math.sqrt(2))
    return above - (math.exp(epsilon + math.log(tail)) if tail > 0 else 0.0)


def cosine(signal_to_noise: float) -> float:
    """The expected cosine between a latent and its release at this ratio of variances."""
    return math.sqrt(signal_to_noise / (1 + signal_to_noise))


def clipped_variance(clip: str, radius: float) -> float:
    """Variance of a standard normal latent's coordinate after the clip (the l1 ball: of a latent of typical length)."""
    if clip == "l1_ball":
        return min(1.0, radius / MEAN_MAGNITUDE) ** 2
    outside = math.erfc(radius / math.sqrt(2))
    inside = 1 - outside - radius * MEAN_MAGNITUDE * math.exp(-(radius**2) / 2)
    return inside + radius**2 * outside
