"""Small changes that multiply public photographs for pretraining."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from common.models.draws import draw_uniform
from common.models.images import to_device
from server.public_data.images import Source

AT_ONCE = 64  # photographs that are floats at a time
LARGEST_ANGLE = 6.0  # degrees, to both sides


def views(
    source: Source,
    count: int,
    random: np.random.Generator,
    device: torch.device | None = None,
) -> tuple[Tensor, Tensor]:
    """Return every photograph `count` times: as it is, then turned up to 6° and enlarged 5–12 %.

    Where sides are known each view is also mirrored and changes side. Returns uint8 [M, C, S, S] on
    the device, None being the CPU, and side [M] on the CPU. `shown` makes floats of them.
    """
    # as they are
    plain = to_device(source.images, device)
    side = torch.zeros(len(plain), dtype=torch.long)
    if source.right is not None:
        side = torch.as_tensor(source.right).long()

    # turned and enlarged, some at a time
    made = [plain]
    sides = [side]
    for _ in range(count - 1):
        made.append(torch.cat([_change(part, random) for part in torch.split(plain, AT_ONCE)]))
        sides.append(side)

    # mirrored, which changes the side
    if source.right is not None:
        made += [x.flip(3) for x in made]
        sides += [1 - s for s in sides]
    return torch.cat(made), torch.cat(sides)


def shown(views: Tensor) -> Tensor:
    """Return float32 [N, C, S, S] in [−1, 1] of uint8 views."""
    return views.to(torch.float32).div(127.5).sub(1.0)


def _change(pixels: Tensor, random: np.random.Generator) -> Tensor:
    """Uint8 images [N, C, S, S], each turned and enlarged by its own random amount."""
    turned = _turn_and_enlarge(shown(pixels), random)
    return turned.add(1).mul(127.5).round().to(torch.uint8)


def _turn_and_enlarge(x: Tensor, random: np.random.Generator) -> Tensor:
    """Each image turned and enlarged by its own random amount."""
    degrees = random.uniform(-LARGEST_ANGLE, LARGEST_ANGLE, len(x))
    angle = torch.as_tensor(degrees * math.pi / 180, dtype=torch.float32, device=x.device)
    larger = random.uniform(1.05, 1.12, len(x))
    shrink = torch.as_tensor(1 / larger, dtype=torch.float32, device=x.device)
    cos = angle.cos() * shrink
    sin = angle.sin() * shrink
    zero = torch.zeros_like(cos)
    first = torch.stack([cos, -sin, zero], 1)
    second = torch.stack([sin, cos, zero], 1)
    grid = F.affine_grid(torch.stack([first, second], 1), list(x.shape), align_corners=False)
    turned = F.grid_sample(x, grid, mode="bicubic", padding_mode="border", align_corners=False)
    return turned.clamp(-1, 1)


def tint(x: Tensor, generator: torch.Generator) -> Tensor:
    """Return `x` [N, C, S, S] with each channel's brightness scaled by 0.9 to 1.1.

    Black stays black.
    """
    scale = 0.9 + 0.2 * draw_uniform((len(x), x.shape[1], 1, 1), generator, x.device)
    return ((x + 1) * scale - 1).clamp(-1, 1)
