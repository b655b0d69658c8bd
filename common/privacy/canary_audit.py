"""The audit of a tally: a lower bound on epsilon, and the check of noise and clip.

In: a `Tally` (tally.py), what the plan claims. Out: a lower bound, the measured noise, a `fault`.
Guarantees:
1. The bound holds with its confidence for whatever mechanism made the scores.
2. False alarms of `fault` are at most as frequent as `FALSE_ALARM` over all rounds of a model.
3. Which canaries are guessed is fixed beforehand.
Not covered: a proof of privacy. One run shows a part, and the bound has a ceiling. At half the
noise the bound can still lie below the claim; the meters (noise_meter.py) then fail. Neither sees
a fault that touches real patients alone, such as a loss that mixes patients.

Source: Steinke, Nasr and Jagielski 2023, algorithm 1, theorem 5.2, corollary 5.4 and appendix D.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from common.arrays import Floats
from common.privacy.accounting import epsilon_pld
from common.privacy.canaries import inside_count
from common.privacy.mechanisms import SubsampledGaussian
from common.privacy.noise_meter import (
    clip_p_value,
    freshness_ratio,
    mean_length,
    meter_p_value,
    noise_ratio,
    release_p_value,
)
from common.privacy.price import at_least, at_most
from common.privacy.tally import KINDS, Heard, Tally

CONFIDENCE = 0.95  # of the bound that is printed
FALSE_ALARM = 1e-4  # of the gate, over all rounds of one model at one site
# A round is tested alone and with all rounds before it (2 times noise and clip of two kinds of
# canaries, and the release); all rounds together also for fresh noise and for the bound (2 kinds).
TESTS = 2 * (2 + 2 + 1) + 2 + 2


# --- the lower bound ------------------------------------------------------------------------------


def guess_count(canaries: int) -> int:
    """Return how many canaries are guessed: half of them, in equal parts in and out."""
    return 2 * (canaries // 4)


def count_correct(heard: Heard) -> int:
    """Return how many guesses are right.

    The highest scores are guessed in, the lowest out; equal scores are ordered by number.
    """
    half = guess_count(len(heard)) // 2
    order = np.argsort(heard.scores, kind="stable")
    guessed_in = order[len(order) - half :]
    guessed_out = order[:half]
    return int(heard.included[guessed_in].sum() + (~heard.included[guessed_out]).sum())


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


# --- the gate's rule ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """What the plan says of one model.

    `event`: of one round. `clip`: C. `divisor`: B. `canaries`: M, on dummy coordinates.
    """

    event: SubsampledGaussian
    clip: float
    divisor: float
    delta: float
    rounds: int
    canaries: int

    @property
    def dimension(self) -> int:
        """The trained numbers."""
        return self.event.dimension - self.canaries

    @property
    def inside(self) -> int:
        """The canaries inside the model."""
        return inside_count(self.canaries, self.dimension)

    @property
    def length(self) -> float:
        """How long a clipped gradient is in an update."""
        return self.clip / self.divisor

    @property
    def deviation(self) -> float:
        """The deviation of the noise in an update."""
        return self.event.noise_multiplier * self.length

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
    wrong = _shape_fault(latest, claim)
    if wrong:
        return wrong
    for name, tally in (("the round", latest), ("all rounds", total)):
        wrong = _meter_fault(tally, claim)
        if wrong:
            return f"{wrong} in {name}"
    for kind in KINDS:
        heard: Heard = getattr(total, kind)
        ratio, draws = freshness_ratio(heard, total.steps, claim.deviation)
        if meter_p_value(ratio, draws) < claim.level:
            return f"the sum of the noise of all steps has {ratio:.3f} times the plan's variance"
        wrong = _bound_fault(heard, total.steps, claim)
        if wrong:
            return wrong
    return ""


def _shape_fault(latest: Tally, claim: Claim) -> str:
    """Whether a tally is of another number of canaries, steps or trained numbers."""
    found = (len(latest.own), len(latest.inside), int(latest.sizes.sum()), latest.steps)
    expected = (claim.canaries, claim.inside, claim.dimension, claim.event.steps)
    if found == expected:
        return ""
    return f"{_shape(found)}, expected {_shape(expected)}"


def _shape(numbers: tuple[int, int, int, int]) -> str:
    own, inside, dimension, steps = numbers
    return f"{own}+{inside} canaries in {dimension:,} trained numbers over {steps} steps"


def _meter_fault(tally: Tally, claim: Claim) -> str:
    """Whether noise, clip or the whole release are not the plan's, in words."""
    for kind in KINDS:
        heard: Heard = getattr(tally, kind)
        ratio, draws = noise_ratio(heard, tally.steps, claim.deviation)
        if meter_p_value(ratio, draws) < claim.level:
            return f"the noise has {ratio:.3f} times the plan's variance over {draws:,} draws"
        if clip_p_value(heard, claim.length, claim.deviation) < claim.level:
            length = mean_length(heard) / claim.length
            return f"a clipped gradient is {length:.3f} times as long as the clip norm"
    if release_p_value(tally, claim.event.noise_multiplier, claim.deviation) < claim.level:
        return "all released tensors, or one of them, are more or less than noise and clipped sums"
    return ""


def _bound_fault(heard: Heard, steps: int, claim: Claim) -> str:
    """Whether the lower bound exceeds what the accountant charged, in words."""
    bound = _lower_bound(heard, claim.test_delta, 1.0 - claim.level)
    if bound <= 0.0:  # then the accountant, which takes seconds, is not needed
        return ""
    spent = epsilon_pld([_with_steps(claim.event, steps)], claim.test_delta)
    if bound <= spent:
        return ""
    return (
        f"epsilon is at least {at_least(bound)} at delta {claim.test_delta:.1g}, "
        f"the accountant says at most {at_most(spent)}"
    )


def _with_steps(event: SubsampledGaussian, steps: int) -> SubsampledGaussian:
    return SubsampledGaussian(event.q, event.noise_multiplier, steps, event.dimension, event.model)


def _lower_bound(heard: Heard, delta: float, confidence: float) -> float:
    count = len(heard)
    right = count_correct(heard)
    return epsilon_at_least(count, guess_count(count), right, delta, confidence)
