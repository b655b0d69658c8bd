"""Calibration of a plan's noise: the budget is used, and not exceeded."""

import dataclasses

import pytest

from common.privacy.accounting import epsilon_pld
from common.privacy.mechanisms import SubsampledGaussian
from common.privacy.planning import calibrate_together

pytestmark = pytest.mark.filterwarnings("ignore")  # third-party accountants and torch


def test_the_calibrated_noise_uses_the_budget_and_one_hundredth_less_exceeds_it() -> None:
    (sigma,) = calibrate_together([SubsampledGaussian(0.064, 30.0, 2000)], 8.0, 1e-5)
    assert sigma == 1.88
    assert epsilon_pld([SubsampledGaussian(0.064, 1.88, 2000)], 1e-5) <= 8.0
    assert epsilon_pld([SubsampledGaussian(0.064, 1.87, 2000)], 1e-5) > 8.0


def test_two_models_are_calibrated_together() -> None:
    events = [
        SubsampledGaussian(0.05, 2.0, 200, model="gan"),
        SubsampledGaussian(0.05, 4.0, 100, model="glow"),
    ]
    sigmas = calibrate_together(events, 2.0, 1e-5)
    fitted = [
        dataclasses.replace(e, noise_multiplier=s) for e, s in zip(events, sigmas, strict=True)
    ]
    assert 1.97 <= epsilon_pld(fitted, 1e-5) <= 2.0 and sigmas[1] == pytest.approx(
        2 * sigmas[0], abs=0.02
    )
