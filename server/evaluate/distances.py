"""How far one set of image features is from another.

In: features float64 [N, D] of two sets.
Out: numbers with 95 % intervals.
Guarantees: the kernel distance is unbiased, its interval too; where a sample cannot carry a
covariance (N <= D), the Fréchet distance is asked for with variances alone, or refused.
Sources: Heusel et al. 2017 (FID); Bińkowski et al. 2018 (KID); Kynkäänniemi et al. 2019
(precision and recall); Efron and Tibshirani 1993, chapter 13 (percentile intervals).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from common.arrays import Floats

NEIGHBOURS = 3
RESAMPLES = 200
FRECHET_RESAMPLES = 100
COVERED = (0.025, 0.975)


@dataclass(frozen=True)
class Estimate:
    """A distance and its 95 % interval."""

    value: float
    interval: tuple[float, float]


# --- Fréchet distance ---------------------------------------------------------------------


def frechet(a: Floats, b: Floats, *, variances_alone: bool = False) -> float:
    """Return ‖μa − μb‖² + tr(Σa + Σb − 2(Σa^½ Σb Σa^½)^½), biased upwards for small sets.

    `variances_alone` sets all covariances between features to 0. Raises ValueError for fewer than
    two items; without `variances_alone` also unless both sets have more items than features.
    """
    count = min(len(a), len(b))
    if count < 2:
        raise ValueError(f"frechet: expected two items in each set, got {len(a)} and {len(b)}")
    gap = a.mean(axis=0) - b.mean(axis=0)
    if variances_alone:
        spread = a.std(axis=0, ddof=1) - b.std(axis=0, ddof=1)
        return float(gap @ gap + spread @ spread)
    if count <= a.shape[1]:
        raise ValueError(
            f"frechet: {count} items cannot carry a covariance of {a.shape[1]} features"
        )
    return _frechet(a, b)


def estimate_frechet(
    a: Floats, b: Floats, *, variances_alone: bool = False, seed: int = 0
) -> Estimate:
    """Return the `frechet` distance and the bootstrap's interval around it.

    A resample holds fewer distinct items, so its distance is biased further upwards. The interval
    is therefore that of the resamples' differences from their own mean. Raises ValueError as there.
    """
    value = frechet(a, b, variances_alone=variances_alone)
    rng = np.random.default_rng(seed)
    again = np.empty(FRECHET_RESAMPLES)
    for i in range(FRECHET_RESAMPLES):
        some_a = a[rng.integers(0, len(a), len(a))]
        some_b = b[rng.integers(0, len(b), len(b))]
        if variances_alone:
            again[i] = frechet(some_a, some_b, variances_alone=True)
        else:
            again[i] = _frechet(some_a, some_b)
    low, high = value + np.quantile(again - again.mean(), COVERED)
    return Estimate(value, (max(0.0, float(low)), float(high)))


def _frechet(a: Floats, b: Floats) -> float:
    """The distance of two sets of any size."""
    # the trace of the matrix root: no root of an eigenvalue is taken, which would amplify rounding
    factor_a = _factor(a)
    factor_b = _factor(b)
    overlap = float(np.linalg.svd(factor_a @ factor_b.T, compute_uv=False).sum())

    # means and covariances together
    gap = a.mean(axis=0) - b.mean(axis=0)
    total = gap @ gap + (factor_a**2).sum() + (factor_b**2).sum() - 2 * overlap
    return max(0.0, float(total))


def _factor(x: Floats) -> Floats:
    """R of x with RᵀR = Σx: the trace of (Σa^½ Σb Σa^½)^½ is the sum of RaRbᵀ's singular values."""
    centred = (x - x.mean(axis=0)) / np.sqrt(len(x) - 1)
    return np.asarray(np.linalg.qr(centred, mode="r"))


# --- kernel distance ----------------------------------------------------------------------


