"""The honest server never trips rules 15 and 16, and a hostile one does not get past them.

The averages are made by the server's own code, of updates at the bound of rule 9.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import RefusedError
from common.privacy.boundary import NORM_SLACK, norm_of
from common.privacy.global_weights import Known, check_move, check_untrained, largest_move
from common.study.families import FAMILIES
from common.study.training import TrainedModel
from common.wire.tensors import Arrays
from server.rounds.aggregate import average
from tests.studies import small_study

GAN = FAMILIES["gan"]
FIXED = "critic.fixed"


def plan_of(bound: float) -> TrainedModel:
    study = small_study(models__gan__max_update_norm=bound, models__gan__trainable=["critic.a"])
    return study.models.trained()["gan"]


def start_of(rng: np.random.Generator, scale: float) -> Arrays:
    """Weights of some scale; the fixed tensor has a zero with a sign, and a denormal number."""
    fixed = np.array([-0.0, 0.0, 1e-40, -0.001], np.float32)
    return {
        "generator.a": (scale * rng.normal(size=(7, 9))).astype(np.float32),
        "critic.a": (scale * rng.normal(size=40)).astype(np.float32),
        FIXED: fixed,
    }


def update_of(rng: np.random.Generator, weights: Arrays, norm: float, straight: bool) -> Arrays:
    """An update of exactly the allowed norm, as far as float32 has it."""
    update: Arrays = {}
    for name, array in weights.items():
        drawn = np.ones(array.shape) if straight else rng.normal(size=array.shape)
        update[name] = drawn * (name != FIXED)
    factor = norm / norm_of(update)
    return {name: (factor * array).astype(np.float32) for name, array in update.items()}


def honest_round(
    rng: np.random.Generator, weights: Arrays, shares: dict[str, float], norm: float, straight: bool
) -> Arrays:
    """The server's own average over some sites, each at the bound."""
    updates: dict[str, Any] = {}
    for site in shares:
        update = update_of(rng, weights, norm * (1 - 1e-7), straight)
        assert norm_of(update) <= norm
        updates[site] = SimpleNamespace(arrays=update)
    return dict(average(weights, shares, 2, updates.__getitem__))


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    bound=st.floats(1e-6, 1e4),
    scale=st.sampled_from([0.0, 1e-38, 1e-3, 1.0, 1e4, 1e9]),
    shares=st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=5),
    rounds=st.integers(1, 12),
    straight=st.booleans(),
)
def test_the_honest_server_is_never_refused(
    seed: int, bound: float, scale: float, shares: list[float], rounds: int, straight: bool
) -> None:
    rng = np.random.default_rng(seed)
    plan = plan_of(bound)
    weights = start_of(rng, scale)
    known = [Known(0, weights)]
    for number in range(1, rounds + 1):
        # another part of the sites in each round: a quorum closes it
        kept = rng.permutation(len(shares))[: max(2, int(rng.integers(2, len(shares) + 1)))]
        closing = {f"site-{site}": shares[site] for site in kept}
        weights = honest_round(rng, weights, closing, bound * (1 + NORM_SLACK), straight)
        # whatever round a site saw last
        for earlier in known:
            check_untrained(weights, earlier, number, GAN, plan)
            check_move(weights, earlier, number, plan)
        known.append(Known(number, weights))


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    bound=st.floats(1e-3, 1e4),
    rounds=st.integers(1, 50),
    excess=st.floats(1e-4, 1e30),
)
def test_a_server_that_moves_further_is_refused(
    seed: int, bound: float, rounds: int, excess: float
) -> None:
    rng = np.random.default_rng(seed)
    plan = plan_of(bound)
    start = start_of(rng, bound / 10)
    known = Known(3, start)
    allowed = largest_move(plan, rounds, norm_of(start))
    far = update_of(rng, start, allowed * (1 + excess), False)
    moved: Arrays = {}
    for name, array in start.items():
        moved[name] = (array.astype(np.float64) + far[name]).astype(np.float32)
    moved[FIXED] = start[FIXED]
    with pytest.raises(RefusedError) as caught:
        check_move(moved, known, 3 + rounds, plan)
    assert caught.value.code == "E-GATE-16"


@settings(max_examples=100, deadline=None)
@given(tensor=st.integers(0, 3), bit=st.integers(0, 31), number=st.integers(1, 50))
def test_one_flipped_bit_in_an_untrained_tensor_is_refused(
    tensor: int, bit: int, number: int
) -> None:
    start = start_of(np.random.default_rng(0), 1.0)
    flipped = start[FIXED].view(np.uint32).copy()
    flipped[tensor] ^= np.uint32(1) << np.uint32(bit)
    other = {**start, FIXED: flipped.view(np.float32)}
    with pytest.raises(RefusedError) as caught:
        check_untrained(other, Known(0, start), number, GAN, plan_of(1.0))
    assert caught.value.code == "E-GATE-15"


def test_a_site_that_saw_more_rounds_allows_no_more() -> None:
    plan = plan_of(2.0)
    two = largest_move(plan, 2, 3.0)
    assert two + largest_move(plan, 3, 3.0 + two) <= largest_move(plan, 5, 3.0) < 10.0001


def test_a_number_that_no_update_moves_keeps_its_bits() -> None:
    weights: Arrays = {"critic.a": np.array([-0.0, 0.0, 1e-40, np.float32(0.1)], np.float32)}
    still = SimpleNamespace(arrays={"critic.a": np.array([0.0, -0.0, 0.0, 0.0], np.float32)})
    updates: Any = {"a": still, "b": still}
    new = average(weights, {"a": 0.3, "b": 0.7}, 2, updates.__getitem__)
    assert new["critic.a"].tobytes() == weights["critic.a"].tobytes()
