"""The canary audit: the paper's numbers, closed forms, coverage, and false alarms."""

from __future__ import annotations

import dataclasses
import math
from statistics import median

import numpy as np
import pytest
from scipy import stats

from common.privacy.accounting import epsilon_pld
from common.privacy.canaries import draw, inside_count
from common.privacy.canary_audit import (
    FALSE_ALARM,
    TESTS,
    Claim,
    ceiling,
    count_correct,
    epsilon_at_least,
    fault,
    guess_count,
    p_value,
)
from common.privacy.mechanisms import SubsampledGaussian
from common.privacy.noise import SeededNoiseSource
from common.privacy.noise_meter import noise_ratio
from common.privacy.tally import Heard, Tally
from common.privacy.tally import silence as nothing_heard
from tests.heard import honest_tally

DIMENSION = 4000  # trained numbers


def of(event: SubsampledGaussian, count: int) -> SubsampledGaussian:
    """The event of a model of DIMENSION trained numbers with `count` canaries."""
    return dataclasses.replace(event, dimension=DIMENSION + count)


def tally_of(
    event: SubsampledGaussian, count: int, seed: int, *, louder: float = 1.0, raw: float = 1.0
) -> Tally:
    """The tally of `count` canaries, and half as many inside, with C = 1 and B = 64.

    `louder`: its noise over the stated one. `raw`: the canaries' gradient in clip norms.
    """
    noise = SeededNoiseSource(seed)
    secret = draw(SeededNoiseSource(99), count, DIMENSION)
    given = of(event, count)
    return honest_tally(secret, given, 1.0, 64, noise, louder=louder, raw=raw)


def claim(event: SubsampledGaussian, count: int, rounds: int = 1) -> Claim:
    return Claim(of(event, count), 1.0, 64, 1e-5, rounds, count)


def bound(heard: Heard) -> float:
    """The lower bound of canaries of one kind."""
    count = len(heard)
    return epsilon_at_least(count, guess_count(count), count_correct(heard), 1e-5)


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
    heard = nothing_heard(included)
    assert count_correct(dataclasses.replace(heard, scores=scores)) == 4
    assert count_correct(dataclasses.replace(heard, scores=-scores)) == 0


def test_an_honest_run_reads_the_expected_bound() -> None:
    """Median about 1.7 where the plan claims 8.03, by 300 canaries over 2,000 steps."""
    event = SubsampledGaussian(0.064, 1.87, 2000, 151 + 300)
    found = []
    for seed in range(3):
        secret = draw(SeededNoiseSource(seed + 50), 300, 151)
        tally = honest_tally(secret, event, 1.0, 64, SeededNoiseSource(seed))
        found.append(tally.own)
        assert fault(tally, tally, Claim(event, 1.0, 64, 1e-5, 1, 300)) == ""
    assert 1.2 < median(bound(heard) for heard in found) < 2.3
    assert all(abs(noise_ratio(one, 2000, 1.87 / 64)[0] - 1) < 0.01 for one in found)
    assert ceiling(300, 1e-5) == pytest.approx(3.9, abs=0.01)  # half the canaries are guessed


EVENT = SubsampledGaussian(0.25, 3.0, 12)


@pytest.mark.parametrize("seed", range(4))
def test_an_honest_round_raises_no_alarm(seed: int) -> None:
    one, two = tally_of(EVENT, 300, seed), tally_of(EVENT, 300, seed + 50)
    assert fault(one, one, claim(EVENT, 300, rounds=3)) == ""
    assert fault(two, one + two, claim(EVENT, 300, rounds=3)) == ""
    assert noise_ratio(one.own, 24, 3.0 / 64)[1] == 2 * noise_ratio(one.own, 12, 3.0 / 64)[1]


@pytest.mark.parametrize("louder", [0.0, 0.5, 0.75, 1.3, 2.0])
def test_every_meter_fails_at_another_sigma(louder: float) -> None:
    """Each by itself: the others are given an honest tally."""
    broken, honest = tally_of(EVENT, 300, 1, louder=louder), tally_of(EVENT, 300, 1)
    for part in ("own", "inside", "released"):
        mixed = dataclasses.replace(honest, **{part: getattr(broken, part)})
        wrong = fault(mixed, mixed, claim(EVENT, 300, rounds=50))
        expected = "released tensors" if part == "released" else "times the plan's variance"
        assert expected in wrong


