"""Canaries: invented patients on coordinates of their own, which the private step carries along.

In: secret coins that put each of M canaries in or out; the updates of their coordinates.
Out: a `Tally`, which canary_audit.py judges.
Guarantees: no real patient touches a canary's coordinate and the model never uses one. So canaries
cost no privacy and move no weight. Coins and scores are made of noise and public constants alone.

A canary's raw gradient is 10·C on one coordinate; M of them stand after the model's d. It passes
through the whole private step: Poisson sampling, clip, lattice, sum, noise, divisor.
Source: Steinke, Nasr and Jagielski 2023; what we changed: docs/methods/dp-wgan.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.arrays import Floats
from common.errors import RefusedError
from common.privacy.mechanisms import SubsampledGaussian
from common.privacy.noise import LATTICE, Noise

Coins = NDArray[np.bool_]
RAW_NORM = 10.0  # of the clip norm: a canary's gradient before it is clipped
MARGIN = 1e-4  # eta of the private step for a gradient of few coordinates
TALLY_DTYPES = {
    "included": np.uint8,
    "scores": np.float64,
    "squares": np.float64,
    "steps": np.int64,
}


@dataclass(frozen=True)
class Tally:
    """What the canaries' coordinates received over `steps` steps.

    `included`: coins, bool [M]. `scores`, `squares`: sums of the updates and of their squares,
    fp64 [M].
    """

    included: Coins
    scores: Floats
    squares: Floats
    steps: int

    def __add__(self, other: Tally) -> Tally:
        """Both together; raises RefusedError unless the coins are the same."""
        if not np.array_equal(self.included, other.included):
            raise RefusedError("canaries: these tallies are of different coins", code="E-CANARIES")
        steps = self.steps + other.steps
        return Tally(self.included, self.scores + other.scores, self.squares + other.squares, steps)

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Return the tally for a file on site."""
        steps = np.array([self.steps], np.int64)
        return {
            "included": self.included.astype(np.uint8),
            "scores": self.scores,
            "squares": self.squares,
            "steps": steps,
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> Tally:
        """Return the tally in `arrays()`; raises RefusedError (E-CANARIES) for anything else."""
        if not _is_tally(arrays):
            raise RefusedError(
                "canaries: expected included, scores, squares and steps of one length",
                code="E-CANARIES",
            )
        return cls(
            included=arrays["included"].astype(np.bool_),
            scores=np.asarray(arrays["scores"], np.float64),
            squares=np.asarray(arrays["squares"], np.float64),
            steps=int(arrays["steps"][0]),
        )


def _is_tally(arrays: Mapping[str, NDArray[np.generic]]) -> bool:
    """Whether the arrays have a tally's names, dtypes, shapes and finite numbers."""
    if set(arrays) != set(TALLY_DTYPES):
        return False
    count = len(arrays["included"])
    for name, dtype in TALLY_DTYPES.items():
        array = arrays[name]
        shape = (1,) if name == "steps" else (count,)
        if array.dtype != dtype or array.shape != shape or not bool(np.isfinite(array).all()):
            return False
    return int(arrays["steps"][0]) >= 0


class Canaries:
    """The canaries of one model while it trains: which are in, and what they received so far."""

    def __init__(self, included: Coins) -> None:
        self.included = included
        self._scores: Floats = np.zeros(len(included))
        self._squares: Floats = np.zeros(len(included))
        self._steps = 0

    def __len__(self) -> int:
        return len(self.included)

    def sampled(self, coins: Coins) -> NDArray[np.int64]:
        """Return the canaries that are in and that the sampling coins [M] select."""
        return np.flatnonzero(self.included & coins)

    def observe(self, update: Floats) -> None:
        """Add one step's update of the dummy coordinates, fp64 [M]."""
        self._scores += update
        self._squares += update**2
        self._steps += 1

    def tally(self) -> Tally:
        """Return what was observed so far."""
        return Tally(self.included, self._scores.copy(), self._squares.copy(), self._steps)


def draw(noise: Noise, count: int) -> Coins:
    """Return `count` secret fair coins: which canaries are in."""
    return noise.bernoulli(0.5, count)


def rehearse(
    canaries: Canaries, event: SubsampledGaussian, clip: float, divisor: float, noise: Noise
) -> None:
    """Run the private step on the dummy coordinates alone: no model, no patient.

    Its steps 2 and 5 to 8, `event.steps` times.
    """
    image = to_lattice(np.float32(RAW_NORM * clip), clip)
    scale = clip / (LATTICE * divisor)
    for _ in range(event.steps):
        total = np.zeros(len(canaries))
        total[canaries.sampled(noise.bernoulli(event.q, len(canaries)))] = image
        noised = total + noise.gaussian_lattice(len(canaries), event.noise_multiplier)
        canaries.observe((noised * scale).astype(np.float32).astype(np.float64))


def to_lattice(gradient: np.float32, clip: float) -> float:
    """Return a one-coordinate gradient, clipped and rounded in fp32.

    To the bit as client/learn/lattice.py does it.
    """
    norm = abs(float(gradient))
    bound = (1.0 - MARGIN) * clip
    shrink = bound / norm if norm > bound else 1.0
    factor = np.float32(shrink * (LATTICE / clip))
    return float(np.rint(gradient * factor))
