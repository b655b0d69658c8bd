"""Grouping: sizes, strata, order, the greedy rule against a plain loop, swaps, codes, and the sticky store's file."""

import sqlite3
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.synthesize import group as g
from common.errors import Bug, ConfigurationError, EnvironmentFault, PolicyError

KEY = b"k" * 32


def names(count: int) -> list[str]:
    return [f"{i:064x}" for i in range(count)]


def flat_roster(count: int) -> g.Roster:
    return g.roster(names(count), np.arange(count), np.zeros(count, int), key=KEY)


def points(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 6))


@settings(max_examples=60, deadline=None)
@given(
    patients=st.integers(1, 40),
    k=st.integers(2, 7),
    mode=st.sampled_from(["similar", "swap", "paper", "random"]),
    seed=st.integers(0, 10_000),
)
def test_any_cohort_is_partitioned_into_groups_of_k_to_2k_minus_1(patients: int, k: int, mode: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    patient_of = np.repeat(np.arange(patients), rng.integers(1, 4, patients))
    who = g.roster(names(patients), patient_of, rng.integers(-1, 3, len(patient_of)), key=KEY,
                   laterality_of=rng.integers(0, 3, len(patient_of)))  # fmt: skip
    codes = None if mode == "random" else g.patient_codes(rng.normal(size=(len(patient_of), 5)), who)
    rule: g.Mode = "similar" if mode == "swap" else mode  # type: ignore[assignment]
    if len(who.pseudonyms) < k:
        with pytest.raises(PolicyError, match=f"at least k={k} distinct patients"):
            g.form_groups(who, k, rule, key=KEY, codes=codes)
        return
    grouping = g.form_groups(who, k, rule, key=KEY, codes=codes, swap=mode == "swap")
    everyone = [m for group in grouping.groups for m in group.members] + list(grouping.suppressed)
    assert sorted(everyone) == sorted(who.pseudonyms)
    assert all(k <= len(group.members) <= 2 * k - 1 for group in grouping.groups)
    stratum_of = dict(zip(who.pseudonyms, who.strata, strict=True))
    assert all(stratum_of[m] == group.stratum for group in grouping.groups for m in group.members)
    small = {s for s in who.strata if who.strata.count(s) < k}
    assert {stratum_of[m] for m in grouping.suppressed} == small


def naive_greedy(x: np.ndarray, k: int) -> list[set[int]]:
    """The published rule, recomputing every sum; k must divide len(x)."""
    left, found = list(range(len(x))), []
    while left:
        far = max(left, key=lambda i: sum(np.linalg.norm(x[i] - x[j]) for j in left))
        near = sorted((i for i in left if i != far), key=lambda i: np.linalg.norm(x[i] - x[far]))[: k - 1]
        found.append({far, *near})
        left = [i for i in left if i not in found[-1]]
    return found


@pytest.mark.parametrize("k", [2, 3, 5])
def test_greedy_gives_the_groups_of_the_published_rule(k: int) -> None:
    x = points(30, seed=k)
    who = flat_roster(30)
    codes = g.patient_codes(x, who)
    grouping = g.form_groups(who, k, "paper", key=KEY, codes=codes)
    mine = {frozenset(group.members) for group in grouping.groups}
    assert mine == {frozenset(who.pseudonyms[i] for i in part) for part in naive_greedy(codes, k)}


def test_the_remainder_joins_the_group_of_its_nearest_patient() -> None:
    x = np.array([[0.0], [0.1], [0.2], [10.0], [10.1], [10.2], [10.35]])
    parts = {frozenset(part) for part in g._greedy_parts(x, 3)}
    assert {len(p) for p in parts} == {3, 4}
    assert frozenset({0, 1, 2}) in parts


def squared_error(x: np.ndarray, parts: list[list[int]]) -> float:
    return float(sum(((x[p] - x[p].mean(0)) ** 2).sum() for p in parts))


def test_swaps_lower_the_error_and_keep_the_sizes() -> None:
    x = points(53)
    before = g._greedy_parts(x, 5)
    after = g._swapped(x, before)
    assert sorted(map(len, before)) == sorted(map(len, after))
    assert sorted(i for part in after for i in part) == list(range(53))
    assert squared_error(x, after) < squared_error(x, before)


def test_a_patient_code_is_the_mean_of_its_images_whatever_their_number() -> None:
    codes = np.array([[0.0], [2.0], [4.0], [9.0]])
    who = g.roster(["a", "b"], np.array([0, 0, 0, 1]), np.zeros(4, int), key=KEY)
    found = dict(zip(who.pseudonyms, g.patient_codes(codes, who)[:, 0], strict=True))
    assert found == {"a": 2.0, "b": 9.0}


def test_conflicting_labels_take_the_highest_and_only_its_images_count() -> None:
    who = g.roster(["a"], np.zeros(3, int), np.array([0, 3, 3]), laterality_of=np.array([1, 2, 2]), key=KEY)
    assert (who.strata, who.images) == ((g.Stratum(3, 2),), ((1, 2),))


def test_an_unlabelled_or_rejected_image_does_not_enter() -> None:
    usable = np.array([True, True, False])
    who = g.roster(names(3), np.arange(3), np.array([-1, 0, 0]), key=KEY, usable=usable)
    assert who.pseudonyms == (names(3)[1],)


@pytest.mark.parametrize(
    ("mode", "codes", "swap", "words"),
    [
        ("random", points(6), False, "no pixel may decide"),
        ("similar", None, False, "needs one code per patient"),
        ("similar", points(5), False, "needs one code per patient"),
        ("paper", points(6), True, "swap=True"),
        ("nearest", points(6), False, "mode 'nearest'"),
        ("similar", np.full((6, 2), np.nan), False, "not finite"),
    ],
)
def test_what_does_not_fit_the_mode_is_refused(mode: str, codes: np.ndarray | None, swap: bool, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        g.form_groups(flat_roster(6), 3, mode, key=KEY, codes=codes, swap=swap)  # type: ignore[arg-type]


def test_another_key_gives_another_random_grouping() -> None:
    first = g.form_groups(flat_roster(30), 5, "random", key=KEY)
    assert g.form_groups(flat_roster(30), 5, "random", key=KEY) == first
    assert set(g.form_groups(flat_roster(30), 5, "random", key=b"x" * 32).groups) != set(first.groups)


def test_one_patient_in_two_groups_is_a_bug() -> None:
    one, two = g.Group(("a", "b"), g.Stratum(0), 2), g.Group(("b", "c"), g.Stratum(0), 2)
    with pytest.raises(Bug, match="two places"):
        g.Grouping((one, two), ())


def test_the_store_returns_what_was_frozen_and_its_file_is_private(tmp_path: Path) -> None:
    grouping = g.form_groups(flat_roster(12), 5, "random", key=KEY)
    store = g.GroupStore(tmp_path / "groups.sqlite")
    store.freeze(grouping)
    store.close()
    again = g.GroupStore(tmp_path / "groups.sqlite")
    assert set(again.groups()) == set(grouping.groups)
    assert (tmp_path / "groups.sqlite").stat().st_mode & 0o077 == 0
    again.close()


@pytest.mark.parametrize("statement", ["DELETE FROM member", "UPDATE member SET token = 'x'", "DELETE FROM grouped"])
def test_the_store_cannot_be_rewritten_by_a_statement(tmp_path: Path, statement: str) -> None:
    store = g.GroupStore(tmp_path / "groups.sqlite")
    store.freeze(g.form_groups(flat_roster(5), 5, "random", key=KEY))
    db = sqlite3.connect(tmp_path / "groups.sqlite")
    with pytest.raises(sqlite3.IntegrityError, match="append only"):
        db.execute(statement)
    db.close()
    store.close()


def test_a_damaged_store_is_an_error_with_a_hint(tmp_path: Path) -> None:
    path = tmp_path / "groups.sqlite"
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(EnvironmentFault) as caught:
        g.GroupStore(path)
    assert "backup" in caught.value.hint
