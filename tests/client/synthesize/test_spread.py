"""Averages moved out: factors from generator samples alone, one code's move, restored variance."""

import dataclasses
import inspect
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from client.synthesize import spread
from client.synthesize.group import Mode
from client.synthesize.reference import GeneratorCodes, Reference, Whitening
from common.errors import Bug
from tests.studies import SMALL, small_study

LAYERS, LATENT, COMPONENTS = 3, 4, 6
LOOK = np.ones((2, 3), np.float32)
GROUPED: tuple[Mode, ...] = ("similar", "similar-swap", "cells", "random")


def reference(seed: int = 0, count: int = 192) -> Reference:
    """Generator codes with a falling spectrum."""
    rng = np.random.default_rng(seed)
    codes = rng.normal(size=(count, LAYERS * LATENT)) * np.linspace(
        3, 0.3, LAYERS * LATENT
    ) + rng.normal(size=12)
    samples = GeneratorCodes(codes)
    return Reference(
        Whitening.fit(samples, COMPONENTS), 0.06, 1.0, samples, rng.random((count, 3)), LOOK
    )


def some_codes(count: int, seed: int = 1) -> torch.Tensor:
    return torch.from_numpy(
        np.random.default_rng(seed).normal(size=(count, LAYERS, LATENT)) * 2
    ).float()


@settings(max_examples=40, deadline=None)
@given(
    k=st.integers(2, 40),
    mode=st.sampled_from(GROUPED),
    count=st.integers(1, COMPONENTS),
    seed=st.integers(0, 99),
)
def test_a_factor_lies_between_1_and_the_square_root_of_k(
    k: int, mode: Mode, count: int, seed: int
) -> None:
    found = spread.find_directions(reference(seed, 60), count, k, mode)
    assert found.factors.shape == (count,)
    assert (found.factors >= 1).all() and (found.factors <= np.sqrt(k) + 1e-12).all()
    np.testing.assert_allclose(found.axes @ found.axes.T, np.eye(count), atol=1e-9)


def test_averages_of_strangers_get_the_square_root_of_k_and_of_similar_ones_less() -> None:
    known = reference()
    np.testing.assert_allclose(spread.find_directions(known, 2, 9, "random").factors, 3.0)
    similar, cells = (
        spread.find_directions(known, 2, 9, mode).factors for mode in ("similar", "cells")
    )  # type: ignore[arg-type]
    assert (similar < 3.0).all() and (similar > 1.0).all()
    assert similar.mean() < cells.mean()


def test_a_share_gives_back_that_power_of_every_factor() -> None:
    every, some = (
        spread.find_directions(reference(), 3, 5, "similar", share).factors for share in (1.0, 0.5)
    )
    np.testing.assert_allclose(some**2, every)
    assert (some < every).all() and (some > 1).all()


def test_averages_of_strangers_vary_as_single_samples_along_the_directions_alone() -> None:
    known, k = reference(), 6
    singles = np.random.default_rng(7).normal(size=(1200, 12)) * np.linspace(
        3, 0.3, 12
    )  # of the samples' own kind
    means = singles.reshape(-1, k, 12).mean(axis=1) + known.samples.codes.mean(axis=0)
    codes = torch.from_numpy(means.reshape(-1, LAYERS, LATENT))
    moved = (
        spread.find_directions(known, 2, k, "random")
        .move_out(codes)
        .numpy()
        .reshape(len(means), -1)
    )
    before, after = (known.whitening(x).std(axis=0) for x in (means, moved))
    assert (before[:2] < 0.6).all() and (np.abs(after[:2] - 1) < 0.25).all()
    np.testing.assert_allclose(after[2:], before[2:], rtol=1e-6)


def test_what_becomes_of_a_code_depends_on_no_other_code() -> None:
    directions = spread.find_directions(reference(), 3, 5, "similar")
    codes = some_codes(6)
    together, alone = directions.move_out(codes), directions.move_out(codes[4:5])
    np.testing.assert_allclose(together[4:5], alone, atol=1e-5)
    assert together.shape == codes.shape and together.dtype == codes.dtype
    assert not torch.allclose(together, codes)


def test_moving_out_can_be_undone_with_public_numbers_so_it_tells_what_the_average_told() -> None:
    directions = spread.find_directions(reference(), 3, 5, "similar")
    undo = dataclasses.replace(directions, factors=1 / directions.factors)
    codes = some_codes(6).double()
    np.testing.assert_allclose(undo.move_out(directions.move_out(codes)), codes, atol=1e-9)


def test_the_factors_are_of_generator_samples_alone_and_the_same_each_time() -> None:
    assert list(inspect.signature(spread.find_directions).parameters) == [
        "known",
        "count",
        "k",
        "mode",
        "share",
    ]
    one, two = (spread.find_directions(reference(), 4, 5, "cells") for _ in range(2))
    np.testing.assert_array_equal(one.factors, two.factors)
    with pytest.raises(Bug, match="takes a Reference"):
        spread.find_directions(some_codes(9), 2, 5, "similar")  # type: ignore[arg-type]


def test_a_plan_moves_averages_out_only_where_it_says_so_and_never_noised_ones() -> None:
    synthesis = SMALL["synthesis"]
    plan = small_study().synthesis
    assert plan is not None and plan.spread_directions == 0
    for mode in set(get_args(Mode)) - {"paper", "anchors"}:
        # random groups are plain here, or privatized all of them
        part = {} if mode != "random" else {"privatize": None}
        small_study(synthesis=synthesis | part | {"grouping": mode, "spread_directions": 2})
    anchors = {"noise_multiplier": 2.0, "threshold_delta": 1e-6}
    with pytest.raises(ValueError, match="spread_directions: not with grouping anchors"):
        small_study(
            synthesis=synthesis
            | {"grouping": "anchors", "anchors": anchors, "privatize": None, "spread_directions": 2}
        )
    with pytest.raises(ValueError, match="spread_directions"):
        small_study(synthesis=synthesis | {"spread_directions": 65})
