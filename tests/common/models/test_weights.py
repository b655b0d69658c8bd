"""A network's weights as named arrays: they come back, and others are refused."""

import numpy as np
import pytest
import torch

from common.errors import RefusedError
from common.models.stylegan import (
    Critic,
    Generator,
    load_critic,
    load_generator,
)
from common.models.weights import load_weights, numpy_weights
from common.study.training import GanPlan

torch.set_num_threads(1)


def plan(**changes: object) -> GanPlan:
    """A tiny GAN plan."""
    constants = {
        "rounds": 1,
        "local_steps": 1,
        "learning_rate": 1e-4,
        "noise_multiplier": 1.0,
        "patients_per_step": 4,
    }
    bounds = {"clip": 1.0, "max_update_norm": 1.0, "generator_learning_rate": 1e-4}
    return GanPlan.model_validate({**constants, **bounds, "width": 8, "latent": 16, **changes})


def test_a_checkpoint_comes_back_as_it_was() -> None:
    generator, critic = Generator(32, 3, 8, 16), Critic(32, 3, 8)
    weights = numpy_weights(generator, "generator.") | numpy_weights(critic, "critic.")
    assert {array.dtype for array in weights.values()} == {np.dtype("f4")}
    again = numpy_weights(load_generator(weights, plan(), 32, 3), "generator.")
    again |= numpy_weights(load_critic(weights, plan(), 32, 3), "critic.")
    assert again.keys() == weights.keys()
    assert all(np.array_equal(again[name], weights[name]) for name in weights)


def test_a_checkpoint_of_another_size_is_refused_with_both_shapes() -> None:
    weights = numpy_weights(Generator(32, 3, 8, 16), "generator.")
    with pytest.raises(
        RefusedError, match=r"constant: expected \(1, 64, 4, 4\), got \(1, 32, 4, 4\)"
    ) as caught:
        load_generator(weights, plan(width=16), 32, 3)
    assert "width" in caught.value.hint
    with pytest.raises(RefusedError, match="missing"):
        load_generator(weights, plan(), 64, 3)
    with pytest.raises(RefusedError, match="not part of this model"):
        load_generator(weights | {"generator.extra": np.zeros(1, np.float32)}, plan(), 32, 3)


def test_a_checkpoint_that_is_not_finite_is_refused_before_anything_is_copied() -> None:
    critic = Critic(32, 3, 8)
    before, weights = numpy_weights(critic, "critic."), numpy_weights(Critic(32, 3, 8), "critic.")
    weights["critic.score.bias"][:] = np.nan
    with pytest.raises(RefusedError, match="not finite"):
        load_weights(critic, weights, "critic.")
    assert all(
        np.array_equal(before[name], value)
        for name, value in numpy_weights(critic, "critic.").items()
    )
