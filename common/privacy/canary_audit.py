"""The audit of a tally of canaries: a lower bound on epsilon, and the noise meter.

In: a `Tally` (canaries.py), what the plan claims. Out: a lower bound, a variance ratio, a `fault`.
Guarantees:
1. The bound holds with its confidence for whatever mechanism made the scores.
2. False alarms of `fault` are at most as frequent as `FALSE_ALARM` over all rounds of a model.
3. Which canaries are guessed is fixed beforehand.
Not covered: a proof of privacy. One run shows a part, and the bound has a ceiling. At half the
noise the bound can still lie below the claim; the noise meter then fails. Neither sees a fault
that touches real patients alone, such as a loss that mixes patients.

Source: Steinke, Nasr and Jagielski 2023, algorithm 1, theorem 5.2, corollary 5.4 and appendix D.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from common.arrays import Floats
from common.privacy.accounting import epsilon_pld
from common.privacy.canaries import Tally
from common.privacy.mechanisms import SubsampledGaussian

CONFIDENCE = 0.95  # of the bound that is printed
FALSE_ALARM = 1e-4  # of the gate, over all rounds of one model at one site
TESTS = 3  # a round: the noise meter on the round, on all rounds, and the bound


# --- the lower bound ------------------------------------------------------------------------------


def guess_count(canaries: int) -> int:
    """Return how many canaries are guessed: half of them, in equal parts in and out."""
    return 2 * (canaries // 4)


def count_correct(tally: Tally) -> int:
    """Return how many guesses are right.

    The highest scores are guessed in, the lowest out; equal scores are ordered by number.
    """
    half = guess_count(len(tally.included)) // 2
    order = np.argsort(tally.scores, kind="stable")
    guessed_in = order[len(order) - half :]
    guessed_out = order[:half]
    return int(tally.included[guessed_in].sum() + (~tally.included[guessed_out]).sum())


def p_value(count: int, guessed: int, right: int, epsilon: float, delta: float) -> float:
    """Return the largest probability of at least `right` right guesses under (epsilon, delta)-DP.

    `guessed` of `count` canaries are guessed. P[B >= v] + 2·M·delta·max_i P[v - i <= B < v] / i
    with B ~ Binomial(r, 1 / (1 + e^-epsilon)): Steinke et al. 2023, theorem 5.2, corollary 5.4.
    """
    pmf = _binomial(guessed, epsilon)
    below = np.cumsum(pmf[:right][::-1]) / np.arange(1, right + 1)
    return min(1.0, float(pmf[right:].sum()) + 2.0 * count * delta * float(below.max(initial=0.0)))


def epsilon_at_least(
    count: int, guessed: int, right: int, delta: float, confidence: float = CONFIDENCE
) -> float:
    """Return the largest epsilon that `right` right guesses refute at `confidence`.

    It is a lower bound on epsilon at `delta`; 0 where nothing is refuted.
    """
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
        if refuted(middle):
            low = middle
        else:
            high = middle
    return low


def ceiling(count: int, delta: float, confidence: float = CONFIDENCE) -> float:
    """Return the bound that perfect guesses would give: the most that `count` canaries can show."""
    return epsilon_at_least(count, guess_count(count), guess_count(count), delta, confidence)


def _binomial(n: int, epsilon: float) -> Floats:
    """P[B = 0 … n] for B ~ Binomial(n, 1 / (1 + e^-epsilon)), fp64 [n + 1]."""
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    k = np.arange(n + 1)
    # The logarithm of the probability; that of the other side is less by epsilon.
    right = -math.log1p(math.exp(-epsilon))
    pmf: Floats = np.exp(logs[n] - logs[k] - logs[n - k] + n * right - (n - k) * epsilon)
    return pmf


# --- the noise meter ------------------------------------------------------------------------------


def noise_ratio(tally: Tally, deviation: float) -> tuple[float, int]:
    """Return the variance of the updates along left-out canaries over `deviation`², and the draws.

    1 and 0 without any.
    """
    out = ~tally.included
    draws = int(out.sum()) * tally.steps
    if not draws:
        return 1.0, 0
    return float(tally.squares[out].sum()) / (draws * deviation**2), draws


def meter_p_value(ratio: float, draws: int) -> float:
    """Return at most the probability of a variance ratio that far from 1 in Gaussian draws.

    Chernoff's bound on a chi-square, both tails; it holds at every number of draws.
    """
    if not draws:
        return 1.0
    if ratio <= 0.0:
        return 0.0
    return min(1.0, 2.0 * math.exp(-draws / 2 * (ratio - 1.0 - math.log(ratio))))


# --- the gate's rule ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """What the plan says of one model.

    `event`: of one round. `deviation`: of the noise in an update, sigma·C/B.
    """

    event: SubsampledGaussian
    deviation: float
    delta: float
    rounds: int
    canaries: int

    @property
    def level(self) -> float:
        """False-alarm rate of one test; all tests of all rounds together keep to `FALSE_ALARM`."""
        return FALSE_ALARM / (TESTS * self.rounds)

    @property
    def test_delta(self) -> float:
        """The delta at which the gate compares.

        So small that the delta term of the theorem cannot hide a refutation.
        """
        return min(self.delta, self.level / (4 * max(1, self.canaries)))


def fault(latest: Tally, total: Tally, claim: Claim) -> str:
    """Return what refutes the claim, in the latest round or in all rounds together.

    An empty string where nothing does.
    """
    if len(latest.included) != claim.canaries or latest.steps != claim.event.steps:
        return (
            f"{len(latest.included)} canaries over {latest.steps} steps, "
            f"expected {claim.canaries} over {claim.event.steps}"
        )
    for name, tally in (("the round", latest), ("all rounds", total)):
        ratio, draws = noise_ratio(tally, claim.deviation)
        if meter_p_value(ratio, draws) < claim.level:
            return (
                f"the noise of {name} has {ratio:.3f} times the plan's variance "
                f"over {draws:,} draws"
            )
    return _bound_fault(total, claim)


def _bound_fault(total: Tally, claim: Claim) -> str:
    """Whether the lower bound exceeds what the accountant charged, in words."""
    bound = _lower_bound(total, claim.test_delta, 1.0 - claim.level)
    if bound <= 0.0:  # then the accountant, which takes seconds, is not needed
        return ""
    spent = epsilon_pld([_with_steps(claim.event, total.steps)], claim.test_delta)
    if bound <= spent:
        return ""
    return (
        f"epsilon is at least {bound:.2f} at delta {claim.test_delta:.1g}, "
        f"the accountant says at most {spent:.2f}"
    )


def _with_steps(event: SubsampledGaussian, steps: int) -> SubsampledGaussian:
    return SubsampledGaussian(event.q, event.noise_multiplier, steps, event.dimension, event.model)


def _lower_bound(tally: Tally, delta: float, confidence: float) -> float:
    count = len(tally.included)
    right = count_correct(tally)
    return epsilon_at_least(count, guess_count(count), right, delta, confidence)


# --- the operator's rehearsal ---------------------------------------------------------------------


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Counts, the lower bound at `delta` and `confidence`, the bound's ceiling, the variance ratio.
    """

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
    """Return the findings of a tally."""
    count = len(tally.included)
    return Audit(
        canaries=count,
        steps=tally.steps,
        guesses=guess_count(count),
        correct=count_correct(tally),
        lower_bound=_lower_bound(tally, delta, CONFIDENCE),
        ceiling=ceiling(count, delta),
        delta=delta,
        confidence=CONFIDENCE,
        noise_ratio=noise_ratio(tally, deviation)[0],
    )
