"""The exponential moving average of a network's weights."""

import torch
from torch import nn


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Move each weight of `average` towards `model`'s: a <- decay·a + (1 - decay)·m, in place."""
    for slow, fast in zip(average.parameters(), model.parameters(), strict=True):
        slow.lerp_(fast, 1 - decay)