def test_one_quiet_round_is_heard_among_many() -> None:
    honest, weak = tally_of(EVENT, 300, 2), tally_of(EVENT, 300, 2, louder=0.7)
    many = honest
    for seed in range(3, 30):
        many = many + tally_of(EVENT, 300, seed)
    assert "the round" in fault(weak, many + weak, claim(EVENT, 300, 201))
    assert fault(honest, many, claim(EVENT, 300, 201)) == ""


def test_a_fault_too_small_for_one_round_is_found_in_all_rounds_together() -> None:
    """Noise of 0.99 times its deviation, which the tests of one round let pass."""
    rounds = [tally_of(EVENT, 300, seed, louder=0.99) for seed in range(40)]
    total = rounds[0]
    for latest in rounds[1:]:
        total = total + latest
    assert fault(rounds[0], rounds[0], claim(EVENT, 300, rounds=40)) == ""
    assert "in all rounds" in fault(rounds[0], total, claim(EVENT, 300, rounds=40))


@pytest.mark.parametrize("kind", ["own", "inside"])
def test_noise_that_is_used_twice_is_heard_in_its_sum(kind: str) -> None:
    """A step's variance is right then; only the sum over the steps tells."""
    honest = tally_of(EVENT, 300, 3)
    heard = getattr(honest, kind)
    again = dataclasses.replace(
        honest, **{kind: dataclasses.replace(heard, scores=heard.scores * 2)}
    )
    assert "the sum of the noise" in fault(again, again, claim(EVENT, 300))


def test_with_noise_off_the_bound_refutes_a_claim_of_epsilon_one() -> None:
    event = SubsampledGaussian(0.25, 8.0, 60)
    assert 0.5 < epsilon_pld([event], 1e-5) < 1.1
    silent = tally_of(event, 300, 3, louder=0.0)
    assert bound(silent.own) > 1.1 and bound(silent.inside) > 1.1
    honest = tally_of(event, 300, 3)
    for kind in ("own", "inside"):
        scores = getattr(silent, kind).scores
        mixed = dataclasses.replace(getattr(honest, kind), scores=scores)
        wrong = fault(honest, dataclasses.replace(honest, **{kind: mixed}), claim(event, 300))
        assert "the accountant says at most" in wrong or "the sum of the noise" in wrong


@pytest.mark.parametrize("kind", ["own", "inside"])
def test_scores_that_tell_who_is_in_are_refuted_by_the_bound(kind: str) -> None:
    """Everything else about them is honest."""
    event = SubsampledGaussian(0.25, 8.0, 60)
    honest = tally_of(event, 300, 3)
    heard = getattr(honest, kind)
    telling = dataclasses.replace(heard, scores=heard.scores + 100.0 * heard.included)
    total = dataclasses.replace(honest, **{kind: telling})
    assert "the accountant says at most" in fault(honest, total, claim(event, 300))


def test_a_missing_clip_is_heard_along_the_drawn_canaries_and_by_the_bound() -> None:
    event = SubsampledGaussian(0.25, 8.0, 60)
    unclipped = tally_of(event, 300, 4, raw=10.0)
    assert "as long as the clip norm" in fault(unclipped, unclipped, claim(event, 300, rounds=50))
    honest = tally_of(event, 300, 4)
    mixed = dataclasses.replace(honest.own, scores=unclipped.own.scores)
    assert "the accountant says at most" in fault(
        honest, dataclasses.replace(honest, own=mixed), claim(event, 300)
    )


def test_a_tally_of_other_steps_canaries_or_tensors_is_a_fault() -> None:
    tally = tally_of(EVENT, 300, 1)
    other = dataclasses.replace(EVENT, steps=13)
    assert "expected 299+150" in fault(tally, tally, claim(EVENT, 299))
    assert "over 13 steps" in fault(tally, tally, claim(other, 300))
    grown = dataclasses.replace(tally, sizes=tally.sizes + 1)
    assert "4,001 trained numbers" in fault(grown, grown, claim(EVENT, 300))


def test_the_level_counts_every_test_of_every_round() -> None:
    assert claim(EVENT, 300, rounds=100).level * TESTS * 100 == pytest.approx(FALSE_ALARM)
    assert claim(EVENT, 300).inside == inside_count(300, DIMENSION) == 150
