"""Noise against published tables, and what is left of a latent against draws."""

import math

import numpy as np
import pytest

from common.privacy.calibration import (
    analytic_noise_multiplier,
    clipped_variance,
    cosine,
    gaussian_delta,
)

BALLE_WANG = {  # noise over sensitivity
    1e-5: {1: 3.73, 2: 1.99, 4: 1.08, 8: 0.600, 16: 0.344},
    1e-6: {1: 4.22, 2: 2.23, 4: 1.19, 8: 0.653, 16: 0.369},
}


@pytest.mark.parametrize("delta", BALLE_WANG)
def test_the_gaussians_noise_is_balle_and_wangs(delta: float) -> None:
    for epsilon, published in BALLE_WANG[delta].items():
        sigma = analytic_noise_multiplier(float(epsilon), delta)
        assert sigma == pytest.approx(published, abs=0.006)
        assert gaussian_delta(epsilon, sigma) <= delta < gaussian_delta(epsilon, sigma * 0.9999)


@pytest.mark.parametrize("epsilon", [0.01, 0.5, 64.0])
def test_delta_is_the_gaussians_own_by_quadrature(epsilon: float) -> None:
    """The mass by which a Gaussian shifted by its sensitivity exceeds e^epsilon times the other."""
    sigma = analytic_noise_multiplier(epsilon, 1e-5)
    x = np.linspace(-40 * sigma, 40 * sigma, 2_000_001)
    density = np.exp(-0.5 * np.square(x / sigma)) / sigma / math.sqrt(2 * math.pi)
    shifted = np.exp(-0.5 * np.square((x - 1) / sigma)) / sigma / math.sqrt(2 * math.pi)
    excess = np.trapezoid(np.maximum(shifted - np.exp(epsilon) * density, 0.0), x)
    assert gaussian_delta(epsilon, sigma) == pytest.approx(float(excess), rel=1e-3)


@pytest.mark.parametrize("radius", [0.3, 1.0, 3.0])
def test_the_variance_in_a_box_is_that_of_clipped_draws(radius: float) -> None:
    drawn = np.clip(np.random.default_rng(0).normal(size=400_000), -radius, radius)
    assert clipped_variance("box", radius) == pytest.approx(float(drawn.var()), rel=0.01)


def test_the_cosine_of_a_sum_with_noise_is_the_root_of_its_share_of_variance() -> None:
    rng = np.random.default_rng(0)
    latent, noise = rng.normal(size=200_000), 2 * rng.normal(size=200_000)
    seen = float(
        latent @ (latent + noise) / np.linalg.norm(latent) / np.linalg.norm(latent + noise)
    )
    assert cosine(1 / 4) == pytest.approx(seen, abs=0.01)
    assert cosine(0.0) == 0.0
