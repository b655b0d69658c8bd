"""ActNorm's initial values for a flow, from procedural images: no data enters."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from common.models.draws import device_of
from common.models.glow import Glow, Level
from common.models.glow_mixing import Mixing


def procedural_images(n: int, size_px: int, channels: int) -> Tensor:
    """Return [n, C, H, W] images of 1/f noise, the same on every call.

    The amplitude is f^-1.5, the standard deviation 0.2; values are clamped to ±1/2.
    """
    generator = torch.Generator().manual_seed(1)
    rows = torch.fft.fftfreq(size_px)[:, None].square()
    frequency = rows + torch.fft.rfftfreq(size_px)[None].square()
    amplitude = frequency.clamp_min(1.0 / size_px**2).pow(-0.75)
    noise = torch.randn(n, channels, size_px, size_px, generator=generator)
    pictures = torch.fft.irfft2(torch.fft.rfft2(noise) * amplitude, s=(size_px, size_px))
    pictures = pictures / pictures.std(dim=(1, 2, 3), keepdim=True) * 0.2
    dither = torch.rand(pictures.shape, generator=generator)
    return (torch.floor((pictures.clamp(-0.5, 0.5) + 0.5) * 255) + dither) / 256 - 0.5


@torch.no_grad()
def initialise_from_noise(model: Glow, pictures: int = 256) -> None:
    """Set every mixing's bias and scale in one pass over procedural images."""
    drawn = procedural_images(pictures, model.size_px, model.channels)
    x = model.pad(drawn.to(device_of(model)))
    for level, split in zip(model.levels, [*model.splits, None], strict=True):
        x = F.pixel_unshuffle(x, 2)
        block = cast(Level, level)
        for mixing, coupling in zip(block.mixings, block.couplings, strict=True):
            # afterwards the channels of these images have mean 0 and deviation 1
            layer = cast(Mixing, mixing)
            layer.bias.copy_(-x.mean(dim=(0, 2, 3)))
            layer.log_scale.copy_(-x.std(dim=(0, 2, 3)).clamp_min(1e-3).log())
            x = coupling(mixing(x)[0])[0]
        if split is not None:
            x = x.chunk(2, dim=1)[0]
