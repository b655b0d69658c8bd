"""The moving average of a network's weights: a <- decay·a + (1 - decay)·m."""

import pytest
import torch
from torch import nn

from common.models.moving_average import update_average


def network(value: float) -> nn.Module:
    model = nn.Linear(3, 2)
    for parameter in model.parameters():
        nn.init.constant_(parameter, value)
    return model


def test_each_weight_moves_by_one_minus_the_decay() -> None:
    average, model = network(1.0), network(3.0)
    update_average(average, model, 0.75)
    for weight in average.parameters():
        torch.testing.assert_close(weight, torch.full_like(weight, 1.5))
    for weight in model.parameters():
        torch.testing.assert_close(weight, torch.full_like(weight, 3.0))


def test_without_decay_the_average_is_the_model() -> None:
    average, model = network(1.0), network(3.0)
    update_average(average, model, 0.0)
    assert all(
        torch.equal(a, m) for a, m in zip(average.parameters(), model.parameters(), strict=True)
    )


def test_networks_of_other_sizes_are_an_error() -> None:
    with pytest.raises(ValueError, match="shorter"):
        update_average(nn.Linear(3, 2), nn.Linear(3, 2, bias=False), 0.5)
