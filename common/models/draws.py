"""Random numbers for a network, on the device where it lies.

Guarantees: a generator of that device draws there, without a copy. A CPU's generator draws the same
numbers on every machine, which are then copied.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def device_of(network: nn.Module) -> torch.device:
    """Return the device of a network's first parameter."""
    return next(network.parameters()).device


def draw_normal(
    shape: Sequence[int],
    random: torch.Generator | None,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return N(0, 1) on `device`, drawn where `random` is; None is torch's own generator there."""
    where = device if random is None else random.device
    return torch.randn(tuple(shape), generator=random, device=where, dtype=dtype).to(device)


def draw_integers(low: int, high: int, count: int, random: torch.Generator) -> Tensor:
    """Return int64 [count] from `low` to below `high`, where `random` is."""
    return torch.randint(low, high, (count,), generator=random, device=random.device)


def draw_uniform(
    shape: Sequence[int], random: torch.Generator | None, device: torch.device
) -> Tensor:
    """Return float32 in [0, 1) on `device`, drawn where `random` is, as `draw_normal` does."""
    where = device if random is None else random.device
    return torch.rand(tuple(shape), generator=random, device=where).to(device)
