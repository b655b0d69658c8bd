"""Tallies of canaries: their file, and what is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from common.errors import RefusedError
from common.privacy.canaries import Canaries, Tally, draw, rehearse
from common.privacy.mechanisms import SubsampledGaussian
from common.privacy.noise import SeededNoiseSource

EVENT = SubsampledGaussian(0.25, 3.0, 12)


def rehearsed() -> Tally:
    """The tally of eight canaries in a rehearsal with C = 1 and B = 64."""
    noise = SeededNoiseSource(1)
    canaries = Canaries(draw(noise, 8))
    rehearse(canaries, EVENT, 1.0, 64, noise)
    return canaries.tally()


def test_a_tally_survives_its_file_and_refuses_another() -> None:
    tally = rehearsed()
    again = Tally.from_arrays(tally.arrays())
    assert np.array_equal(again.scores, tally.scores) and np.array_equal(
        again.included, tally.included
    )
    assert (again.steps, again.squares.tolist()) == (12, tally.squares.tolist())
    with pytest.raises(RefusedError, match="different coins"):
        tally + dataclasses.replace(tally, included=~tally.included)


DAMAGED = {
    "a tensor missing": lambda a: {name: v for name, v in a.items() if name != "squares"},
    "a tensor more": lambda a: a | {"names": np.zeros(8)},
    "another length": lambda a: a | {"scores": np.zeros(7)},
    "another type": lambda a: a | {"scores": np.zeros(8, np.float32)},
    "not a number": lambda a: a | {"scores": np.full(8, np.nan)},
    "negative steps": lambda a: a | {"steps": np.array([-1])},
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_tally_is_refused(case: str) -> None:
    with pytest.raises(RefusedError) as refused:
        Tally.from_arrays(DAMAGED[case](rehearsed().arrays()))
    assert refused.value.code == "E-CANARIES"
