"""How far one set of image features is from another.

In: features float64 [N, D] of two sets.
Out: numbers.
Guarantees: the Fréchet distance is refused where a sample cannot carry a covariance (N <= D).
Sources: Heusel et al. 2017 (FID); Bińkowski et al. 2018 (KID); Kynkäänniemi et al. 2019
(precision and recall).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from common.arrays import Floats, Integers

NEIGHBOURS = 3
SUBSETS = 50
SUBSET_SIZE = 100


@dataclass(frozen=True)
class KernelDistance:
    """The unbiased squared distance over all items.

    `deviation`: its standard deviation over random subsets of `subset_size` items.
    """

    value: float
    deviation: float
    subset_size: int


def frechet(a: Floats, b: Floats) -> float:
    """Return ‖μa − μb‖² + tr(Σa + Σb − 2(Σa^½ Σb Σa^½)^½).

    Raises ValueError unless both sets have more items than features.
    """
    count = min(len(a), len(b))
    if count <= a.shape[1]:
        raise ValueError(
            f"frechet: {count} items cannot carry a covariance of {a.shape[1]} features"
        )

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


def kernel(a: Floats, b: Floats, *, seed: int = 0) -> KernelDistance:
    """Return the squared MMD under the cubic kernel (x·y/D + 1)³.

    It is unbiased, so it may be slightly negative. Raises ValueError for fewer than two items.
    """
    rng = np.random.default_rng(seed)
    size = min(SUBSET_SIZE, len(a), len(b))
    subsets = []
    for _ in range(SUBSETS):
        some_a = a[_choose(rng, len(a), size)]
        some_b = b[_choose(rng, len(b), size)]
        subsets.append(_mmd(some_a, some_b))
    return KernelDistance(_mmd(a, b), float(np.std(subsets)), size)


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


def _mmd(a: Floats, b: Floats) -> float:
    """The U-statistic: no item is compared with itself."""
    n = len(a)
    m = len(b)
    if min(n, m) < 2:
        raise ValueError(f"kernel distance: expected two items in each set, got {n} and {m}")
    among_a = _cubic(a, a)
    among_b = _cubic(b, b)
    between = _cubic(a, b)
    within_a = (among_a.sum() - np.trace(among_a)) / (n * (n - 1))
    within_b = (among_b.sum() - np.trace(among_b)) / (m * (m - 1))
    return float(within_a + within_b - 2 * between.mean())


def _cubic(a: Floats, b: Floats) -> Floats:
    """The cubic kernel of all pairs [N, M]."""
    kernel: Floats = (a @ b.T / a.shape[1] + 1) ** 3
    return kernel


def _choose(rng: np.random.Generator, count: int, size: int) -> Integers:
    """`size` random positions of `count`, none twice."""
    return rng.permutation(count)[:size]


def _radii(x: Floats) -> Floats:
    """The distance of each item to its third neighbour, or to its last if it has fewer."""
    among = euclidean(x, x)
    np.fill_diagonal(among, -1)  # the item itself comes first
    radii: Floats = np.sort(among, axis=1)[:, min(NEIGHBOURS, len(x) - 1)]
    return radii
