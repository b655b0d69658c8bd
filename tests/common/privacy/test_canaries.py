"""Canaries: secrets and tallies, their files, and what is refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from common.errors import RefusedError
from common.privacy.canaries import (
    LARGEST_BLOCK,
    Secret,
    block_size,
    draw,
    inside_count,
    nobody,
)
from common.privacy.mechanisms import SubsampledGaussian
from common.privacy.noise import NoiseSource, SeededNoiseSource
from common.privacy.tally import Tally
from tests.heard import honest_tally

COUNT, DIMENSION = 8, 100
EVENT = SubsampledGaussian(0.25, 3.0, 12, COUNT + DIMENSION)
SECRET = draw(SeededNoiseSource(1), COUNT, DIMENSION)


def heard() -> Tally:
    """The tally of eight canaries over two tensors, with C = 1 and B = 64."""
    return honest_tally(SECRET, EVENT, 1.0, 64, SeededNoiseSource(2), (60, 40))


def test_a_tally_survives_its_file_and_refuses_another() -> None:
    tally = heard()
    again = Tally.from_arrays(tally.arrays())
    for name, array in tally.arrays().items():
        assert np.array_equal(again.arrays()[name], array)
    twice = again + tally
    assert (twice.steps, twice.own.scores[0]) == (24, 2 * tally.own.scores[0])
    other = dataclasses.replace(tally.own, included=~tally.own.included)
    with pytest.raises(RefusedError, match="different coins"):
        tally + dataclasses.replace(tally, own=other)
    with pytest.raises(RefusedError, match="other tensors"):
        tally + dataclasses.replace(tally, sizes=tally.sizes[::-1])


DAMAGED: dict[str, Any] = {
    "a tensor missing": lambda a: {name: v for name, v in a.items() if name != "own.squares"},
    "a tensor more": lambda a: a | {"names": np.zeros(8)},
    "another length": lambda a: a | {"inside.scores": np.zeros(7)},
    "another length of the release": lambda a: a | {"sizes": np.zeros(1, np.int64)},
    "another type": lambda a: a | {"own.scores": np.zeros(8, np.float32)},
    "another shape": lambda a: a | {"steps": np.zeros((1, 1), np.int64)},
    "not a number": lambda a: a | {"inside.scores": np.full(4, np.nan)},
    "negative steps": lambda a: a | {"steps": np.array([-1])},
    "negative draws": lambda a: a | {"own.drawn": np.full(8, -1)},
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_tally_is_refused(case: str) -> None:
    with pytest.raises(RefusedError) as refused:
        Tally.from_arrays(DAMAGED[case](heard().arrays()))
    assert refused.value.code == "E-CANARIES"


DAMAGED_SECRETS: dict[str, Any] = {
    "an array missing": lambda a: {name: v for name, v in a.items() if name != "signs"},
    "another type": lambda a: a | {"own": a["own"].astype(np.int64)},
    "a place twice": lambda a: a | {"places": np.zeros_like(a["places"])},
    "a negative place": lambda a: a | {"places": a["places"] - 200},
    "a sign that is none": lambda a: a | {"signs": a["signs"] * 2},
    "a direction too few": lambda a: a | {"places": a["places"][1:], "signs": a["signs"][1:]},
    "one long vector": lambda a: a | {"places": a["places"].ravel()},
}


@pytest.mark.parametrize("case", DAMAGED_SECRETS)
def test_a_damaged_secret_is_refused(case: str) -> None:
    with pytest.raises(RefusedError) as refused:
        Secret.from_arrays(DAMAGED_SECRETS[case](SECRET.arrays()))
    assert refused.value.code == "E-CANARIES"


def test_a_secret_survives_its_file() -> None:
    again = Secret.from_arrays(SECRET.arrays())
    for name, array in SECRET.arrays().items():
        assert np.array_equal(again.arrays()[name], array)
    assert nobody().arrays()["places"].shape == (0, 1)


@pytest.mark.parametrize(("count", "dimension"), [(300, 391_945), (300, 3073), (1, 9), (300, 3)])
def test_no_two_directions_share_a_coordinate(count: int, dimension: int) -> None:
    secret = draw(NoiseSource(), count, dimension)
    inside = inside_count(count, dimension)
    block = block_size(inside, dimension)
    assert secret.places.shape == secret.signs.shape == (inside, block)
    assert inside == min((count + 1) // 2, dimension) and 1 <= block <= LARGEST_BLOCK
    assert len(np.unique(secret.places)) == secret.places.size
    assert secret.places.min() >= 0 and secret.places.max() < dimension


def test_places_signs_and_coins_are_fresh_and_fair() -> None:
    one, two = (draw(NoiseSource(), 2000, 10**6) for _ in range(2))
    assert not np.array_equal(one.places, two.places)
    assert abs(one.own.mean() - 0.5) < 0.06 and abs(one.inside.mean() - 0.5) < 0.08
    assert abs(one.signs.mean()) < 0.02
    assert abs(one.places.mean() / 5e5 - 1) < 0.02  # anywhere in the vector
