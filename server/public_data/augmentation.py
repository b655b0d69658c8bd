"""Small changes that multiply public photographs for pretraining."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from common.models.images import to_unit
from server.public_data.images import Source

LARGEST_ANGLE = 6.0  # degrees, to both sides


def views(source: Source, count: int, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Return every photograph `count` times: as it is, then turned up to 6° and enlarged 5–12 %.

    Where sides are known each view is also mirrored and changes side. Returns [M, C, S, S] in
    [−1, 1] and side [M].
    """
    # as they are
    plain = to_unit(source.images)
    side = torch.zeros(len(plain), dtype=torch.long)
    if source.right is not None:
        side = torch.as_tensor(source.right).long()

    # turned and enlarged
    made = [plain]
    sides = [side]
    for _ in range(count - 1):
        made.append(_turn_and_enlarge(plain, random))
        sides.append(side)

    # mirrored, which changes the side
    if source.right is not None:
        made += [x.flip(3) for x in made]
        sides += [1 - s for s in sides]
    return torch.cat(made), torch.cat(sides)


def _turn_and_enlarge(x: Tensor, random: np.random.Generator) -> Tensor:
    """Each image turned and enlarged by its own random amount."""
    degrees = random.uniform(-LARGEST_ANGLE, LARGEST_ANGLE, len(x))
    angle = torch.as_tensor(degrees * math.pi / 180, dtype=torch.float32)
    shrink = torch.as_tensor(1 / random.uniform(1.05, 1.12, len(x)), dtype=torch.float32)
    cos = angle.cos() * shrink
    sin = angle.sin() * shrink
    zero = torch.zeros(len(x))
    first = torch.stack([cos, -sin, zero], 1)
    second = torch.stack([sin, cos, zero], 1)
    grid = F.affine_grid(torch.stack([first, second], 1), list(x.shape), align_corners=False)
    turned = F.grid_sample(x, grid, mode="bicubic", padding_mode="border", align_corners=False)
    return turned.clamp(-1, 1)


def tint(x: Tensor, generator: torch.Generator) -> Tensor:
    """Return `x` [N, C, S, S] with each channel's brightness scaled by 0.9 to 1.1.

    Black stays black.
    """
    scale = 0.9 + 0.2 * torch.rand(len(x), x.shape[1], 1, 1, generator=generator)
    return ((x + 1) * scale - 1).clamp(-1, 1)
