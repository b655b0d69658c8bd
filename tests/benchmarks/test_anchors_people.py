"""Of 700 people: what is counted, and what is asked."""

from typing import Any

import numpy as np
import pytest

from benchmarks.anchors_people import COLUMNS, describe, line, publish, tables, targets
from client.synthesize.partition import Cells
from common.privacy.anchors import NoisyAnchors

MECHANISM = NoisyAnchors(0.6, 4, 2, 10, 1e-6)
CELLS = Cells(np.array([[-1.0, 0, 0, 0], [1.0, 0, 0, 0]]))


def codes(scale: float = 1.0) -> np.ndarray:
    """60 people left of the middle and 40 right of it."""
    found = np.random.default_rng(0).normal(0, 0.1, (100, 4))
    found[:60, 0] -= 1
    found[60:, 0] += 1
    return found * scale


def test_people_and_cells_are_counted_and_noise_is_set_beside_what_tells_cells_apart() -> None:
    near = codes()
    who, means = publish(near, CELLS, MECHANISM, 0)
    found = describe(near, CELLS, MECHANISM, who, means)
    assert (found["published"], found["people"], found["largest"]) == (2, 100, 60)
    assert found["clipped"] == 0
    assert found["error"] < 0.1
    # outside of the ball all are cut, and a cell's noisy mean is far from its own
    far = codes(9.0)
    who, means = publish(far, CELLS, MECHANISM, 0)
    cut = describe(far, CELLS, MECHANISM, who, means)
    assert cut["clipped"] == 1
    assert cut["error"] == pytest.approx((7 / 9) ** 2, abs=0.1)


def row(published: float, space: str = "public basis") -> dict[str, Any]:
    figures = {"people": 1, "largest": 1, "clipped": 0, "error": 0, "frechet": 1}
    return {"space": space, "cells": 12, "published": published, **figures}


def test_most_cells_of_a_basis_shall_be_published() -> None:
    assert targets([row(7)], 700)[0].met
    assert not targets([row(7), row(6)], 700)[0].met
    assert targets([row(7), row(2, "generator samples")], 700)[0].met
    assert not targets([], 700)[0].met
    assert len(tables([row(7)])[0].rows[0]) == len(COLUMNS)


def test_a_line_has_room_for_twelve() -> None:
    assert line(np.ones((3, 2, 2, 3), np.uint8)).sum() == 3 * 12
    assert line(np.ones((15, 2, 2, 3), np.uint8)).shape == (2, 24, 3)
