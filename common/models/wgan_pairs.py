"""Pairs of image and mask: stored 8-bit pairs to floats and back, and samples of a generator."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from common.arrays import Pairs
from common.models.draws import device_of, draw_normal
from common.models.images import to_device
from common.models.wgan import Generator

SAMPLE_BATCH = 64


def to_unit(pairs: Pairs | Tensor, device: torch.device | None = None) -> Tensor:
    """Return float32 [N, 2, H, W] in [-1, 1] of uint8 pairs [N, H, W, 2] (mask 0 or 255).

    The pairs move to `device` as uint8.
    """
    return to_device(pairs, device).float() / 127.5 - 1


def to_pairs(x: Tensor) -> Pairs:
    """Return uint8 [N, H, W, 2] of pairs in [-1, 1]: the mask is 0 or 255, at threshold 0."""
    image = ((x[:, 0].clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    mask = (x[:, 1] > 0).to(torch.uint8) * 255
    found: Pairs = torch.stack([image, mask], dim=-1).cpu().numpy()
    return found


@torch.no_grad()
def sample(generator: Generator, count: int, random: torch.Generator) -> Pairs:
    """Return `count` pairs uint8 [count, S, S, 2] of fresh latents."""
    batches = [to_pairs(generator(z)) for z in _draw_latents(generator, count, random)]
    return np.concatenate(batches)


def _draw_latents(generator: Generator, count: int, random: torch.Generator) -> Iterator[Tensor]:
    """Latents [n, z] in batches, where the generator lies."""
    device = device_of(generator)
    for start in range(0, count, SAMPLE_BATCH):
        size = min(SAMPLE_BATCH, count - start)
        yield draw_normal((size, generator.latent), random, device)
