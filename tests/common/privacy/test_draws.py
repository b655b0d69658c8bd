"""Composition of the draws of one average."""

from __future__ import annotations

import math

import pytest

from common.privacy.accounting import epsilon_pld
from common.privacy.calibration import gaussian_delta
from common.privacy.draws import compose_draws, gaussian_epsilon
from common.privacy.latent_mechanisms import LatentGaussian, LatentLaplace, PrivUnit

LAPLACE = LatentLaplace("l1_ball", 0.4, 48, 5, "similar", 0.5)
GAUSSIAN = LatentGaussian(48, 5, "similar", 1.5, 1e-6)
DELTA = 1e-5


def test_no_draw_spends_nothing() -> None:
    assert compose_draws([], DELTA) == 0.0


def test_pure_epsilons_add_up() -> None:
    unit = PrivUnit(16, 2.0)
    both = compose_draws([LAPLACE, LAPLACE, unit], DELTA)
    assert both == pytest.approx(2 * LAPLACE.epsilon_per_image + 2.0)


def test_one_gaussian_has_its_own_epsilon_at_its_own_delta() -> None:
    found = compose_draws([GAUSSIAN], GAUSSIAN.delta)
    assert GAUSSIAN.epsilon * 0.999 <= found <= GAUSSIAN.epsilon * 1.001


@pytest.mark.parametrize("count", [2, 7, 30])
def test_gaussians_compose_as_one_and_no_less_than_by_privacy_loss(count: int) -> None:
    found = compose_draws([GAUSSIAN] * count, DELTA)
    alone = LatentGaussian(48, 5, "random", GAUSSIAN.epsilon, GAUSSIAN.delta)
    assert found == pytest.approx(epsilon_pld([alone] * count, DELTA), rel=0.02)
    assert found > compose_draws([GAUSSIAN], DELTA) * math.sqrt(count)


def test_the_epsilon_of_a_gaussian_is_rounded_up() -> None:
    for multiplier in (0.05, 0.7, 3.0, 40.0):
        assert gaussian_delta(gaussian_epsilon(multiplier, DELTA), multiplier) <= DELTA


def test_mixed_draws_are_the_sum_of_both_kinds() -> None:
    together = compose_draws([LAPLACE, GAUSSIAN], DELTA)
    apart = compose_draws([LAPLACE], DELTA) + compose_draws([GAUSSIAN], DELTA)
    assert together == pytest.approx(apart)
