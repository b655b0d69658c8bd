"""How long a pretraining runs, whether it continues an earlier one, and whom it tells."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from common.errors import ConfigurationError

NO_LIMIT = 1 << 40
Progress = Callable[[int, float], None]


def say_nothing(step: int, share: float) -> None:
    """Report no progress."""


def usable_device(name: str) -> torch.device:
    """Return a torch device; raises ConfigurationError where this machine lacks it."""
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigurationError(
            f"pretrain: --device {name}: expected cpu, or cuda where torch sees a GPU",
            hint="let `nvidia-smi` list the GPU and install torch for CUDA, or take --device cpu",
        ) from error
    return device


@dataclass(frozen=True)
class Session:
    """The limits of one run, counted from the first run in its folder.

    `progress` is called with the steps done and the share done, before each step and at the end.
    """

    minutes: float = math.inf
    steps: int = NO_LIMIT
    resume: bool = False
    device: str = "cpu"  # a torch device
    progress: Progress = say_nothing

    def check(self) -> None:
        """Raise ConfigurationError where neither limit is given."""
        if math.isinf(self.minutes) and self.steps >= NO_LIMIT:
            raise ConfigurationError("pretrain: give minutes or steps")

    def share(self, step: int, seconds: float) -> float:
        """Return the share done, by the limit that ends first; 1 or more ends the run."""
        return max(seconds / (60 * self.minutes), step / self.steps)
