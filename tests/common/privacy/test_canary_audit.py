"""The canary audit: the paper's numbers, closed forms, coverage, and false alarms."""

from __future__ import annotations

import dataclasses
import math
from statistics import median

import numpy as np
import pytest
from scipy import stats

from common.privacy.accounting import epsilon_pld
from common.privacy.canaries import Canaries, Tally, draw, rehearse
from common.privacy.canary_audit import (
    FALSE_ALARM,
    Claim,
    audit,
    ceiling,
    count_correct,
    epsilon_at_least,
    fault,
    guess_count,
    meter_p_value,
    noise_ratio,
    p_value,
)
from common.privacy.mechanisms import SubsampledGaussian
from common.privacy.noise import LATTICE, SeededNoiseSource


def tally_of(
    event: SubsampledGaussian, count: int, seed: int, *, louder: float = 1.0, raw: float = 1.0
) -> Tally:
    """The tally of a rehearsal with C = 1 and B = 64.

    `louder`: its noise over the stated one. `raw`: the canaries' gradient in clip norms.
    """
    noise = SeededNoiseSource(seed)
    canaries = Canaries(draw(noise, count))
    if (louder, raw) == (1.0, 1.0):
        rehearse(canaries, event, 1.0, 64, noise)
        return canaries.tally()
    for _ in range(event.steps):
        total = np.zeros(count)
        total[canaries.sampled(noise.bernoulli(event.q, count))] = raw * LATTICE
        z = noise.gaussian_lattice(count, event.noise_multiplier * louder) if louder else 0
        canaries.observe((total + z) / (LATTICE * 64))
    return canaries.tally()


def claim(event: SubsampledGaussian, count: int, rounds: int = 1) -> Claim:
    return Claim(event, event.noise_multiplier / 64, 1e-5, rounds, count)


def test_the_papers_own_number_comes_out() -> None:
    assert epsilon_at_least(1000, 100, 75, 1e-4) == pytest.approx(0.673, abs=5e-4)  # appendix D


@pytest.mark.parametrize(
    ("count", "expected"), [(32, 2.32), (100, 3.49), (300, 4.60), (1000, 5.81)]
)
def test_perfect_guesses_without_delta_reach_the_closed_form(count: int, expected: float) -> None:
    share = 0.05 ** (1 / count)  # P[all right] = share^M = 0.05
    found = epsilon_at_least(count, count, count, 0.0)
    assert found == pytest.approx(math.log(share / (1 - share)), abs=1e-6)
    assert found == pytest.approx(expected, abs=0.01)
    assert epsilon_at_least(count, count, count, 1e-5) < found


def test_the_p_value_is_the_theorems() -> None:
    for count, guessed, right, epsilon, delta in (
        (40, 20, 15, 0.7, 1e-3),
        (300, 150, 120, 2.0, 1e-5),
        (8, 4, 0, 1.0, 0.1),
    ):
        law = stats.binom(guessed, 1 / (1 + math.exp(-epsilon)))
        alpha = max(
            (float(law.cdf(right - 1) - law.cdf(right - i - 1)) / i for i in range(1, right + 1)),
            default=0.0,
        )
        expected = min(1.0, float(law.sf(right - 1)) + 2 * count * delta * alpha)
        assert p_value(count, guessed, right, epsilon, delta) == pytest.approx(expected, rel=1e-9)


def test_the_bound_exceeds_the_truth_at_most_as_often_as_stated() -> None:
    """Randomized response is the tightest (epsilon, 0) mechanism.

    Guesses are right with probability 1 / (1 + e^-epsilon).
    """
    truth = 1.3
    right = np.random.default_rng(0).binomial(100, 1 / (1 + math.exp(-truth)), 2000)
    above = np.mean(
        [
            epsilon_at_least(200, 100, int(v), 0.0) > truth
            for v in np.unique(right)
            for _ in range(np.sum(right == v))
        ]
    )
    assert 0.02 < above <= 0.06  # close to 5 %: the bound is not idle either


def test_too_few_guesses_refute_nothing() -> None:
    assert epsilon_at_least(4, guess_count(4), guess_count(4), 1e-5) == 0.0
    assert epsilon_at_least(300, 150, 70, 1e-5) == 0.0
    assert ceiling(0, 1e-5) == 0.0


def test_guesses_are_fixed_beforehand_and_take_the_extremes() -> None:
    assert [guess_count(count) for count in (0, 3, 4, 10, 300)] == [0, 0, 2, 4, 150]
    included = np.array([True, False] * 4)
    scores = np.where(included, 1.0, -1.0)
    assert count_correct(Tally(included, scores, scores**2, 1)) == 4
    assert count_correct(Tally(included, -scores, scores**2, 1)) == 0


