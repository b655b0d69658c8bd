"""What is promised of groups (docs/promises/2-k-anonymous-images.md), as theorems.

At least k distinct patients stand behind every number, and memberships are final.
"""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from client.ingest.joins import group_by_person
from client.ingest.likeness import near_duplicates
from client.ingest.persons import ImageRecord
from client.state import group_store
from client.synthesize import group as g
from client.synthesize.align import GroupStatistics, PatientStatistics
from client.synthesize.reference import Whitening
from common.errors import Bug, PolicyError

KEY = b"k" * 32
STRATUM = group_store.Stratum(1, 2)


def names(count: int, first: int = 0) -> list[str]:
    return [f"{i:064x}" for i in range(first, first + count)]


def flat_roster(pseudonyms: list[str], label: int = 1) -> g.Roster:
    return g.roster(
        pseudonyms, np.arange(len(pseudonyms)), np.full(len(pseudonyms), label), key=KEY
    )


def frozen(path: Path, *memberships: list[str], k: int = 3) -> group_store.GroupStore:
    store = group_store.GroupStore(path)
    store.freeze(
        group_store.Grouping(
            tuple(group_store.Group(tuple(m), group_store.Stratum(1), k) for m in memberships), ()
        )
    )
    return store


@pytest.mark.parametrize(
    "members",
    [("a", "b"), ("a", "b", "b"), ("a", "b", "c", "c"), ()],
    ids=["two", "one twice", "k and a repeat", "none"],
)
def test_no_group_holds_fewer_than_k_distinct_patients(members: tuple[str, ...]) -> None:
    with pytest.raises(PolicyError) as caught:
        group_store.Group(members, STRATUM, 3)
    assert caught.value.code == "E-GROUP-SIZE"
    with pytest.raises(PolicyError):
        replace(group_store.Group(("a", "b", "c"), STRATUM, 3), members=members)


@pytest.mark.parametrize("k", [1, 0, -5])
def test_no_group_has_a_k_below_two(k: int) -> None:
    with pytest.raises(PolicyError):
        group_store.Group(("a",), STRATUM, k)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), mode=st.sampled_from(g.MODES))
def test_grouping_does_not_depend_on_input_order(seed: int, mode: g.Mode) -> None:
    rng = np.random.default_rng(seed)
    patient_of = np.repeat(np.arange(17), rng.integers(1, 4, 17))
    labels, codes = (
        rng.integers(0, 2, len(patient_of)),
        rng.integers(0, 3, (len(patient_of), 2)),
    )  # many ties

    def grouped(order: np.ndarray, relabel: np.ndarray) -> group_store.Grouping:
        pseudonyms = [names(17)[i] for i in np.argsort(relabel)]
        who = g.roster(pseudonyms, relabel[patient_of[order]], labels[order], key=KEY)
        points = None if mode == "random" else g.patient_codes(codes[order], who)
        cells = g.Cells(np.eye(2) * 2.5) if mode in ("cells", "anchors") else None
        return g.form_groups(who, 3, mode, key=KEY, codes=points, cells=cells)

    plain = grouped(np.arange(len(patient_of)), np.arange(17))
    assert grouped(rng.permutation(len(patient_of)), rng.permutation(17)) == plain


def test_one_patient_with_many_images_counts_once() -> None:
    patient_of = np.repeat(np.arange(5), 2)  # ten images, five people
    who = g.roster(names(5), patient_of, np.zeros(10, int), key=KEY)
    (only,) = g.form_groups(who, 5, "random", key=KEY).groups
    assert only.members == tuple(names(5))
    with pytest.raises(PolicyError):
        g.form_groups(who, 6, "random", key=KEY)


def test_two_rows_with_one_pseudonym_are_one_patient() -> None:
    who = g.roster(["a", "b", "a"], np.arange(3), np.zeros(3, int), key=KEY)
    with pytest.raises(PolicyError):
        g.form_groups(who, 3, "random", key=KEY)


def test_random_groups_see_no_pixel() -> None:
    with pytest.raises(Exception, match="no pixel"):
        g.form_groups(flat_roster(names(6)), 3, "random", key=KEY, codes=np.zeros((6, 2)))


@pytest.mark.parametrize(
    "members",
    [names(4), names(2) + names(1, 9), names(3, 2), names(3) + names(3, 3)],
    ids=["one more", "one swapped", "across two groups", "two groups joined"],
)
def test_an_intersecting_re_release_is_refused(tmp_path: Path, members: list[str]) -> None:
    store = frozen(tmp_path / "groups.sqlite", names(3), names(3, 3))
    with pytest.raises(PolicyError) as caught:
        store.freeze(
            group_store.Grouping(
                (group_store.Group(tuple(members), group_store.Stratum(1), 3),), ()
            )
        )
    assert caught.value.code == "E-GROUP-OVERLAP"
    store.close()


def test_one_patient_fewer_is_refused(tmp_path: Path) -> None:
    store = frozen(tmp_path / "groups.sqlite", names(4))
    with pytest.raises(PolicyError):
        store.freeze(
            group_store.Grouping(
                (group_store.Group(tuple(names(3)), group_store.Stratum(1), 3),), ()
            )
        )
    store.close()


