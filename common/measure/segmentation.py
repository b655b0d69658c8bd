"""How well a predicted mask fits the true one: Dice and two Hausdorff distances.

In: two masks of one shape (2D or 3D; non-zero is foreground), the voxel size in mm.
Out: overlap in [0, 1], distances in mm.
Guarantees: exact Euclidean distances between voxel centres, over all voxels of a mask and not its
surface alone (Taha & Hanbury 2015).
Not covered: components, surface Dice.

P is the predicted mask, G the true one, d(x, Y) the distance from x to the nearest voxel of Y:
  Dice = 2|P∩G| / (|P| + |G|)
  balanced average Hausdorff = ½ (Σ_{g∈G} d(g, P) + Σ_{p∈P} d(p, G)) / |G|      (Aydin et al. 2021)
  95 % Hausdorff = max(95th percentile of d(g, P) over G, the same of d(p, G) over P)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[Any]
PERCENTILE = 95


@dataclass(frozen=True)
class Agreement:
    """One predicted mask against the true one: `dice` in [0, 1], distances in mm.

    If only one mask is empty, `penalised` is true and the distances are the image's diagonal. If
    both are empty, Dice is 1 and the distances are 0.
    """

    dice: float
    balanced_hausdorff_mm: float
    hausdorff95_mm: float
    penalised: bool


def dice(predicted: Mask, true: Mask) -> float:
    """Return 2|P∩G| / (|P| + |G|); 1 if both are empty. Raises ValueError for different shapes."""
    p, g = _pair(predicted, true)
    total = int(p.sum()) + int(g.sum())
    if not total:
        return 1.0
    return 2 * int((p & g).sum()) / total


def agreement(predicted: Mask, true: Mask, spacing_mm: float | Sequence[float] = 1.0) -> Agreement:
    """Return all three measures.

    `spacing_mm` is the voxel size, one number or one for each axis.
    Raises ValueError if it is not positive or the shapes differ.
    """
    # an empty mask has no distances
    p, g = _pair(predicted, true)
    spacing = _spacing(spacing_mm, p.ndim)
    if not p.any() and not g.any():
        return Agreement(1.0, 0.0, 0.0, penalised=False)
    if not p.any() or not g.any():
        diagonal = math.sqrt(sum((n * s) ** 2 for n, s in zip(p.shape, spacing, strict=True)))
        return Agreement(0.0, diagonal, diagonal, penalised=True)

    # both have voxels
    from_true = _distances(g, p, spacing)
    from_predicted = _distances(p, g, spacing)
    balanced = 0.5 * (float(from_true.sum()) + float(from_predicted.sum())) / len(from_true)
    worst = max(float(np.percentile(d, PERCENTILE)) for d in (from_true, from_predicted))
    return Agreement(dice(p, g), balanced, worst, penalised=False)


def _distances(
    points: NDArray[np.bool_], target: NDArray[np.bool_], spacing: tuple[float, ...]
) -> NDArray[np.float64]:
    """The distance of every voxel of `points` to the nearest one of `target`, in mm."""
    from scipy.ndimage import distance_transform_edt

    nearest: NDArray[np.float64] = distance_transform_edt(~target, sampling=spacing)
    return nearest[points]


def _pair(predicted: Mask, true: Mask) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Both as booleans of one shape."""
    if predicted.shape != true.shape or not predicted.size:
        raise ValueError(
            f"masks: expected two of one shape with voxels, got {predicted.shape} and {true.shape}"
        )
    return predicted != 0, true != 0


def _spacing(spacing_mm: float | Sequence[float], axes: int) -> tuple[float, ...]:
    """One positive size for each axis."""
    if isinstance(spacing_mm, Sequence):
        sizes = tuple(map(float, spacing_mm))
    else:
        sizes = (float(spacing_mm),) * axes
    if len(sizes) != axes or not all(math.isfinite(s) and s > 0 for s in sizes):
        raise ValueError(f"spacing_mm: expected {axes} positive sizes, got {spacing_mm}")
    return sizes
