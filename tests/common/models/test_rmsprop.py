"""RMSprop on named tensors against torch's own."""

import pytest
import torch

from common.models.rmsprop import RMSprop


def test_ten_steps_give_the_numbers_of_torchs_own() -> None:
    torch.manual_seed(0)
    shapes = {"a": (3, 4), "b": (5,)}
    ours = {name: torch.randn(shape) for name, shape in shapes.items()}
    theirs = {name: value.clone().requires_grad_() for name, value in ours.items()}
    optimiser, oracle = RMSprop(ours, 0.03), torch.optim.RMSprop(theirs.values(), lr=0.03)
    for step in range(10):
        gradients = {
            name: torch.randn(shape) * 10.0 ** (step - 5) for name, shape in shapes.items()
        }
        optimiser.step(gradients)
        for name, value in theirs.items():
            value.grad = gradients[name].clone()
        oracle.step()
        for name, value in theirs.items():
            assert torch.allclose(ours[name], value.detach(), rtol=1e-6, atol=1e-6)


def test_the_parameters_change_in_place_and_a_zero_gradient_leaves_them() -> None:
    value = torch.ones(3)
    optimiser = RMSprop({"w": value}, 0.1)
    optimiser.step({"w": torch.zeros(3)})
    assert torch.equal(value, torch.ones(3))
    optimiser.step({"w": torch.ones(3)})
    assert bool((value < 1).all())


def test_a_parameter_without_a_gradient_is_an_error() -> None:
    with pytest.raises(KeyError):
        RMSprop({"w": torch.ones(1)}, 0.1).step({})