def kernel(a: Floats, b: Floats) -> float:
    """Return the squared MMD under the cubic kernel (x·y/D + 1)³.

    It is the U-statistic: no item is compared with itself. So it is unbiased and may be slightly
    negative. Raises ValueError for fewer than two items.
    """
    return float(_kernel_of(a, b, np.ones((1, len(a))), np.ones((1, len(b))))[0])


def estimate_kernel(a: Floats, b: Floats, *, seed: int = 0) -> Estimate:
    """Return the `kernel` distance and the bootstrap's percentile interval.

    In a resample, too, no item is compared with itself, however often it was drawn: a plain
    bootstrap would lie above the distance. Raises ValueError for fewer than two items.
    """
    value = kernel(a, b)
    rng = np.random.default_rng(seed)
    again = _kernel_of(a, b, _draw_counts(rng, len(a)), _draw_counts(rng, len(b)))
    low, high = np.quantile(again, COVERED)
    return Estimate(value, (float(low), float(high)))


def _draw_counts(rng: np.random.Generator, count: int) -> Floats:
    """How often each resample holds each item, [`RESAMPLES`, count]; at least two distinct ones."""
    chances = np.full(count, 1 / count)
    counts: Floats = rng.multinomial(count, chances, RESAMPLES).astype(np.float64)
    only_one = (counts > 0).sum(axis=1) < 2
    counts[only_one] = 1
    return counts


def _kernel_of(a: Floats, b: Floats, counts_a: Floats, counts_b: Floats) -> Floats:
    """The distance of each resample, [resamples]."""
    for x in (a, b):
        if len(x) < 2:
            raise ValueError(
                f"kernel distance: expected two items in each set, got {len(a)} and {len(b)}"
            )
    between = ((counts_a @ _cubic(a, b)) * counts_b).sum(axis=1)
    between /= counts_a.sum(axis=1) * counts_b.sum(axis=1)
    distance: Floats = _within(a, counts_a) + _within(b, counts_b) - 2 * between
    return distance


def _within(x: Floats, counts: Floats) -> Floats:
    """The mean kernel of two different items of each resample, [resamples]."""
    among = _cubic(x, x)
    np.fill_diagonal(among, 0)
    pairs = counts.sum(axis=1) ** 2 - (counts**2).sum(axis=1)
    mean: Floats = ((counts @ among) * counts).sum(axis=1) / pairs
    return mean


def _cubic(a: Floats, b: Floats) -> Floats:
    """The cubic kernel of all pairs [N, M]."""
    kernel: Floats = (a @ b.T / a.shape[1] + 1) ** 3
    return kernel


# --- neighbours ---------------------------------------------------------------------------


def precision_recall(released: Floats, real: Floats) -> tuple[float, float]:
    """Return (precision, recall).

    Precision: the share of released items within the third-neighbour radius of a real one.
    Recall: the share of real items within that of a released one.
    """
    between = euclidean(released, real)
    inside_real = between <= _radii(real)[None]
    inside_released = between <= _radii(released)[:, None]
    return float(inside_real.any(axis=1).mean()), float(inside_released.any(axis=0).mean())


def nearest_ratio(released: Floats, real: Floats) -> float:
    """Return how near released items are to their nearest real one; 0 is a copy.

    This is the median distance, in units of the same median among real items.
    """
    among = euclidean(real, real)
    np.fill_diagonal(among, np.inf)
    usual = float(np.median(among.min(axis=1)))
    return float(np.median(euclidean(released, real).min(axis=1))) / max(usual, 1e-12)


def euclidean(a: Floats, b: Floats) -> Floats:
    """Return distances [N, M]."""
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    distances: Floats = np.sqrt(np.maximum(squares, 0))
    return distances


def _radii(x: Floats) -> Floats:
    """The distance of each item to its third neighbour, or to its last if it has fewer."""
    among = euclidean(x, x)
    np.fill_diagonal(among, -1)  # the item itself comes first
    radii: Floats = np.sort(among, axis=1)[:, min(NEIGHBOURS, len(x) - 1)]
    return radii
