"""The private step as a trainer uses it."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from client.learn.private_step import Execution, PrivateStep, StepConstants, check_model
from client.state.ledger import PracticeReservation, Reservation
from common.errors import Bug, ConfigurationError
from common.privacy.mechanisms import SubsampledGaussian
from common.privacy.noise import NoiseSource, SeededNoiseSource

torch.set_num_threads(1)


def test_training_with_little_noise_follows_the_clipped_mean_gradient() -> None:
    """A linear regression learns, in place, with an ordinary optimiser and production noise."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(4, generator=generator)
    x = torch.randn(40, 3, 4, generator=generator)
    y = x @ truth
    model = nn.Linear(4, 1, bias=False)
    parameters = dict(model.named_parameters())

    def loss(weights: dict[str, Tensor], patient: tuple[Tensor, ...]) -> Tensor:
        return (functional_call(model, weights, (patient[0],))[:, 0] - patient[1]).square().mean()

    constants = StepConstants(clip=1.0, noise_multiplier=0.05, sampling_rate=0.5, divisor=20)
    reservation = Reservation(1, 40, SubsampledGaussian(0.5, 0.05, 40))
    private = PrivateStep(parameters, loss, constants, reservation, NoiseSource())
    optimiser = torch.optim.SGD(parameters.values(), lr=0.3)
    for _ in range(40):
        gradients = private.step(40, lambda who: (x[list(who)], y[list(who)]))
        for name, parameter in parameters.items():
            parameter.grad = gradients[name]
        optimiser.step()
    assert float((model.weight[0].detach() - truth).norm()) < 0.15 * float(truth.norm())


def test_gradients_come_back_by_name_shape_and_dtype() -> None:
    parameters = {"b": torch.zeros(2, 3), "a": torch.zeros(()), "unused": torch.zeros(4)}

    def loss(p: dict[str, Tensor], patient: tuple[Tensor, ...]) -> Tensor:
        return (p["b"] * patient[0]).sum() + p["a"]

    event = SubsampledGaussian(1.0, 1.0, 4)
    for chunk in (1, 3):
        step = PrivateStep(
            parameters,
            loss,
            StepConstants(1.0, 1.0, 1.0, 4),
            PracticeReservation(event),
            SeededNoiseSource(0),
            execution=Execution(chunk=chunk),
        )
        update = step.step(4, lambda who: (torch.ones(len(who), 2, 3),))
        assert list(update) == list(parameters)
        assert all(
            update[n].shape == p.shape and update[n].dtype == torch.float32
            for n, p in parameters.items()
        )
        assert not any(g.requires_grad for g in update.values())


def test_a_double_backward_loss_gives_the_same_gradient_by_both_back_ends() -> None:
    """wgan-gp: the penalty's gradient is inside the per-patient clip."""
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
    check_model(critic, (6,))

    def loss(p: dict[str, Tensor], patient: tuple[Tensor, ...]) -> Tensor:
        real, fake, mix = patient
        between = mix * real + (1 - mix) * fake
        slope = torch.func.grad(lambda x: functional_call(critic, p, (x,)).sum())(between)
        penalty = (slope.square().sum(-1).add(1e-12).sqrt() - 1).square().mean()
        return (
            functional_call(critic, p, (fake,)) - functional_call(critic, p, (real,))
        ).mean() + 10 * penalty

    generator = torch.Generator().manual_seed(1)
    items = torch.randn(2, 7, 3, 6, generator=generator)
    mix = torch.rand(7, 3, 1, generator=generator)
    event = SubsampledGaussian(1.0, 1e-6, 1)
    updates = []
    for chunk in (1, 4):
        constants = StepConstants(1.0, 1e-6, 1.0, 7)
        step = PrivateStep(
            dict(critic.named_parameters()),
            loss,
            constants,
            PracticeReservation(event),
            SeededNoiseSource(0),
            execution=Execution(chunk=chunk),
        )
        updates.append(
            step.step(7, lambda who: (items[0, list(who)], items[1, list(who)], mix[list(who)]))
        )
    assert all(torch.allclose(updates[0][n], updates[1][n], atol=2e-6) for n in updates[0])


@pytest.mark.parametrize(
    "bad",
    [
        {"clip": 0.0},
        {"noise_multiplier": -1.0},
        {"sampling_rate": 1.1},
        {"divisor": 0},
        {"items_per_patient": 0},
    ],
)
def test_constants_without_meaning_are_refused(bad: dict[str, float]) -> None:
    fields = {
        "clip": 1.0,
        "noise_multiplier": 1.0,
        "sampling_rate": 0.5,
        "divisor": 8,
        "items_per_patient": 1,
        **bad,
    }
    with pytest.raises(ConfigurationError):
        StepConstants(**fields)  # type: ignore[arg-type]


def test_only_fp32_parameters_are_trained() -> None:
    event = SubsampledGaussian(0.5, 1.0, 4)
    with pytest.raises(ConfigurationError):
        PrivateStep(
            {"w": torch.zeros(3, dtype=torch.float64)},
            lambda p, x: p["w"].sum(),
            StepConstants(1, 1, 0.5, 4),
            PracticeReservation(event),
            SeededNoiseSource(0),
        )


def test_a_batch_of_the_wrong_length_is_a_bug() -> None:
    event = SubsampledGaussian(1.0, 1.0, 4)
    step = PrivateStep(
        {"w": torch.zeros(3)},
        lambda p, x: (p["w"] * x[0]).sum(),
        StepConstants(1, 1, 1.0, 4),
        PracticeReservation(event),
        SeededNoiseSource(0),
    )

    def short(patients: Sequence[int]) -> tuple[Tensor, ...]:
        return (torch.ones(0, 3),)

    with pytest.raises(Bug):
        step.step(2, short)
