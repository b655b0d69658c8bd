"""The split that every fundus benchmark imports is disjoint, complete and fixed.

Its members are the demo's photographs.
"""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.fundus_split import HELDOUT, ROLES, demo_sides, people, right_eyes, roles, split


def files(folder: Path, names: list[str], grades: list[int], digests: list[str]) -> Path:
    """An idrid_64.npz of black photographs."""
    images = np.zeros((len(names), 64, 64, 3), np.uint8)
    np.savez(folder / "idrid_64.npz", images=images, name=names, labels=grades, source_md5=digests)
    return folder


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=20, max_size=60), st.integers(1, 9), st.randoms())
def test_every_person_has_one_role_whatever_the_order(
    grades: list[int], heldout: int, shuffle: object
) -> None:
    names = np.array([f"train/{i:03d}" for i in range(len(grades))])
    members = set(names[:10].tolist())
    role = roles(names, np.array(grades), members, heldout)
    assert set(names[role == "members"].tolist()) == members
    assert (role == "heldout").sum() == heldout
    order = np.arange(len(names))
    shuffle.shuffle(order)  # type: ignore[attr-defined]
    assert (roles(names[order], np.array(grades)[order], members, heldout) == role[order]).all()


def test_the_held_out_have_the_others_grades_to_within_one_person() -> None:
    grades = np.array([0] * 40 + [1] * 7 + [4] * 13)
    names = np.array([f"train/{i:03d}" for i in range(60)])
    role = roles(names, grades, set(), 30)
    counts = [int((grades[role == "heldout"] == grade).sum()) for grade in (0, 1, 4)]
    assert counts[0] == 20
    assert sorted(counts[1:]) in ([3, 7], [4, 6])


@pytest.mark.parametrize("pair", [(0, 3), (3, 0)])
def test_identical_files_are_one_person_with_the_highest_grade(
    tmp_path: Path, pair: tuple[int, int]
) -> None:
    folder = files(
        tmp_path, ["train/1", "train/2", "test/3"], [pair[0], 2, pair[1]], ["a", "b", "a"]
    )
    everyone = people(64, folder)
    assert everyone.names.tolist() == ["train/1", "train/2"]
    assert everyone.grades.tolist() == [3, 2]


def test_the_disc_tells_the_side_and_a_known_side_wins() -> None:
    y, x = np.mgrid[:64, :64]
    eyes = np.full((6, 64, 64, 3), 90, np.uint8)
    for i, eye in enumerate(eyes):
        eye[(x - (50 if i % 2 else 13)) ** 2 + (y - 30 - i) ** 2 < 16] = 230
    names = np.array(list("abcdef"))
    assert right_eyes(eyes, names, {}).tolist() == [False, True] * 3
    assert right_eyes(eyes, names, {"a": True}).tolist() == [True, True, False, True, False, True]


def test_the_demos_189_photographs_are_the_members() -> None:
    names = np.array(
        [f"train/IDRiD_{i:03d}" for i in range(1, 414)]
        + [f"test/IDRiD_{i:03d}" for i in range(1, 104)]
    )
    role = roles(names, np.zeros(len(names), np.int64), set(demo_sides()))
    assert (role == "members").sum() == len(demo_sides()) == 189


def test_the_real_split_never_changes() -> None:
    try:
        parts = split(64, Path(__file__).resolve().parents[3] / "shared" / "data")
    except FileNotFoundError:
        pytest.skip("no IDRiD beside the project")
    assert [len(parts[name]) for name in ROLES] == [189, HELDOUT, 211]
    listed = "\n".join(
        f"{role} {name}" for role in ROLES for name in sorted(parts[role].names.tolist())
    )
    assert (
        hashlib.sha256(listed.encode()).hexdigest()
        == "1724cdf91569aa82c5baf024ea8519ac3c5eebf89b03b5461dce9351db1f45d0"
    )
