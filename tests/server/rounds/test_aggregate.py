"""The average: against numpy, and what it refuses."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from common.errors import RefusedError
from common.study import averaging
from common.wire.tensors import Arrays
from server.rounds import aggregate
from server.rounds.intake import Accepted


def deltas(count: int) -> list[Arrays]:
    rng = np.random.default_rng(0)
    return [{"critic.a": rng.standard_normal((3, 2)).astype(np.float32)} for _ in range(count)]


def test_the_average_is_the_weighted_mean_of_the_updates() -> None:
    weights: Arrays = {"critic.a": np.ones((3, 2), np.float32)}
    total, updates, shares = averaging.begin(weights), deltas(3), [0.5, 0.3, 0.2]
    for update, share in zip(updates, shares, strict=True):
        averaging.fold(total, update, share)
    expected = 1 + np.average(
        np.stack([u["critic.a"].astype(float) for u in updates]), axis=0, weights=shares
    )
    np.testing.assert_allclose(
        averaging.finish(weights, total, 1.0)["critic.a"], expected, rtol=1e-6
    )


def test_weights_are_renormalised_over_the_accepted_sites() -> None:
    weights: Arrays = {"critic.a": np.zeros((3, 2), np.float32)}
    total, update = averaging.begin(weights), deltas(1)[0]
    averaging.fold(total, update, 0.25)
    averaging.fold(total, update, 0.25)
    np.testing.assert_array_equal(
        averaging.finish(weights, total, 0.5)["critic.a"], update["critic.a"]
    )


@pytest.mark.parametrize("scale", [1.0, 0.1, 40.0])
def test_public_weights_of_any_sum_give_their_weighted_mean(scale: float) -> None:
    weights: Arrays = {"critic.a": np.ones(1, np.float32)}
    values, shares = {"a": 4.0, "b": 8.0}, {"a": 3.0 * scale, "b": 1.0 * scale}
    made = aggregate.average(weights, shares, 2, lambda name: update_of(values[name]))
    assert float(made["critic.a"][0]) == pytest.approx(1 + 5.0)


def test_the_sum_runs_in_the_order_of_names_whatever_the_order_of_the_mapping() -> None:
    weights: Arrays = {"critic.a": np.zeros(1, np.float32)}
    values = {"a": 1e30, "b": 1.0, "c": -1e30}  # in another order the float64 sum is another one
    found = []
    for names in itertools.permutations(values):
        shares = {name: 1.0 for name in names}
        made = aggregate.average(weights, shares, 3, lambda name: update_of(values[name]))
        found.append(float(made["critic.a"][0]))
    assert len(set(found)) == 1


def update_of(value: float) -> Accepted:
    """Stands for an accepted update of one number."""
    return cast(Accepted, SimpleNamespace(arrays={"critic.a": np.full(1, value, np.float32)}))


REFUSED: dict[str, Arrays] = {
    "NaN": {"critic.a": np.full((3, 2), np.nan, np.float32)},
    "infinite": {"critic.a": np.full((3, 2), np.inf, np.float32)},
    "transposed": {"critic.a": np.zeros((2, 3), np.float32)},
    "float64": {"critic.a": np.zeros((3, 2))},
    "another name": {"critic.b": np.zeros((3, 2), np.float32)},
    "one more": {"critic.a": np.zeros((3, 2), np.float32), "loss": np.zeros(1, np.float32)},
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_fold_refuses_and_leaves_the_sum_as_it_was(sentence: str) -> None:
    total = averaging.begin({"critic.a": np.zeros((3, 2), np.float32)})
    with pytest.raises(RefusedError):
        averaging.fold(total, REFUSED[sentence], 1.0)
    assert not total["critic.a"].any()


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_must_be_positive(weight: float) -> None:
    with pytest.raises(RefusedError):
        averaging.fold(
            averaging.begin({"critic.a": np.zeros((3, 2), np.float32)}), deltas(1)[0], weight
        )


def test_a_result_beyond_float32_is_refused() -> None:
    weights: Arrays = {"critic.a": np.full(2, 3e38, np.float32)}
    total = averaging.begin(weights)
    averaging.fold(total, {"critic.a": np.full(2, 3e38, np.float32)}, 1.0)
    with pytest.raises(RefusedError, match="float32"):
        averaging.finish(weights, total, 1.0)
