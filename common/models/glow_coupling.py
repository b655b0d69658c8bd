"""The flow's learned maps: couplings, and the priors that standardise what leaves a level.

Guarantees: a coupling scales by at most e^0.5 and a prior by at most e^2. So latents far from the
data decode to finite numbers.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LOG_SCALE_BOUND = 0.5  # of a coupling's log-scale
SPLIT_BOUND = 2.0  # of a prior's log-scale


class Coupling(nn.Module):
    """One half of the channels shifts and scales the other: v' = (v + t) e^g.

    g = a tanh(h / a) with a = LOG_SCALE_BOUND; t and h come from the half that stays.
    """

    def __init__(self, channels: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.spread = nn.Conv2d(channels // 2, width, 3, padding=1)
        self.blend = nn.Conv2d(width, width, 1)
        self.gather = nn.Conv2d(width, channels, 3, padding=1)
        for layer in (self.spread, self.blend):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
            nn.init.zeros_(cast(Tensor, layer.bias))
        _set_to_zero(self.gather)

    def moments(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """Return (t, g) of the half that is moved, for the half `a` that stays."""
        h, t = self.gather(F.relu(self.blend(F.relu(self.spread(a))))).chunk(2, dim=1)
        return t, LOG_SCALE_BOUND * torch.tanh(h / LOG_SCALE_BOUND)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return (y, log-determinant [N]) for x [N, c, H, W]."""
        a, v = x.chunk(2, dim=1)
        t, g = self.moments(a)
        return torch.cat([a, (v + t) * g.exp()], dim=1), g.sum(dim=(1, 2, 3))

    def inverse(self, y: Tensor) -> Tensor:
        """Return x for y, both [N, c, H, W]."""
        a, v = y.chunk(2, dim=1)
        t, g = self.moments(a)
        return torch.cat([a, v * (-g).exp() - t], dim=1)


class Split(nn.Module):
    """Standardises the channels that leave by those that stay: z = (y - mu(x)) e^-l(x).

    l = 2 tanh(l' / 2); a new Split is the identity.
    """

    def __init__(self, stays: int, leaves: int) -> None:
        super().__init__()
        self.prior = nn.Conv2d(stays, 2 * leaves, 3, padding=1)
        _set_to_zero(self.prior)

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return (mu, l) of the channels that leave, for those that stay, x."""
        mean, raw = self.prior(x).chunk(2, dim=1)
        return mean, SPLIT_BOUND * torch.tanh(raw / SPLIT_BOUND)


class Top(nn.Module):
    """The last level's prior: a mean and a bounded log-scale for each coordinate.

    A new Top is the identity.
    """

    def __init__(self, channels: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(channels, *grid))
        self.raw_log_scale = nn.Parameter(torch.zeros(channels, *grid))

    def log_scale(self) -> Tensor:
        """Return l = 2 tanh(l' / 2), [c, H, W]."""
        return SPLIT_BOUND * torch.tanh(self.raw_log_scale / SPLIT_BOUND)


def _set_to_zero(layer: nn.Conv2d) -> None:
    """Let the layer give 0 at first, so that its map starts as the identity."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(cast(Tensor, layer.bias))
