"""ActNorm's initial values for a flow, from procedural images: no data enters."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from common.models.draws import device_of
from common.models.glow import Glow
from common.models.glow_level import Doubling, Level
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
    for grown in reversed(model.doublings):
        doubling = cast(Doubling, grown)
        y = _normalise(doubling.level, doubling.analyse(x))
        x = y[:, : model.channels]
    for level, split in zip(model.levels, [*model.splits, None], strict=True):
        x = _normalise(cast(Level, level), F.pixel_unshuffle(x, 2))
        if split is not None:
            x = x.chunk(2, dim=1)[0]


def _normalise(level: Level, x: Tensor) -> Tensor:
    """Set a level's mixings so that each gives these maps mean 0 and deviation 1; return them."""
    for mixing, coupling in zip(level.mixings, level.couplings, strict=True):
        layer = cast(Mixing, mixing)
        kept, mixed = x[:, : level.kept], x[:, level.kept :]
        layer.bias.copy_(-mixed.mean(dim=(0, 2, 3)))
        layer.log_scale.copy_(-mixed.std(dim=(0, 2, 3)).clamp_min(1e-3).log())
        x = coupling(torch.cat([kept, layer(mixed)[0]], dim=1))[0]
    return x
