"""Attackers' scores: no image against itself, a person by the best image, whitening by one set."""

import numpy as np
import pytest

from common.measure import attack_scores


def population(count: int, seed: int, dimension: int = 40) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, dimension))


MEMBERS = population(80, 0)
OTHERS = population(60, 1)


def test_nobody_is_compared_with_oneself_by_the_density_ratio() -> None:
    own = np.arange(60)
    seen, left_out = (
        attack_scores.density_ratio(OTHERS, MEMBERS, OTHERS, rows) for rows in (None, own)
    )
    assert (left_out > seen).all()
    assert attack_scores.density_ratio(OTHERS, OTHERS[::-1], OTHERS) == pytest.approx(np.zeros(60))


def test_a_person_scores_by_the_best_image() -> None:
    assert attack_scores.best_by_person(
        np.array([1.0, 5.0, 2.0, 3.0]), np.array([0, 0, 1, 1])
    ).tolist() == [
        5.0,
        3.0,
    ]


def test_whitening_sees_one_set_alone() -> None:
    sets = {
        "fit": population(200, 6) * np.arange(1, 41),
        "other": population(50, 7) * np.arange(1, 41),
    }
    found = attack_scores.whiten(sets, "fit", 5)
    assert found["fit"].std(0) == pytest.approx(np.ones(5), abs=1e-6)
    again = attack_scores.whiten({**sets, "other": sets["other"] * 100}, "fit", 5)
    assert again["fit"] == pytest.approx(found["fit"])
