"""Stored 8-bit images to floats in [-1, 1] and back."""

import numpy as np
import torch
from torch import Tensor

from common.arrays import Images


def to_unit(images: Images | Tensor) -> Tensor:
    """Return float32 [N, C, H, W] in [-1, 1] of uint8 [N, H, W, C]."""
    if isinstance(images, np.ndarray):
        images = np.require(images, requirements=["C", "W"])
    pixels = torch.as_tensor(images).permute(0, 3, 1, 2)
    return pixels.to(torch.float32).div(127.5).sub(1.0)


def to_uint8(images: Tensor) -> Images:
    """Return uint8 [N, H, W, C] of float [N, C, H, W].

    Values beyond [-1, 1] are clamped; NaN becomes 0 (black).
    """
    finite = torch.nan_to_num(images.detach().float(), nan=-1.0).clamp(-1, 1)
    levels = finite.add(1).mul(127.5).round().to(torch.uint8)
    return np.asarray(levels.permute(0, 2, 3, 1).contiguous().cpu())
