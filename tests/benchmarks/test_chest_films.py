"""The chest films: who may train, whom no training saw, and what the figures compare."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import chest_films, chest_sources
from benchmarks.chest_split import role_of

NUMBERS = [f"{i:08d}" for i in range(40)]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Every source, in small: the second NIH file repeats people of the first."""
    random = np.random.default_rng(0)

    def films(count: int, side: int) -> np.ndarray:
        return random.integers(1, 255, (count, side, side), dtype=np.uint8)

    np.savez(
        tmp_path / "chest_nih_64.npz",
        images=films(20, 64),
        patient=np.array([f"nih:{number}" for number in NUMBERS[30:] * 2]),
    )
    second = {
        "images": films(44, 64),
        "labels": np.array([0, 1] * 20 + [2] * 4, np.uint8),
        "patient": np.array([*NUMBERS, "", "", "", ""]),
        "age": np.array([17] * 4 + [50] * 40, np.int16),
        "view": np.array(["AP", "PA"] * 22),
        "sex": np.array(["F", "M"] * 22),
    }
    np.savez(tmp_path / "cxr_nih_covid_64.npz", **second)
    np.savez(
        tmp_path / "chest_hannover_128.npz",
        images=films(6, 128),
        patient=np.array(["h:1"] * 5 + ["h:2"]),
    )
    children = {}
    for split, count in (("train", 30), ("val", 6), ("test", 6)):
        children[f"{split}_images"] = films(count, 28)
        children[f"{split}_labels"] = np.arange(count, dtype=np.uint8)[:, None] % 2
    np.savez(tmp_path / "pneumoniamnist_28.npz", **children)
    return tmp_path


def test_no_left_out_patient_and_nobody_under_age_trains(data: Path) -> None:
    images, weights, names = chest_sources.gather(data, 32)
    assert images.shape == (len(names), 32, 32, 1) and len(weights) == len(names)
    roles = role_of(np.array(NUMBERS))
    trained = {name.removeprefix("nih:") for name in names if name.startswith("nih:")}
    assert trained and all(roles[person] == "public" for person in trained)
    minors = set(NUMBERS[:4])
    assert not trained & (minors - set(NUMBERS[30:]))
    assert "" not in trained


def test_a_patient_counts_once_and_a_source_has_its_share(data: Path) -> None:
    _, weights, names = chest_sources.gather(data, 32)
    hannover = {name: 0.0 for name in names if name.startswith("hannover")}
    for name, weight in zip(names, weights, strict=True):
        if name in hannover:
            hannover[name] += weight
    assert hannover == pytest.approx({"hannover:h:1": 0.1, "hannover:h:2": 0.1})
    assert weights.sum() == pytest.approx(1)
    _, without, fewer = chest_sources.gather(data, 32, ("nih",))
    assert without.sum() == pytest.approx(1)
    assert not any(name.startswith("nih") for name in fewer)


def test_who_gives_and_who_tests_are_other_people_and_none_trained(data: Path) -> None:
    task = chest_films.left_out(data, 32, "view")
    _, _, names = chest_sources.gather(data, 32)
    adults = np.array(NUMBERS)[4:]
    roles = role_of(np.array(NUMBERS))
    left = [person for person in adults if roles[person] != "public"]
    assert len(task.images) == len(left)
    assert not {f"nih:{person}" for person in left} & set(names)
    assert not set(task.patients) & set(task.test) and len(task.test) > 0


def test_shares_are_of_the_pixel_averages() -> None:
    aucs = {"real": [1.0], "pixels": [0.8, 0.8], "plain": [0.8, 0.72], "private": [0.6, 0.6]}
    assert chest_films.shares(aucs) == pytest.approx((0.95, 0.75))
    met = [target.met for target in chest_films.targets_of("x", aucs)]
    assert met == [True, False]
