"""Small flows and pictures for the tests of the flow."""

import torch

from common.models.glow import Glow


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shaken(model: Glow, amount: float = 0.1) -> Glow:
    """Every parameter away from its start, so that no part is an identity."""
    generator = seeded(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(amount * torch.randn(parameter.shape, generator=generator))
    return model


def small(
    channels: int = 1, size_px: int = 8, levels: int = 2, steps: int = 2, width: int = 8
) -> Glow:
    return shaken(Glow(size_px, channels, levels, steps, width))


def pictures(n: int, channels: int = 1, size_px: int = 8) -> torch.Tensor:
    return torch.rand(n, channels, size_px, size_px, generator=seeded(1)) - 0.5