def test_an_honest_run_reads_the_expected_bound() -> None:
    """Median about 1.7 where the plan claims 8.03, by 300 canaries over 2,000 steps."""
    event = SubsampledGaussian(0.064, 1.87, 2000)
    found = [audit(tally_of(event, 300, seed), 1.87 / 64, 1e-5) for seed in range(5)]
    assert 1.3 < median(one.lower_bound for one in found) < 2.1
    assert all(abs(one.noise_ratio - 1) < 0.01 for one in found)
    assert found[0].ceiling == pytest.approx(3.9, abs=0.01)  # half the canaries are guessed


EVENT = SubsampledGaussian(0.25, 3.0, 12)


@pytest.mark.parametrize("seed", range(4))
def test_an_honest_round_raises_no_alarm(seed: int) -> None:
    one, two = tally_of(EVENT, 300, seed), tally_of(EVENT, 300, seed + 50)
    two = dataclasses.replace(two, included=one.included)
    assert fault(one, one, claim(EVENT, 300, rounds=3)) == ""
    assert noise_ratio(one + one, 3.0 / 64)[1] == 2 * noise_ratio(one, 3.0 / 64)[1]


def test_the_noise_meter_fails_at_half_sigma() -> None:
    weak = tally_of(EVENT, 300, 1, louder=0.5)
    assert noise_ratio(weak, 3.0 / 64)[0] == pytest.approx(0.25, abs=0.03)
    assert "times the plan's variance" in fault(weak, weak, claim(EVENT, 300, rounds=1000))


def test_the_noise_meter_fails_at_double_sigma_too() -> None:
    loud = tally_of(EVENT, 300, 1, louder=2.0)
    assert "times the plan's variance" in fault(loud, loud, claim(EVENT, 300))


def test_one_quiet_round_is_heard_among_many() -> None:
    honest, weak = tally_of(EVENT, 300, 2), tally_of(EVENT, 300, 2, louder=0.7)
    many = Tally(
        honest.included, honest.scores, np.full(300, 2400 * (3.0 / 64) ** 2), 2400
    )  # 200 rounds of exact variance
    assert fault(honest, many + weak, claim(EVENT, 300, 201)) == ""
    assert "the round" in fault(weak, many + weak, claim(EVENT, 300, 201))


def test_with_noise_off_the_audit_catches_a_claim_of_epsilon_one() -> None:
    event = SubsampledGaussian(0.25, 8.0, 60)
    claimed = epsilon_pld([event], 1e-5)
    assert 0.5 < claimed < 1.1
    silent = tally_of(event, 300, 3, louder=0.0)
    assert audit(silent, 8.0 / 64, 1e-5).lower_bound > claimed
    assert fault(silent, silent, claim(event, 300)) != ""


def test_a_missing_clip_is_refuted_by_the_bound_where_the_meter_hears_nothing() -> None:
    event = SubsampledGaussian(0.25, 8.0, 60)
    unclipped = tally_of(event, 300, 4, raw=10.0)
    assert abs(noise_ratio(unclipped, 8.0 / 64)[0] - 1) < 0.05
    assert "the accountant says at most" in fault(
        unclipped, unclipped, claim(event, 300, rounds=50)
    )


def test_a_tally_of_other_steps_or_canaries_is_a_fault() -> None:
    tally = tally_of(EVENT, 300, 1)
    assert "expected 299 over 12" in fault(tally, tally, claim(EVENT, 299))
    assert "expected 300 over 13" in fault(
        tally, tally, claim(dataclasses.replace(EVENT, steps=13), 300)
    )


def test_the_meters_tail_is_never_below_the_true_one_and_close_to_it() -> None:
    for draws in (5, 100, 10_000):
        for level in (1e-2, 1e-4, 1e-6):
            for ratio in (
                stats.chi2.ppf(level / 2, draws) / draws,
                stats.chi2.isf(level / 2, draws) / draws,
            ):
                assert level <= meter_p_value(float(ratio), draws) < 60 * level


def test_false_alarms_stay_at_their_rate() -> None:
    assert claim(EVENT, 300, rounds=100).level * 3 * 100 == pytest.approx(FALSE_ALARM)
    ratios = np.random.default_rng(1).chisquare(400, 20_000) / 400
    assert np.mean([meter_p_value(float(ratio), 400) < 0.01 for ratio in ratios]) <= 0.01
    assert meter_p_value(1.0, 0) == 1.0  # nothing was measured
    assert meter_p_value(0.0, 10) == 0.0