def test_an_identical_re_release_is_allowed(tmp_path: Path) -> None:
    store = frozen(tmp_path / "groups.sqlite", names(3))
    before = store.groups()
    store.freeze(
        group_store.Grouping(
            (group_store.Group(tuple(reversed(names(3))), group_store.Stratum(1), 3),), ()
        )
    )
    assert store.groups() == before
    store.close()


def test_a_refused_freeze_leaves_nothing_behind(tmp_path: Path) -> None:
    store = frozen(tmp_path / "groups.sqlite", names(3))
    good, bad = (
        group_store.Group(tuple(m), group_store.Stratum(1), 3) for m in (names(3, 50), names(3, 2))
    )
    with pytest.raises(PolicyError):
        store.freeze(group_store.Grouping((good, bad), ()))
    assert len(store.groups()) == 1
    store.close()


def test_new_patients_group_only_among_themselves(tmp_path: Path) -> None:
    store = group_store.GroupStore(tmp_path / "groups.sqlite")
    first = g.regroup(store.groups(), flat_roster(names(6)), 3, "random", key=KEY)
    store.freeze(first)
    two_more = g.regroup(store.groups(), flat_roster(names(8)), 3, "random", key=KEY)
    assert (set(two_more.groups), two_more.suppressed) == (set(first.groups), tuple(names(2, 6)))
    four_more = g.regroup(store.groups(), flat_roster(names(10)), 3, "random", key=KEY)
    assert set(first.groups) < set(four_more.groups)
    assert {m for group in set(four_more.groups) - set(first.groups) for m in group.members} == set(
        names(4, 6)
    )
    store.freeze(four_more)
    store.close()


def test_a_group_that_lost_a_patient_is_held_back_whole(tmp_path: Path) -> None:
    store = frozen(tmp_path / "groups.sqlite", names(5), k=3)
    left = flat_roster(names(4) + names(3, 20))
    grouping = g.regroup(store.groups(), left, 3, "random", key=KEY)
    assert [set(group.members) for group in grouping.groups] == [set(names(3, 20))]
    assert grouping.suppressed == tuple(names(4))
    store.close()


def test_a_withdrawal_leaves_the_rest_in_no_group(tmp_path: Path) -> None:
    """Neither again without the one who left, nor among new patients, in any later release."""
    store = frozen(tmp_path / "groups.sqlite", names(5), names(5, 5), k=5)
    stayed = flat_roster(names(4) + names(5, 5) + names(10, 20))
    for _ in range(2):
        grouping = g.regroup(store.groups(), stayed, 5, "random", key=KEY)
        assert not {m for group in grouping.groups for m in group.members} & set(names(4))
        assert set(names(4)) <= set(grouping.suppressed)
        assert any(group.members == tuple(names(5, 5)) for group in grouping.groups)
        store.freeze(grouping)
    store.close()


def test_a_frozen_group_below_the_k_of_a_later_study_is_held_back_whole() -> None:
    group = g.Group(tuple(names(3)), g.Stratum(1), 3)
    again, held, fresh = g.settle_frozen([group], flat_roster(names(9)), 4)
    assert again == ()
    assert held == tuple(names(3))
    assert set(fresh.pseudonyms) == set(names(6, 3))


def test_a_group_with_a_member_of_another_stratum_by_now_is_held_back_whole() -> None:
    """Its label would no longer be true of that member, and the others alone would isolate them."""
    before, now = g.Stratum(1), g.Stratum(2)
    group = g.Group(tuple(names(3)), before, 3)
    who = g.Roster(
        tuple(names(6)), (now, before, before, *(before,) * 3), tuple((i,) for i in range(6))
    )
    again, held, fresh = g.settle_frozen([group], who, 3)
    assert again == ()
    assert held == tuple(names(3))
    assert fresh.pseudonyms == tuple(names(3, 3))


def test_two_frozen_members_who_turn_out_to_be_one_person_hold_their_group_back(
    tmp_path: Path,
) -> None:
    """The intake joins them under one of two names; the group of the other is no longer whole."""
    store = frozen(tmp_path / "groups.sqlite", names(3), names(3, 3))
    within = g.regroup(
        store.groups(), flat_roster(names(2) + names(3, 3)), 3, "random", key=KEY
    )  # members 1 and 2 are one
    assert [group.members for group in within.groups] == [tuple(names(3, 3))]
    across = g.regroup(
        store.groups(), flat_roster(names(5)), 3, "random", key=KEY
    )  # members 0 and 5 are one, named 0
    assert [group.members for group in across.groups] == [tuple(names(3))]
    assert across.suppressed == tuple(names(2, 3))
    store.close()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), people=st.integers(3, 12))
