"""The meters: their probabilities are bounds, and they are close to the true ones."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import stats

from common.privacy.canaries import draw
from common.privacy.mechanisms import SubsampledGaussian
from common.privacy.noise import SeededNoiseSource
from common.privacy.noise_meter import (
    _tail,
    clip_p_value,
    freshness_ratio,
    mean_length,
    meter_p_value,
    noise_ratio,
    release_p_value,
    release_ratio,
)
from common.privacy.tally import Tally, silence
from tests.heard import honest_tally

EVENT = SubsampledGaussian(0.25, 3.0, 12, 40 + 1000)


def tally(seed: int = 0, **changes: float) -> Tally:
    """The tally of 40 canaries over two tensors, with C = 1 and B = 64."""
    secret = draw(SeededNoiseSource(5), 40, 1000)
    noise = SeededNoiseSource(seed)
    return honest_tally(secret, EVENT, 1.0, 64, noise, (990, 10), **changes)


def test_the_meters_tail_is_never_below_the_true_one_and_close_to_it() -> None:
    for draws in (5, 100, 10_000):
        for level in (1e-2, 1e-4, 1e-6):
            low = stats.chi2.ppf(level / 2, draws) / draws
            high = stats.chi2.isf(level / 2, draws) / draws
            for ratio in (low, high):
                assert level <= meter_p_value(float(ratio), draws) < 60 * level


def test_false_alarms_stay_at_their_rate() -> None:
    ratios = np.random.default_rng(1).chisquare(400, 20_000) / 400
    assert np.mean([meter_p_value(float(ratio), 400) < 0.01 for ratio in ratios]) <= 0.01
    assert meter_p_value(1.0, 0) == 1.0  # nothing was measured
    assert meter_p_value(0.0, 10) == 0.0


@pytest.mark.parametrize("signal", [0.0, 3.0, 400.0])
@pytest.mark.parametrize("draws", [5, 100, 10_000])
def test_the_tail_with_a_signal_is_never_below_the_true_one(draws: int, signal: float) -> None:
    """Whatever the signal is, from none to the largest."""
    for level in (1e-2, 1e-5):
        high = (
            stats.ncx2.isf(level / 2, draws, signal) if signal else stats.chi2.isf(level / 2, draws)
        )
        assert level <= _tail(float(high), draws, signal) <= 1.0
        low = stats.chi2.ppf(level / 2, draws)
        assert level <= _tail(float(low), draws, signal) < 60 * level
    far = draws + signal + 20 * np.sqrt(draws + 2 * signal) + 60
    assert _tail(float(far), draws, signal) < 1e-5


def test_a_signal_up_to_its_bound_raises_no_alarm_and_hides_no_missing_noise() -> None:
    largest = 12 * 16.0**2  # 16 patients in each of 12 steps, all in one direction
    loud = dataclasses.replace(tally(), signal=largest)
    extra = np.array([0.0, largest / 64**2])
    loud = dataclasses.replace(loud, released=loud.released + extra)
    assert release_p_value(loud, 3.0, 3.0 / 64) > 1e-3
    assert release_p_value(dataclasses.replace(loud, signal=12.0), 3.0, 3.0 / 64) < 1e-9
    silent = dataclasses.replace(tally(louder=0.5), signal=largest)
    assert release_p_value(silent, 3.0, 3.0 / 64) < 1e-9


def test_the_release_is_metered_tensor_by_tensor() -> None:
    """The small tensor alone is silent: it is a hundredth of all numbers."""
    honest = tally()
    quiet = dataclasses.replace(honest, released=honest.released * np.array([1.0, 0.0]))
    assert abs(release_ratio(quiet, 3.0 / 64) - 1) < 0.05
    assert release_p_value(quiet, 3.0, 3.0 / 64) < 1e-9 < release_p_value(honest, 3.0, 3.0 / 64)


def test_the_clip_meter_knows_its_false_alarms() -> None:
    alarms = 0
    for seed in range(60):
        alarms += clip_p_value(tally(seed).own, 1 / 64, 3.0 / 64) < 0.05
    assert alarms <= 6
    loose = tally(1, raw=10.0).own
    assert mean_length(loose) * 64 == pytest.approx(10, abs=2)
    assert clip_p_value(loose, 1 / 64, 3.0 / 64) < 1e-9
    assert clip_p_value(silence(loose.included), 1 / 64, 3.0 / 64) == 1.0  # nobody was drawn


def test_freshness_is_of_the_sum_over_steps() -> None:
    heard = tally().own
    ratio, draws = freshness_ratio(heard, 12, 3.0 / 64)
    assert draws == int((~heard.included).sum()) and 0.3 < ratio < 2.5
    assert noise_ratio(heard, 12, 3.0 / 64)[1] == 12 * draws
    everybody = silence(np.ones(4, np.bool_))
    assert noise_ratio(everybody, 3, 1.0) == freshness_ratio(everybody, 3, 1.0) == (1.0, 0)
