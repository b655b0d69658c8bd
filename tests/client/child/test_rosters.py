"""Which persons are grouped, by name."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from client.child.checks import Candidate
from client.child.inputs import Batch
from client.child.rosters import (
    Formed,
    FrozenGroups,
    choose_privatized,
    group_patients,
    keep_accepted,
    person_names,
    sort_by_use,
)
from client.ingest.cohort import Cohort
from client.state.folder import State
from client.state.group_store import Group, Grouping, Stratum
from client.synthesize.group import Roster
from tests.jobs import NO_GROUPS, SECRET
from tests.sites import Hospital, pseudonym
from tests.studies import small_study


def test_a_person_keeps_the_name_under_which_a_group_was_frozen(hospital: Hospital) -> None:
    cohort = Cohort.open(State(hospital.root).cohort(hospital.study.intake))
    object.__setattr__(cohort, "aliases", ((pseudonym(0), "old name"), *cohort.aliases[1:]))
    frozen = Group(("old name", *(pseudonym(p) for p in range(1, 5))), Stratum(0, 2), 5)
    names = person_names(cohort, (frozen,))
    assert names[0] == "old name"
    assert names[1:] == cohort.pseudonyms[1:]


def test_a_patient_without_an_accepted_image_is_not_on_the_roster_of_averages() -> None:
    """Such a patient would count to k and contribute nothing."""
    strata = (Stratum(0), Stratum(1), Stratum(0))
    who = Roster(("a", "b", "c"), strata, ((0, 3), (1,), (2, 4)))
    kept = keep_accepted(who, np.array([True, False, False, False, True]))
    assert kept == Roster(("a", "c"), (Stratum(0), Stratum(0)), ((0,), (4,)))


def test_no_image_decides_who_is_on_the_roster_of_random_groups(
    hospital: Hospital, tmp_path: Path
) -> None:
    """Inversion rejects half of the images; `random` groups hold everybody all the same."""
    state = State(hospital.root)
    cohort = Cohort.open(state.cohort(hospital.study.intake))
    (tmp_path / "groups.json").write_bytes(NO_GROUPS)
    study = small_study(synthesis__grouping="random", synthesis__privatize=None)
    batch = Batch(study, cohort, {}, tmp_path, tmp_path, SECRET)
    known = SimpleNamespace()
    formed = []
    for rejected in (0, 8, 15):
        accepted = np.arange(16) >= rejected
        found = SimpleNamespace(accepted=accepted)
        formed.append(group_patients(batch, (known, found)))  # type: ignore[arg-type]
    assert set(formed[0].who.pseudonyms) == {pseudonym(p) for p in range(16)}
    assert formed[1] == formed[0] and formed[2] == formed[0]


def test_a_frozen_group_keeps_its_kind_and_the_share_is_filled_up_with_new_ones() -> None:
    groups = [Group(tuple(f"{place}-{i}" for i in range(5)), Stratum(0), 5) for place in range(8)]
    image = np.zeros((2, 2, 3), np.uint8)
    again = (Candidate(image, groups[0], True), Candidate(image, groups[1], False))
    who = Roster((), (), ())
    for share, draws, expected in ((0.25, 0, 1), (0.5, 0, 3), (0.5, 1, 3), (0.1, 0, 0)):
        formed = Formed(again, tuple(groups[2 : 2 + draws]), tuple(groups[2 + draws :]), who)
        batch = SimpleNamespace(
            synthesis=small_study(synthesis__privatize__share=share).synthesis, secret=SECRET
        )
        chosen = choose_privatized(batch, formed)  # type: ignore[arg-type]
        assert len(chosen) == expected
        assert not {groups[0], groups[1]} & set(chosen)
        assert set(chosen[:draws]) == set(formed.draws)


def test_a_group_whose_images_do_not_all_count_is_not_drawn_again() -> None:
    groups = [Group(tuple(f"{place}-{i}" for i in range(5)), Stratum(0), 5) for place in (0, 1)]
    frozen = FrozenGroups(tuple(groups), {}, frozenset(group.token for group in groups))
    counted = groups[0].members
    who = Roster(counted, (Stratum(0),) * 5, ((0,),) * 5)
    formed = sort_by_use(Grouping(tuple(groups), ()), frozen, who)
    assert formed.draws == (groups[0],)
    assert formed.new == ()


def test_which_groups_are_privatized_is_chosen_by_a_secret_and_by_no_order() -> None:
    groups = tuple(Group((f"a{i}", f"b{i}"), Stratum(0), 2) for i in range(12))
    nobody = Roster((), (), ())

    def chosen(order: tuple[Group, ...], secret: bytes) -> set[Group]:
        batch = SimpleNamespace(
            secret=secret,
            synthesis=SimpleNamespace(
                privatize=SimpleNamespace(share=0.5), privatizes_averages=True
            ),
        )
        return set(choose_privatized(batch, Formed((), (), order, nobody)))  # type: ignore[arg-type]

    first = chosen(groups, bytes(32))
    assert len(first) == 6
    assert chosen(groups[::-1], bytes(32)) == first
    assert len({frozenset(chosen(groups, bytes([n]) * 32)) for n in range(4)}) > 1


def contributing(
    hospital: Hospital, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, grouping: str
) -> tuple[Formed, list[int]]:
    """Groups where the flow encodes no image of the first three patients."""
    cohort = Cohort.open(State(hospital.root).cohort(hospital.study.intake))
    (tmp_path / "groups.json").write_bytes(NO_GROUPS)
    share = 1.0 if grouping == "random" else 0.25
    study = small_study(synthesis__grouping=grouping, synthesis__privatize__share=share)
    asked: list[int] = []

    def encode(images: np.ndarray, model: object, dimension: int) -> np.ndarray:
        asked.append(len(images))
        latents = np.ones((len(images), 4))
        latents[:3] = 0.0
        return latents

    monkeypatch.setattr("client.child.rosters.encode_released", encode)
    monkeypatch.setattr(Batch, "glow", lambda self: SimpleNamespace(dimension=4))
    monkeypatch.setattr("client.child.rosters.make_points", lambda *_: np.zeros((16, 2)))
    batch = Batch(study, cohort, {}, tmp_path, tmp_path, SECRET)
    found = SimpleNamespace(accepted=np.ones(16, np.bool_))
    return group_patients(batch, (SimpleNamespace(), found)), asked  # type: ignore[arg-type]


def members_of(formed: Formed) -> set[str]:
    return {member for group in formed.new for member in group.members}


def test_who_would_add_nothing_to_a_privatized_average_is_in_no_group_that_images_choose(
    hospital: Hospital, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    formed, asked = contributing(hospital, tmp_path, monkeypatch, "similar")
    assert sum(asked) == 16
    assert members_of(formed) == {pseudonym(p) for p in range(3, 16)}


def test_random_groups_never_ask_whether_an_image_adds_anything(
    hospital: Hospital, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No image may decide who is in them; the statement says that nothing is guaranteed."""
    formed, asked = contributing(hospital, tmp_path, monkeypatch, "random")
    assert asked == []
    assert members_of(formed) == {pseudonym(p) for p in range(16)}
