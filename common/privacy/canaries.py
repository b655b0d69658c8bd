"""A one-run audit of the private step: invented patients on coordinates of their own, a lower bound on epsilon, a noise meter.

In: secret coins that put each of M canaries in or out, and what the private steps added to its coordinate. Out: a `Tally`, and
of it a lower bound on epsilon at a stated confidence and the noise's measured variance against the plan's.
Each canary is a patient whose raw gradient is 10·C on one dummy coordinate; M of them stand after the model's d. It takes the
patients' road: Poisson sampling, clip, lattice, sum, noise, divisor. No real patient touches a dummy coordinate and the model
never uses one: canaries cost no privacy and move no weight, and coins and scores are made of noise and public constants alone.
Guaranteed: the bound holds with its confidence for whatever mechanism made the scores; false alarms of `fault` are at most as
frequent as `FALSE_ALARM` over all rounds of a model (the meter's tail is Chernoff's, exact at every size); which canaries are
guessed is fixed beforehand.
Not: a proof of privacy. A low bound proves little: one run sees a part of what it could, the bound has a ceiling (`ceiling`),
and noise at half its strength can read below the claim. The meter is what notices that: it measures the noise itself, on
coordinates where nothing else is. Neither sees a fault that touches real patients alone (a loss that mixes patients).

Sources: Steinke, Nasr and Jagielski 2023, "Privacy auditing with one (1) training run", algorithm 1, theorem 5.2, corollary
5.4 and appendix D; methods/dp-training.md, section 9.4.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.arrays import Floats
from common.errors import RefusedError
from common.privacy.accounting import epsilon_pld
from common.privacy.mechanisms import SubsampledGaussian
from common.privacy.noise import LATTICE, Noise

Coins = NDArray[np.bool_]
RAW_NORM = 10.0  # of the clip norm: a canary's gradient before it is clipped
MARGIN = 1e-4  # eta of the private step for a gradient of few coordinates
CONFIDENCE = 0.95  # of the bound that is printed
FALSE_ALARM = 1e-4  # of the gate, over all rounds of one model at one site
TESTS = 3  # a round: the meter on the round, the meter on all rounds, the bound


@dataclass(frozen=True)
class Tally:
    """What the canaries' coordinates received: coins bool [M], sums and sums of squares of the updates fp64 [M], over `steps`."""

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
        """The tally for a file on site."""
        steps = np.array([self.steps], np.int64)
        return {
            "included": self.included.astype(np.uint8),
            "scores": self.scores,
            "squares": self.squares,
            "steps": steps,
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> Tally:
        """The tally in `arrays()`; raises RefusedError (E-CANARIES) for anything else."""
        expected = {
            "included": np.uint8,
            "scores": np.float64,
            "squares": np.float64,
            "steps": np.int64,
        }
        count = len(arrays.get("included", ()))
        shapes = {name: (1,) if name == "steps" else (count,) for name in expected}
        fits = set(arrays) == set(expected) and all(
            arrays[name].dtype == dtype and arrays[name].shape == shapes[name]
            for name, dtype in expected.items()
        )
        if (
            not fits
            or not all(bool(np.isfinite(a).all()) for a in arrays.values())
            or int(arrays["steps"][0]) < 0
        ):
            raise RefusedError(
                "canaries: expected included, scores, squares and steps of one length",
                code="E-CANARIES",
            )
        scores, squares = (np.asarray(arrays[name], np.float64) for name in ("scores", "squares"))
        return cls(arrays["included"].astype(np.bool_), scores, squares, int(arrays["steps"][0]))


class Canaries:
    """The canaries of one model while it trains: which are in, and what their coordinates received so far."""

    def __init__(self, included: Coins) -> None:
        self.included = included
        self._scores: Floats = np.zeros(len(included))
        self._squares: Floats = np.zeros(len(included))
        self._steps = 0

    def __len__(self) -> int:
        return len(self.included)

    def drawn(self, coins: Coins) -> NDArray[np.int64]:
        """The canaries that are in and whose sampling coin [M] fell."""
        return np.flatnonzero(self.included & coins)

    def observe(self, update: Floats) -> None:
        """Add one step's update of the dummy coordinates, fp64 [M]."""
        self._scores += update
        self._squares += update**2
        self._steps += 1

    def tally(self) -> Tally:
        """What was observed so far."""
        return Tally(self.included, self._scores.copy(), self._squares.copy(), self._steps)


def draw(noise: Noise, count: int) -> Coins:
    """`count` secret fair coins: which canaries are in."""
    return noise.bernoulli(0.5, count)


# --- the lower bound ----------------------------------------------------------------------------------------------------


def guesses(count: int) -> int:
    """How many canaries are guessed, fixed beforehand: half of them, in equal parts in and out."""
    return 2 * (count // 4)


def correct(tally: Tally) -> int:
    """How many guesses are right: the highest scores are guessed in, the lowest out; equal scores by number."""
    half = guesses(len(tally.included)) // 2
    order = np.argsort(tally.scores, kind="stable")
    return int(
        tally.included[order[len(order) - half :]].sum() + (~tally.included[order[:half]]).sum()
    )


def p_value(count: int, guessed: int, right: int, epsilon: float, delta: float) -> float:
    """The largest chance of `right` or more right guesses, of `guessed` among `count` canaries, under (epsilon, delta)-DP.

    P[B >= v] + 2·M·delta·max_i P[v - i <= B < v] / i with B ~ Binomial(r, 1 / (1 + e^-epsilon)): Steinke et al. 2023,
    theorem 5.2 and corollary 5.4.
    """
    pmf = _binomial(guessed, epsilon)
    below = np.cumsum(pmf[:right][::-1]) / np.arange(1, right + 1)
    return min(1.0, float(pmf[right:].sum()) + 2.0 * count * delta * float(below.max(initial=0.0)))


def epsilon_at_least(
    count: int, guessed: int, right: int, delta: float, confidence: float = CONFIDENCE
) -> float:
    """The largest epsilon that `right` right guesses refute at `confidence`: a lower bound on epsilon at `delta`; 0 if none."""
    level = 1.0 - confidence

    def refuted(epsilon: float) -> bool:
        return p_value(count, guessed, right, epsilon, delta) < level

    if not refuted(0.0):
        return 0.0
    high = 1.0
    while refuted(high):
        high += 1.0
    low = high - 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


def ceiling(count: int, delta: float, confidence: float = CONFIDENCE) -> float:
    """The bound that perfect guesses would give: what an audit of `count` canaries can show at most."""
    return epsilon_at_least(count, guesses(count), guesses(count), delta, confidence)


def _binomial(n: int, epsilon: float) -> Floats:
    """P[B = 0 … n] for B ~ Binomial(n, 1 / (1 + e^-epsilon)), fp64 [n + 1]."""
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    k = np.arange(n + 1)
    right = -math.log1p(
        math.exp(-epsilon)
    )  # log of the chance; that of the other side is less by epsilon
    pmf: Floats = np.exp(logs[n] - logs[k] - logs[n - k] + n * right - (n - k) * epsilon)
    return pmf


# --- the noise meter ----------------------------------------------------------------------------------------------------


def noise_ratio(tally: Tally, deviation: float) -> tuple[float, int]:
    """The variance of the updates along left-out canaries over `deviation`², and of how many draws (1 and 0 without any)."""
    out = ~tally.included
    draws = int(out.sum()) * tally.steps
    return (float(tally.squares[out].sum()) / (draws * deviation**2), draws) if draws else (1.0, 0)


def meter_p_value(ratio: float, draws: int) -> float:
    """At most the chance of a variance ratio that far from 1 in `draws` Gaussian draws (Chernoff, chi-square, both tails)."""
    if ratio <= 0.0:
        return 0.0 if draws else 1.0
    return min(1.0, 2.0 * math.exp(-draws / 2 * (ratio - 1.0 - math.log(ratio))))


# --- the gate's rule ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """What the plan says of one model: a round's event, the noise's deviation in an update (sigma·C/B), delta, rounds, M."""

    event: SubsampledGaussian
    deviation: float
    delta: float
    rounds: int
    canaries: int

    @property
    def level(self) -> float:
        """The false-alarm rate of one test, so that all tests of all rounds together keep to `FALSE_ALARM`."""
        return FALSE_ALARM / (TESTS * self.rounds)

    @property
    def test_delta(self) -> float:
        """The delta at which the gate compares: so small that the theorem's delta term cannot hide a refutation."""
        return min(self.delta, self.level / (4 * max(1, self.canaries)))


def fault(latest: Tally, total: Tally, claim: Claim) -> str:
    """What refutes the claim in the latest round or in all rounds together; "" when nothing does."""
    if len(latest.included) != claim.canaries or latest.steps != claim.event.steps:
        return f"{len(latest.included)} canaries over {latest.steps} steps, expected {claim.canaries} over {claim.event.steps}"
    for name, tally in (("the round", latest), ("all rounds", total)):
        ratio, draws = noise_ratio(tally, claim.deviation)
        if meter_p_value(ratio, draws) < claim.level:
            return f"the noise of {name} has {ratio:.3f} times the plan's variance over {draws:,} draws"
    bound = _lower_bound(total, claim.test_delta, 1.0 - claim.level)
    if bound > 0.0:  # else the accountant need not be asked
        spent = epsilon_pld([_over(claim.event, total.steps)], claim.test_delta)
        if bound > spent:
            return f"epsilon is at least {bound:.2f} at delta {claim.test_delta:.1g}, the accountant says at most {spent:.2f}"
    return ""


def _over(event: SubsampledGaussian, steps: int) -> SubsampledGaussian:
    return SubsampledGaussian(event.q, event.noise_multiplier, steps, event.dimension, event.model)


def _lower_bound(tally: Tally, delta: float, confidence: float) -> float:
    count = len(tally.included)
    return epsilon_at_least(count, guesses(count), correct(tally), delta, confidence)


# --- the operator's rehearsal -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Audit:
    """What an audit found: counts, the lower bound at `delta` and `confidence`, its ceiling, and the meter's variance ratio."""

    canaries: int
    steps: int
    guesses: int
    correct: int
    lower_bound: float
    ceiling: float
    delta: float
    confidence: float
    noise_ratio: float


def audit(tally: Tally, deviation: float, delta: float) -> Audit:
    """The findings of a tally."""
    count = len(tally.included)
    return Audit(
        canaries=count,
        steps=tally.steps,
        guesses=guesses(count),
        correct=correct(tally),
        lower_bound=_lower_bound(tally, delta, CONFIDENCE),
        ceiling=ceiling(count, delta),
        delta=delta,
        confidence=CONFIDENCE,
        noise_ratio=noise_ratio(tally, deviation)[0],
    )


def rehearse(
    canaries: Canaries, event: SubsampledGaussian, clip: float, divisor: float, noise: Noise
) -> None:
    """The private step's steps 2 and 5 to 8 on the dummy coordinates alone, `event.steps` times: no model, no patient."""
    image = to_lattice(np.float32(RAW_NORM * clip), clip)
    for _ in range(event.steps):
        total = np.zeros(len(canaries))
        total[canaries.drawn(noise.bernoulli(event.q, len(canaries)))] = image
        noised = total + noise.gaussian_lattice(len(canaries), event.noise_multiplier)
        canaries.observe(
            (noised * (clip / (LATTICE * divisor))).astype(np.float32).astype(np.float64)
        )


def to_lattice(gradient: np.float32, clip: float) -> float:
    """A one-coordinate gradient clipped and rounded in fp32, to the bit as client/learn/lattice.py does it."""
    norm, bound = abs(float(gradient)), (1.0 - MARGIN) * clip
    factor = np.float32((bound / norm if norm > bound else 1.0) * (LATTICE / clip))
    return float(np.rint(gradient * factor))
