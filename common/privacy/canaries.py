"""Canaries: invented patients whom the private step samples, clips, sums and noises like patients.

In: secret coins and places, drawn once for each model of a plan; what the steps released.
Out: a `Tally` (tally.py), which canary_audit.py judges.
Guarantees: what a canary hears is made of its own clipped gradient, of noise and of public
constants; of a patient's data it has no more than float32's rounding. No canary moves a weight.

Each canary is in with probability 1/2, and its raw gradient is 10·C long, so the clip is at work.
Two kinds:
  own      M canaries, each on a dummy coordinate after the model's d, which no model uses
  inside   about M/2 canaries, each along a secret direction of the trained tensors: random signs on
           a secret block of coordinates. The step takes their share out again after it was measured
Source: Steinke, Nasr and Jagielski 2023; what we changed: docs/methods/dp-wgan.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.arrays import Floats
from common.errors import RefusedError
from common.privacy.noise import Noise
from common.privacy.tally import Coins, Counts, FileArrays, Tally, silence

RAW_NORM = 10.0  # of the clip norm: a canary's gradient before it is clipped
LARGEST_BLOCK = 64  # coordinates of one direction
SECRET_DTYPES = {"own": np.uint8, "inside": np.uint8, "places": np.int64, "signs": np.int32}


def inside_count(canaries: int, dimension: int) -> int:
    """Return how many canaries lie inside a model of `dimension` trained numbers."""
    return min((canaries + 1) // 2, dimension)


def block_size(inside: int, dimension: int) -> int:
    """Return how many coordinates each of the directions has; no two share one."""
    return max(1, min(LARGEST_BLOCK, dimension // max(1, inside)))


@dataclass(frozen=True)
class Secret:
    """Which canaries are in, and where those inside the model lie.

    `own` [M], `inside` [R]: coins. `places` [R, b]: coordinates of the trained tensors, in the
    order of the parameters. `signs` [R, b]: 1 or -1.
    """

    own: Coins
    inside: Coins
    places: Counts
    signs: NDArray[np.int32]

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Return it for a file on site."""
        return {
            "own": self.own.astype(np.uint8),
            "inside": self.inside.astype(np.uint8),
            "places": self.places,
            "signs": self.signs,
        }

    @classmethod
    def from_arrays(cls, arrays: FileArrays) -> Secret:
        """Return the secret in `arrays()`; raises RefusedError (E-CANARIES) for anything else."""
        if not _is_secret(arrays):
            raise RefusedError(
                "canaries: not the canaries of this version",
                hint="the file is of another version of kohort-site, or damaged",
                code="E-CANARIES",
            )
        return cls(
            arrays["own"].astype(np.bool_),
            arrays["inside"].astype(np.bool_),
            np.asarray(arrays["places"], np.int64),
            np.asarray(arrays["signs"], np.int32),
        )


def _is_secret(arrays: FileArrays) -> bool:
    """Whether the arrays have a secret's names, dtypes, shapes and values."""
    if set(arrays) != set(SECRET_DTYPES):
        return False
    if any(arrays[name].dtype != dtype for name, dtype in SECRET_DTYPES.items()):
        return False
    own, inside = arrays["own"], arrays["inside"]
    places, signs = arrays["places"], arrays["signs"]
    if (own.ndim, inside.ndim, places.ndim) != (1, 1, 2):
        return False
    if places.shape != signs.shape or len(places) != len(inside):
        return False
    distinct = len(np.unique(places)) == places.size
    negative = bool((np.asarray(places, np.int64) < 0).any())
    return distinct and not negative and bool((np.abs(np.asarray(signs, np.int64)) == 1).all())


def draw(noise: Noise, count: int, dimension: int) -> Secret:
    """Return secret fair coins for `count` canaries, and secret directions of the trained tensors.

    `dimension`: the trained numbers.
    """
    inside = inside_count(count, dimension)
    block = block_size(inside, dimension)
    order = np.argsort(noise.uniform_u64(dimension), kind="stable")
    places = order[: inside * block].reshape(inside, block).astype(np.int64)
    heads = noise.bernoulli(0.5, inside * block).reshape(inside, block)
    signs = np.where(heads, 1, -1).astype(np.int32)
    return Secret(noise.bernoulli(0.5, count), noise.bernoulli(0.5, inside), places, signs)


def nobody() -> Secret:
    """Return the secret of a plan without canaries."""
    no_coins = np.zeros(0, np.bool_)
    return Secret(no_coins, no_coins, np.zeros((0, 1), np.int64), np.zeros((0, 1), np.int32))


class Canaries:
    """The canaries of one model while it trains: which are in, and what they received so far."""

    def __init__(self, secret: Secret) -> None:
        self.secret = secret
        self._own = silence(secret.own)
        self._inside = silence(secret.inside)
        self._sizes: Counts = np.zeros(0, np.int64)
        self._released: Floats = np.zeros(0)
        self._signal = 0.0
        self._steps = 0

    @property
    def own(self) -> int:
        """How many have a dummy coordinate."""
        return len(self.secret.own)

    @property
    def inside(self) -> int:
        """How many lie inside the model."""
        return len(self.secret.inside)

    def sampled(self, coins: Coins) -> tuple[Counts, Counts]:
        """Return the canaries that are in and that the sampling coins [M + R] select, by kind."""
        own = np.flatnonzero(self.secret.own & coins[: self.own])
        return own, np.flatnonzero(self.secret.inside & coins[self.own :])

    def gradient(self, clip: float) -> Floats:
        """Return the raw gradient of a direction at its places, before signs: fp64 [b]."""
        block = self.secret.places.shape[1]
        return np.full(block, RAW_NORM * clip / math.sqrt(block))

    def project(self, at_places: Floats) -> Floats:
        """Return the components of a vector along the directions; `at_places` is fp64 [R, b]."""
        block = self.secret.places.shape[1]
        along: Floats = (at_places * self.secret.signs).sum(1) / math.sqrt(block)
        return along

    def observe(self, sampled: tuple[Counts, Counts], own: Floats, inside: Floats) -> None:
        """Add what one step's canaries heard: fp64 [M] and [R]."""
        for heard, numbers, drawn in (
            (self._own, own, sampled[0]),
            (self._inside, inside, sampled[1]),
        ):
            heard.scores[:] += numbers
            heard.squares[:] += numbers**2
            heard.drawn[drawn] += 1
            heard.drawn_scores[drawn] += numbers[drawn]
        self._steps += 1

    def observe_release(self, sizes: Sequence[int], squares: Floats, patients: int) -> None:
        """Add one step's squares of what was released, by tensor, and how many were drawn."""
        if not len(self._sizes):
            self._sizes = np.array(sizes, np.int64)
            self._released = np.zeros(len(sizes))
        self._released += squares
        self._signal += float(patients) ** 2

    def tally(self) -> Tally:
        """Return what was observed so far."""
        own = self._own + silence(self.secret.own)  # copies
        inside = self._inside + silence(self.secret.inside)
        return Tally(own, inside, self._sizes, self._released.copy(), self._signal, self._steps)
