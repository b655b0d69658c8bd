"""The sizes of the flows that benchmarks/flow.py measures."""

from dataclasses import dataclass

import torch
from torch import Tensor

from common.models.glow import Glow
from common.models.glow_start import initialise_from_noise


@dataclass(frozen=True)
class Layout:
    """A flow's sizes and the batch it is measured at."""

    size_px: int
    levels: int
    steps: int
    width: int
    batch: int
    channels: int = 1

    def flow(self) -> Glow:
        """Our flow at its start without data."""
        model = Glow(self.size_px, self.channels, self.levels, self.steps, self.width)
        initialise_from_noise(model, 32)
        return model

    def images(self, count: int | None = None) -> Tensor:
        """Random pictures of that size."""
        return torch.rand(count or self.batch, self.channels, self.size_px, self.size_px) - 0.5


FULL = {
    "speed": Layout(32, 3, 8, 64, 16),
    "speed_64": Layout(64, 4, 8, 64, 8),
    "exact_128": Layout(128, 5, 8, 96, 2),
    "noise": Layout(32, 3, 8, 32, 16),
}
QUICK = {
    "speed": Layout(16, 2, 2, 8, 4),
    "speed_64": Layout(16, 2, 2, 16, 2),
    "exact_128": Layout(16, 2, 1, 8, 2),
    "noise": Layout(16, 2, 2, 8, 4),
}
