"""Leave one camera out: who trains, who is tested, and what is asked of a camera nobody knew."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks import leave_one_camera_out as loco
from benchmarks.fundus_sources import Photographs
from server.public_data.images import Source


def photographs(people: int = 12, each: int = 2, missing: int = 0) -> Photographs:
    count = people * each
    return Photographs(
        np.arange(count, dtype=np.uint8)[:, None, None, None] + np.zeros((1, 4, 4, 3), np.uint8),
        np.array([f"{i:03d}" for i in range(count)]),
        np.array([f"p:{i // each:02d}" for i in range(count)]),
        np.array(["ill" if i // each % 2 else "well" for i in range(count)]),
        None,
        missing,
    )


def test_a_third_of_the_people_is_tested_and_trains_nowhere() -> None:
    found = photographs()
    tested = loco.tested_people(found)
    assert len(tested) == 4 and tested == loco.tested_people(found)
    trains = loco.rows_of(found, tested, False)
    tests = loco.rows_of(found, tested, True)
    assert len(trains) == 16 and len(tests) == 8
    assert not set(trains.patients.tolist()) & set(tests.patients.tolist())


def test_the_source_that_is_left_out_trains_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Source] = []
    monkeypatch.setattr(loco, "pretrain", lambda source, *_: seen.append(source))
    cameras = {}
    for i, name in enumerate(("one", "two", "three")):
        part = photographs()
        part.images[:] = 10 * i
        cameras[name] = loco.Camera(part, part)
    for left_out in ("two", loco.NOBODY):
        folder = tmp_path / left_out
        folder.mkdir()
        loco.train(cameras, left_out, folder, 32, 5)
        loco.train(cameras, left_out, folder, 32, 5)  # is there already
    assert [sorted(np.unique(source.images).tolist()) for source in seen] == [
        [0, 20],
        [0, 10, 20],
    ]


def test_a_photograph_without_a_field_counts_as_not_accepted() -> None:
    found = photographs(people=10, missing=5)
    inversion: Any = SimpleNamespace(
        accepted=np.arange(20) % 4 < 3, errors=np.linspace(0.1, 0.5, 20)
    )
    figures = loco.measure(found, inversion)
    assert figures["photographs"] == 25 and figures["accepted"] == 15 / 25
    assert figures["by_label"] == {"ill": 0.5, "well": 1.0}
    assert figures["error"] == pytest.approx(0.3)


def test_labels_with_few_photographs_are_not_compared() -> None:
    inversion: Any = SimpleNamespace(accepted=np.ones(8, bool), errors=np.ones(8))
    assert loco.measure(photographs(people=4), inversion)["by_label"] == {}


@pytest.mark.parametrize(
    ("accepted", "shares", "met"),
    [
        (0.96, {"ill": 0.95, "well": 0.99}, [True, True]),
        (0.94, {"ill": 0.95, "well": 0.99}, [False, True]),
        (0.96, {"ill": 0.90, "well": 0.99}, [True, False]),
        (0.96, {"ill": 0.90}, [True, True]),  # one label differs from nothing
    ],
)
def test_what_is_asked_of_a_camera_that_no_training_knew(
    accepted: float, shares: dict[str, float], met: list[bool]
) -> None:
    one = {
        "photographs": 9,
        "accepted": accepted,
        "by_label": shares,
        "error": 0.3,
        "error_90": 0.4,
    }
    known = {**one, "accepted": 0.1, "by_label": {"ill": 0.0, "well": 1.0}}
    found = {"odir": {"unseen": one, "known": known}}
    assert [target.met for target in loco.targets(found)] == met
    (row,) = loco.table(found).rows
    assert row[2] == f"{accepted:.3f}" and row[4] == "0.100"