def test_photographs_under_two_ids_count_once(seed: int, people: int) -> None:
    """The intake's rule: the same picture, or almost, under two ids is one person."""
    rng = np.random.default_rng(seed)
    pictures = rng.integers(0, 255, (people, 16, 16, 1)).astype(np.uint8)
    resaved = np.clip(pictures[:2] + rng.integers(0, 2, (2, 16, 16, 1)), 0, 255).astype(np.uint8)
    images = np.concatenate(
        [pictures, pictures[2:3], resaved]
    )  # one copied, two saved again, each under a new id
    digests = ["".join(map(str, image.tobytes())) for image in images]
    records = [ImageRecord(i, (f"id {i}",), 0, 0, digest) for i, digest in enumerate(digests)]
    persons = group_by_person(records, near_duplicates(images))
    assert len(persons) == people
    patient_of = np.empty(len(images), int)
    for person, found in enumerate(persons):
        patient_of[[s.position for s in found]] = person
    who = g.roster(names(people), patient_of, np.zeros(len(images), int), key=KEY)
    (only,) = g.form_groups(who, people, "random", key=KEY).groups
    assert len(only.members) == people
    with pytest.raises(PolicyError):
        g.form_groups(who, people + 1, "random", key=KEY)


THREADS = """
import hashlib, sys
import numpy as np
from client.synthesize import partition
codes = np.random.default_rng(0).normal(size=(900, 64))
parts = [partition.greedy_with_swaps(codes, 7), partition.cells_of_rows(codes, codes[:40], 14)]
partition.MOST_BY_DISTANCES = 10
parts.append(partition.greedy(codes, 7))
print(hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest())
"""


def test_one_and_two_threads_give_the_same_groups() -> None:
    found = {
        subprocess.run(
            [sys.executable, "-c", THREADS],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "OPENBLAS_NUM_THREADS": threads, "OMP_NUM_THREADS": threads},
        ).stdout
        for threads in ("1", "2")
    }
    assert len(found) == 1


CRASH = """
import os, signal, sys
from pathlib import Path
from client.state.group_store import Group, Grouping, GroupStore, Stratum
store = GroupStore(Path(sys.argv[1]))
store.freeze(Grouping((Group(("a", "b", "c"), Stratum(1), 3),), ()))
os.kill(os.getpid(), signal.SIGKILL)  # before anything is sent
"""


def test_a_crash_between_freeze_and_send_leaves_the_freeze(tmp_path: Path) -> None:
    path = tmp_path / "groups.sqlite"
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", CRASH, str(path)], check=False, env=env)
    assert done.returncode == -signal.SIGKILL
    store = group_store.GroupStore(path)
    assert [group.members for group in store.groups()] == [("a", "b", "c")]
    with pytest.raises(PolicyError):
        store.freeze(
            group_store.Grouping(
                (group_store.Group(("a", "b", "d"), group_store.Stratum(1), 3),), ()
            )
        )
    store.close()


def statistics(group: object, support: tuple[int, ...]) -> GroupStatistics:
    grams = torch.zeros(len(support), 2, 2)
    return GroupStatistics(group, torch.zeros(6, 4), torch.zeros(8), grams, support)  # type: ignore[arg-type]


def test_alignment_sees_only_statistics_over_at_least_k_patients() -> None:
    group = group_store.Group(("a", "b", "c"), STRATUM, 3)
    assert statistics(group, (3, 3)).group is group
    for support in ((2, 3), (3, 0), ()):
        with pytest.raises(PolicyError):
            statistics(group, support)
    with pytest.raises(PolicyError):
        GroupStatistics(group, torch.zeros(6, 4), torch.zeros(8), torch.zeros(2, 2, 2), (3,))
    with pytest.raises(Bug):
        statistics(("a", "b", "c"), (3, 3))
    with pytest.raises(Bug):
        statistics(PatientStatistics(torch.zeros(6, 4), torch.zeros(8), torch.zeros(1, 2, 2)), (3,))


def test_whitening_is_never_fitted_to_the_cohort() -> None:
    with pytest.raises(Bug, match="GeneratorCodes"):
        Whitening.fit(np.zeros((20, 4)), 2)  # type: ignore[arg-type]


def test_a_frozen_group_is_whole_where_every_member_has_an_image_in_its_stratum(
    tmp_path: Path,
) -> None:
    """Its images are not made anew, so it does not matter which of them invert well."""
    store = frozen(tmp_path / "groups.sqlite", names(3), names(3, 3))
    stratum = group_store.Stratum(1)
    elsewhere = group_store.Stratum(0)
    inverted = flat_roster(names(4, 2))  # of members 0 and 1 no image counts today
    present = {name: {stratum, elsewhere} for name in names(6)}
    again, held, fresh = g.settle_frozen(store.groups(), inverted, 3, present=present)
    assert {group.members for group in again} == {tuple(names(3)), tuple(names(3, 3))}
    assert held == () and fresh.pseudonyms == ()
    # one who left, and one whose images are all of another stratum
    for change in ({}, {names(1)[0]: {elsewhere}}):
        left = {name: present[name] for name in names(5, 1)} | change
        again, held, _ = g.settle_frozen(store.groups(), inverted, 3, present=left)
        assert [group.members for group in again] == [tuple(names(3, 3))]
        assert set(held) == (set(names(3)) & left.keys())
    store.close()
