"""The public options of a flow's pretraining."""

from __future__ import annotations

import math
from dataclasses import dataclass

from common.errors import ConfigurationError


@dataclass(frozen=True)
class Pretraining:
    """The options of one pretraining, all public."""

    levels: int = 4
    steps_per_level: int = 6
    width: int = 40
    doublings: int = 0
    batch: int = 16
    minutes: float = 40.0
    steps: int = 1 << 40
    learning_rate: float = 1e-3
    input_noise: float = 0.03
    average: float = 0.999
    shift_px: int = 1
    flips: str = "both"  # both, horizontal or none
    films: bool = False  # show each image as another chest film (server/public_data/film.py)
    depths: tuple[int, ...] = (8,)
    reversible: bool = False  # store one tensor a level, not every activation; a third more time
    compiled: bool = False  # torch.compile: minutes once, then faster steps
    seed: int = 0

    def __post_init__(self) -> None:
        if self.flips not in ("both", "horizontal", "none"):
            raise ConfigurationError(
                f"pretrain: flips {self.flips!r}: expected both, horizontal or none"
            )
        if self.films and self.flips != "none":
            raise ConfigurationError(
                f"pretrain: films with flips {self.flips!r}: a chest has its heart on one side",
                hint="take flips none",
            )
        possible = all(1 <= depth <= 8 for depth in self.depths)
        if not self.depths or not possible or self.depths[-1] != 8:
            raise ConfigurationError(
                f"pretrain: depths {self.depths}: expected 1 to 8 bits each, 8 at last"
            )
        if self.reversible and self.compiled:
            raise ConfigurationError(
                "pretrain: reversible and compiled exclude each other", hint="drop one of them"
            )

    def depth(self, share: float) -> int:
        """Return the bits of the pixels when `share` of the run is done."""
        stage = math.floor(2 * share * (len(self.depths) - 1))
        return self.depths[min(stage, len(self.depths) - 1)]
