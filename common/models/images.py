"""Stored 8-bit images to floats in [-1, 1] and back."""

import numpy as np
import torch
from torch import Tensor

from common.arrays import Images


def to_device(images: Images | Tensor, device: torch.device | None = None) -> Tensor:
    """Return uint8 [N, C, H, W], a view of [N, H, W, C] where it lies on the device already.

    `device` None: where the images are. They are moved as uint8, a quarter of their floats.
    """
    if isinstance(images, np.ndarray):
        images = np.require(images, requirements=["C", "W"])
    return torch.as_tensor(images, device=device).permute(0, 3, 1, 2)


def to_unit(images: Images | Tensor, device: torch.device | None = None) -> Tensor:
    """Return float32 [N, C, H, W] in [-1, 1] on the device, of uint8 [N, H, W, C]."""
    return to_device(images, device).to(torch.float32).div(127.5).sub(1.0)


def to_levels(images: Tensor) -> Tensor:
    """Return uint8 [N, H, W, C] of float [N, C, H, W], on their device.

    Values beyond [-1, 1] are clamped; NaN becomes 0 (black).
    """
    finite = torch.nan_to_num(images.detach().float(), nan=-1.0).clamp(-1, 1)
    levels = finite.add(1).mul(127.5).round().to(torch.uint8)
    return levels.permute(0, 2, 3, 1).contiguous()


def to_uint8(images: Tensor) -> Images:
    """Return the `to_levels` of images as an array."""
    return np.asarray(to_levels(images).cpu())
