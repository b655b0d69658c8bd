"""Two fixed latents, many draws: mechanisms stay below epsilon, and broken ones are caught.

The draws are seeded, so the outcome is the same every time. benchmarks/mechanism_audit.py makes the
full table with fresh noise.
"""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.mechanism_audit import (
    D,
    Subject,
    ball,
    batch_norm,
    box,
    broken,
    lower_bound,
    ratio,
    sound,
    subject_of,
    worst,
)
from client.synthesize import privatize as stage
from common.privacy import privunit
from common.privacy.latent_mechanisms import LatentGaussian, LatentLaplace, PrivUnit
from common.privacy.noise import SeededNoiseSource

DRAWS = 10_000
GAUSSIAN_DRAWS = 160_000  # the broken Gaussian shows least
MOST_OF_IT = {
    "lattice Laplace, l1 ball": 0.7,
    "PrivUnit": 0.6,
    "analytic Gaussian, l2 ball": 0.2,
    "lattice Laplace, box": 0.1,
}


def bound(subject: Subject, draws: int = DRAWS) -> float:
    return lower_bound(subject, draws, SeededNoiseSource(1))


@pytest.mark.parametrize("epsilon", [1.0, 2.0])
@pytest.mark.parametrize("which", range(4))
def test_no_shipped_mechanism_shows_more_than_it_claims(which: int, epsilon: float) -> None:
    subject = sound(epsilon)[which]
    found = bound(subject)
    assert found <= subject.claimed
    assert found > MOST_OF_IT[subject.name] * epsilon, "an audit that sees nothing proves nothing"


CAUGHT_AT = {  # the claim at which each fault shows, and the draws that make it sure
    "(a) batch-wide matrix norm": (2.0, 5_000),
    "(b) radius for diameter, Laplace": (1.0, DRAWS),
    "(b) radius for diameter, Gaussian": (4.0, GAUSSIAN_DRAWS),
    "(c) noise deaf to epsilon": (1.0, DRAWS),
    "epsilon per coordinate sold as per image, box": (1.0, DRAWS),
    "float64 Laplace, scale correct": (1.0, DRAWS),
}


@pytest.mark.parametrize("name", CAUGHT_AT)
def test_every_broken_mechanism_is_caught(name: str) -> None:
    epsilon, draws = CAUGHT_AT[name]
    subject = next(one for one in broken(epsilon) if one.name == name)
    assert bound(subject, draws) > 1.05 * epsilon


def test_every_broken_mechanism_has_its_test() -> None:
    assert {subject.name for subject in broken(1.0)} == set(CAUGHT_AT)


def test_a_batch_wide_norm_leaves_a_sample_hundreds_of_times_too_long_and_ours_does_not() -> None:
    """The first bug itself: what `norm(z, ord=1)` of a batch calls clipped to 1."""
    rows = np.random.default_rng(0).normal(size=(16, 1024))
    theirs = rows / float(np.linalg.norm(rows, ord=1))
    assert np.abs(theirs).sum(axis=1).min() > 20
    m = LatentLaplace("l1_ball", 1 / 1024, 1024, 1, "random", 1.0)
    assert np.abs(stage.clip(rows, m)).sum(axis=1).max() <= 1.0 + 1e-12
    assert batch_norm(2.0).claimed == 2.0


def test_the_two_latents_of_the_audit_are_as_far_apart_as_the_sensitivity() -> None:
    for m in (ball(2.0), box(2.0)):
        latents = np.stack([stage.quantise(row, m) for row in stage.clip(worst(m), m)])
        assert np.abs(latents[0] - latents[1]).sum() == m.sum_sensitivity_in_steps
    gauss = LatentGaussian(D, 1, "random", 2.0, 1e-5)
    latents = np.stack([stage.quantise(row, gauss) for row in worst(gauss)])
    assert np.square(latents[0] - latents[1]).sum() == 4 * gauss.squared_radius_in_steps


def test_the_audit_hears_a_privunit_without_its_coin(monkeypatch: pytest.MonkeyPatch) -> None:
    m = PrivUnit(D, 1.0)
    monkeypatch.setattr(
        privunit, "cap", lambda d, e, _real=privunit.cap: replace(_real(d, e), p=1.0)
    )
    assert bound(subject_of(m, "PrivUnit, always in the cap"), 4_000) > 1.05


def test_the_audit_hears_a_mean_whose_noise_forgot_that_it_is_of_k() -> None:
    """Noise scaled to Delta / k on a sum that one patient moves by Delta."""
    ten = replace(ball(1.0), k=10)
    forgot = replace(ten, k=1)
    assert forgot.sum_scale_in_steps * 10 == ten.sum_scale_in_steps
    assert bound(subject_of(ten, "k forgotten", noisy=forgot)) > 1.05 * ten.epsilon_per_image


def test_the_likelihood_ratio_is_the_mechanisms_own() -> None:
    m = ball(2.0)
    latents = np.stack([stage.quantise(row, m) for row in stage.clip(worst(m), m)])
    assert ratio(latents[:1], latents, m)[0] == pytest.approx(m.epsilon_per_image)
