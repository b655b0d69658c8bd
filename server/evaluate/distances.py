"""How far one set of image features is from another: Fréchet and kernel distance, precision and recall, nearest neighbours.

In: features float64 [N, D] of two sets. Out: numbers. Guaranteed: the Fréchet distance takes the matrix root of a symmetric
product by its eigenvalues (no complex parts, no iteration that diverges) and is refused where the sample cannot carry a
covariance (N <= D); the kernel distance is unbiased, so it may be slightly negative. Not: what the features see.

Sources: Heusel et al. 2017 (FID), Binkowski et al. 2018 (KID), Kynkäänniemi et al. 2019 (precision and recall).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.arrays import Floats

NEIGHBOURS = 3
SUBSETS, SUBSET_SIZE = 50, 100


@dataclass(frozen=True)
class KernelDistance:
    """The unbiased squared distance over all items, and its standard deviation over random subsets of `subset_size` items."""

    value: float
    deviation: float
    subset_size: int


def frechet(a: Floats, b: Floats) -> float:
    """Return ‖μa − μb‖² + tr(Σa + Σb − 2(Σa^½ Σb Σa^½)^½); raises ValueError unless both sets have more items than features."""
    if min(len(a), len(b)) <= a.shape[1]:
        raise ValueError(
            f"frechet: {min(len(a), len(b))} items cannot carry a covariance of {a.shape[1]} features"
        )
    covariance_a, covariance_b = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b))
    values, vectors = np.linalg.eigh(covariance_a)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    inner = np.linalg.eigvalsh(root @ covariance_b @ root)
    overlap = float(np.sqrt(np.maximum(inner, 0)).sum())
    gap = a.mean(axis=0) - b.mean(axis=0)
    return max(
        0.0, float(gap @ gap + np.trace(covariance_a) + np.trace(covariance_b) - 2 * overlap)
    )


def kernel(a: Floats, b: Floats, *, seed: int = 0) -> KernelDistance:
    """Return the squared MMD under the cubic kernel (x·y/D + 1)³. Raises ValueError for fewer than two items."""
    rng = np.random.default_rng(seed)
    size = min(SUBSET_SIZE, len(a), len(b))
    subsets = [
        _mmd(a[_some(rng, len(a), size)], b[_some(rng, len(b), size)]) for _ in range(SUBSETS)
    ]
    return KernelDistance(_mmd(a, b), float(np.std(subsets)), size)


def precision_recall(released: Floats, real: Floats) -> tuple[float, float]:
    """Return (precision, recall): the share of released items within a real one's third-neighbour radius, and the reverse."""
    between = euclidean(released, real)
    inside_real = between <= _radii(real)[None]
    inside_released = between <= _radii(released)[:, None]
    return float(inside_real.any(axis=1).mean()), float(inside_released.any(axis=0).mean())


def nearest_ratio(released: Floats, real: Floats) -> float:
    """Return the median distance from released to its nearest real item over the same among real items; 0 is a copy."""
    among = euclidean(real, real)
    np.fill_diagonal(among, np.inf)
    usual = float(np.median(among.min(axis=1)))
    return float(np.median(euclidean(released, real).min(axis=1))) / max(usual, 1e-12)


def euclidean(a: Floats, b: Floats) -> Floats:
    """Return distances [N, M]."""
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    distances: Floats = np.sqrt(np.maximum(squares, 0))
    return distances


def _mmd(a: Floats, b: Floats) -> float:
    """The U-statistic: no item is compared with itself."""
    n, m = len(a), len(b)
    if min(n, m) < 2:
        raise ValueError(f"kernel distance: expected two items in each set, got {n} and {m}")
    kaa, kbb, kab = ((x @ y.T / a.shape[1] + 1) ** 3 for x, y in ((a, a), (b, b), (a, b)))
    within = (kaa.sum() - np.trace(kaa)) / (n * (n - 1)) + (kbb.sum() - np.trace(kbb)) / (
        m * (m - 1)
    )
    return float(within - 2 * kab.mean())


def _some(rng: np.random.Generator, count: int, size: int) -> NDArray[np.int64]:
    return rng.permutation(count)[:size]


def _radii(x: Floats) -> Floats:
    """The distance of each item to its third neighbour (or the last one that it has)."""
    among = euclidean(x, x)
    np.fill_diagonal(among, -1)  # the item itself comes first
    radii: Floats = np.sort(among, axis=1)[:, min(NEIGHBOURS, len(x) - 1)]
    return radii
