"""Stored 8-bit images to the flow's numbers and back."""

import numpy as np
import torch
from torch import Tensor

from common.arrays import Images
from common.errors import ConfigurationError
from common.models.images import to_device


def from_uint8(
    images: Images | Tensor,
    dither: Tensor | None = None,
    depth: int = 8,
    device: torch.device | None = None,
) -> Tensor:
    """Return float32 [N, C, H, W] in [-1/2, 1/2] from uint8 [N, H, W, C]: (image + U) / 256 - 1/2.

    U is `dither`, [N, C, H, W] in [0, 1), which training draws; without it U is 1/2, as for a
    release. `depth` < 8 keeps the upper bits alone and dithers over the others. The images move to
    `device` as uint8; None is the dither's device, else the CPU.
    Raises ConfigurationError for another type, rank or depth.
    """
    if images.dtype not in (np.uint8, torch.uint8) or images.ndim != 4 or not 1 <= depth <= 8:
        raise ConfigurationError(
            f"flow: images {images.dtype} {list(images.shape)} at {depth} bits, "
            "expected uint8 [N, H, W, C] at 1 to 8"
        )
    if device is None and dither is not None:
        device = dither.device
    kept = to_device(images, device) >> (8 - depth)
    pixels = kept.to(torch.float32)
    x: Tensor = (pixels + (0.5 if dither is None else dither)) / 2**depth - 0.5
    return x


def to_uint8(x: Tensor) -> Images:
    """Return uint8 [N, H, W, C] from [N, C, H, W], clamped to [-1/2, 1/2].

    NaN becomes mid-grey, infinity the end of the range.
    """
    finite = torch.nan_to_num(x.double(), nan=0.0, posinf=0.5, neginf=-0.5)
    levels = torch.floor((finite + 0.5) * 256).clamp(0, 255)
    return levels.to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()
