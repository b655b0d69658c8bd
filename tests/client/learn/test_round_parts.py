"""What the private trainers share: the bound of a round, and streams of latents."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from client.learn.round_parts import stream, within
from common.privacy.noise import NoiseSource

BOUND = 3.0


@pytest.mark.parametrize("size", [1e-3, 1.0, 2.9, 3.0, 3.1, 100.0, 1e30])
def test_an_update_keeps_its_joint_norm_within_the_bound_and_its_direction(size: float) -> None:
    deltas = {"a": torch.tensor([[0.6 * size, 0.0]]), "b": torch.tensor([0.8 * size])}
    found = within(deltas, BOUND)
    norm = math.hypot(float(np.linalg.norm(found["a"])), float(np.linalg.norm(found["b"])))
    assert norm == pytest.approx(min(size, BOUND), rel=1e-5)
    assert norm <= BOUND
    assert float(found["a"][0, 0]) == pytest.approx(0.75 * float(found["b"][0]))


def test_two_streams_of_latents_are_different_streams() -> None:
    noise = NoiseSource()
    one, two = (torch.randn(8, generator=stream(noise)) for _ in range(2))
    assert not torch.equal(one, two)
