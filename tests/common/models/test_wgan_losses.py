"""The losses of the image + mask WGAN against closed forms and autograd."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from common.errors import Bug, ConfigurationError
from common.models.wgan import Critic, Generator
from common.models.wgan_losses import PENALTY, critic_loss, generator_loss, gradient_penalty

torch.set_num_threads(1)
LOSSES = ("wgan", "wgan-gp", "hinge", "logistic")
CLOSED: dict[str, Callable[[float, float], float]] = {
    "wgan": lambda real, fake: fake - real,
    "wgan-gp": lambda real, fake: fake - real,
    "hinge": lambda real, fake: max(0.0, 1 - real) + max(0.0, 1 + fake),
    "logistic": lambda real, fake: float(np.log1p(np.exp(-real)) + np.log1p(np.exp(fake))),
}


@pytest.mark.parametrize("kind", LOSSES)
def test_the_critics_loss_is_its_closed_form_averaged_over_the_pairs(kind: str) -> None:
    real, fake = [0.3, -2.0, 1.5], [-0.4, 0.2, 1.1, -3.0, 0.0, 0.7]
    expected = (
        np.mean([CLOSED[kind](r, 0) for r in real])
        + np.mean([CLOSED[kind](0, f) for f in fake])
        - CLOSED[kind](0, 0)
    )
    assert float(critic_loss(torch.tensor(real), torch.tensor(fake), kind)) == pytest.approx(
        expected, rel=1e-6
    )


@pytest.mark.parametrize("kind", LOSSES)
def test_the_critics_loss_falls_when_real_scores_rise_and_fake_scores_fall(kind: str) -> None:
    real, fake = torch.zeros(4, requires_grad=True), torch.zeros(8, requires_grad=True)
    up, down = torch.autograd.grad(critic_loss(real, fake, kind), (real, fake))
    assert bool((up < 0).all()) and bool((down > 0).all())


@pytest.mark.parametrize("kind", LOSSES)
def test_the_generators_loss_falls_when_its_samples_score_higher(kind: str) -> None:
    fake = torch.tensor([-1.0, 0.0, 2.0], requires_grad=True)
    (slope,) = torch.autograd.grad(generator_loss(fake, kind), fake)
    assert bool((slope < 0).all())


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize(("real", "fake"), [(3, 4), (2, 1), (0, 2), (2, 0)])
def test_pair_loss_refuses_unequal_counts(kind: str, real: int, fake: int) -> None:
    with pytest.raises(Bug, match="cannot be paired"):
        critic_loss(torch.zeros(real), torch.zeros(fake), kind)


def test_an_unknown_loss_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="expected wgan"):
        critic_loss(torch.zeros(1), torch.zeros(1), "lsgan")


def test_the_gradient_penalty_equals_an_explicit_double_backward() -> None:
    torch.manual_seed(0)
    critic = Critic(32, 8)
    items, fakes, mix = torch.randn(3, 2, 32, 32), torch.randn(3, 2, 32, 32), torch.rand(3)
    found = gradient_penalty(critic, items, fakes, mix)
    between = torch.stack(
        [e * x + (1 - e) * f for x, f, e in zip(items, fakes, mix, strict=True)]
    ).requires_grad_()
    (slopes,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    expected = PENALTY * torch.stack([(slope.norm() - 1) ** 2 for slope in slopes]).mean()
    assert torch.allclose(found, expected, rtol=1e-5)
    own = list(critic.parameters())
    ours, theirs = (torch.autograd.grad(x, own, allow_unused=True) for x in (found, expected))
    for (name, _), a, b in zip(critic.named_parameters(), ours, theirs, strict=True):
        assert (a is None) == (b is None), name
        assert a is None or b is None or torch.allclose(a, b, rtol=1e-3, atol=1e-5), name


def test_a_critic_without_slope_has_a_finite_penalty() -> None:
    scale = torch.zeros((), requires_grad=True)
    flat: Callable[[Tensor], Tensor] = lambda x: scale * x.flatten(1).sum(1)  # noqa: E731
    penalty = gradient_penalty(flat, torch.ones(2, 2, 4, 4), torch.zeros(2, 2, 4, 4), torch.ones(2))
    (slope,) = torch.autograd.grad(penalty, scale)
    assert float(penalty.detach()) == pytest.approx(PENALTY, rel=1e-4) and bool(slope.isfinite())


def test_a_pair_that_the_critic_prefers_pulls_the_generator_towards_it() -> None:
    """Plain steps of the generator alone raise its scores: nothing on the way is detached."""
    torch.manual_seed(0)
    generator, critic, z = Generator(32, 8, 16), Critic(32, 8), torch.randn(4, 16)
    own = list(generator.parameters())
    scores = [F.softplus(-critic(generator(z))).mean()]
    for _ in range(5):
        slopes = torch.autograd.grad(scores[-1], own)
        with torch.no_grad():
            for value, slope in zip(own, slopes, strict=True):
                value -= 0.2 * slope
        scores.append(F.softplus(-critic(generator(z))).mean())
    assert float(scores[-1].detach()) < float(scores[0].detach())
