"""What codes cannot hold of an image: its residual in the cells of a coarse grid.

In: images in the generator's own look [N, C, S, S] in [-1, 1], what their codes give, their fields.
Out: each image's mean residual in every cell; generated images to which a residual was added.
Guarantees:
  1. no image influences another's residual; a cell that an image's field does not reach has none
  2. what is added is smooth: nothing finer than a cell of the grid, and nothing outside the field
Not covered: how much a mean of residuals tells of a member (docs/measurements/other_hospitals.md).

A generator that never saw a camera inverts its photographs to blobs in the wrong places. What it
misses is mostly coarse: where the disc lies, how light falls.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

LEAST_SHARE = 0.1  # of a cell's pixels: a smaller part of the field says nothing about the cell


def measure_residuals(x: Tensor, rebuilt: Tensor, fields: Tensor, cells: int) -> Tensor:
    """Return [N, C + 1, cells, cells]: mean of `x - rebuilt` by cell, and where it is known.

    `fields`: 1 where a pixel was photographed, [N, 1, S, S]. The last channel is 1 where at least
    `LEAST_SHARE` of a cell's pixels are in the field; elsewhere all channels are 0.
    """
    if cells == 0:  # one cell, of which nobody knows anything
        return x.new_zeros((len(x), x.shape[1] + 1, 1, 1))
    share = F.adaptive_avg_pool2d(fields, cells)
    known = (share >= LEAST_SHARE).to(x.dtype)
    sums = F.adaptive_avg_pool2d((x - rebuilt) * fields, cells)
    return torch.cat([known * sums / share.clamp(min=LEAST_SHARE), known], 1)


def mean_known(residuals: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean over N residuals [N, C + 1, G, G] where each cell is known, [C, G, G].

    And how many know it, [G, G]. A cell that nobody knows is 0.
    """
    known = residuals[:, -1]
    count = known.sum(0)
    return (residuals[:, :-1] * known[:, None]).sum(0) / count.clamp(min=1), count


def add_residual(images: Tensor, residual: Tensor, fields: Tensor) -> Tensor:
    """Return images [N, C, S, S] with a residual [C, G, G], drawn smoothly inside their fields.

    They are not clamped.
    """
    size = images.shape[-2:]
    drawn = F.interpolate(residual[None].to(images), size, mode="bicubic", align_corners=False)
    return images + drawn * fields


def residual_rows(residuals: Tensor) -> NDArray[np.float32]:
    """Return residuals [N, C + 1, G, G] as they are kept."""
    return np.asarray(residuals.float().cpu())
