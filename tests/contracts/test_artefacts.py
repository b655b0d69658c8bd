"""A group is one artefact for good: what a later study may release of it, as theorems.

Real children do real work on tiny models; only the inversion of one cohort is kept.
"""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.egress.evidence import Evidence
from client.egress.frozen import frozen_groups
from client.state.artefacts import USES, Artefact, Limit, Wanted
from client.state.group_store import Group, GroupStore, Stratum
from common.errors import KohortError, PolicyError
from common.privacy.events import covers_every_image, latent_event
from common.wire import tensors
from tests.artefacts import (
    RealChildren,
    be_lenient,
    busy_hospital,
    bytes_of,
    change_photographs,
    images_of,
    next_study,
    real_children,
    tiny_weights,
)
from tests.sites import Hospital, Killed, pseudonym
from tests.studies import small_study

pytestmark = pytest.mark.slow

PEOPLE = 44
PLAIN = {"synthesis__privatize": None}
NOISED = {"synthesis__privatize__share": 1.0}
COVERED = {
    "synthesis__grouping": "random",
    "synthesis__privatize": {
        "mechanism": "gaussian",
        "share": 1.0,
        "epsilon": 0.5,
        "delta": 1e-6,
        "levels": "top",
    },
}
Weights = dict[str, tensors.Arrays]


@pytest.fixture(scope="module")
def weights() -> Weights:
    return tiny_weights()


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> RealChildren:
    be_lenient(monkeypatch)
    return real_children(monkeypatch)


def code_of(act: Any) -> str:
    """The code under which a call is refused."""
    with pytest.raises(KohortError) as caught:
        act()
    return caught.value.code


def store_of(hospital: Hospital) -> GroupStore:
    return GroupStore(hospital.root / "groups.sqlite")


def groups_of(folder: Path) -> set[Group]:
    """The groups of a job folder's batch."""
    return set(Evidence.read(folder / "evidence.json").groups)


# --- (7) a group is one artefact for good


def test_the_averages_of_frozen_groups_leave_again_as_the_same_bytes_or_not_at_all(
    tmp_path: Path, weights: Weights, children: RealChildren
) -> None:
    """Their difference would be what changed of one patient."""
    first = busy_hospital(tmp_path / "h", weights, 16, **PLAIN)
    left = bytes_of(images_of(first, weights))
    change_photographs(first, slice(0, 3))
    second = next_study(first, weights, "second", **PLAIN)
    again = images_of(second, weights)
    assert bytes_of(again) and bytes_of(again) <= left
    # also from another generator
    other = {"gan": {n: a * np.float32(0.5) for n, a in weights["gan"].items()}}
    third = next_study(first, weights | other, "third", **PLAIN)
    assert bytes_of(images_of(third, weights | other)) <= left


def test_thirty_studies_that_privatize_a_group_draw_it_once(
    tmp_path: Path, weights: Weights, children: RealChildren
) -> None:
    first = busy_hospital(tmp_path / "h", weights, 16, **NOISED)
    left = bytes_of(images_of(first, weights))
    for number in range(29):
        later = next_study(first, weights, f"study-{number}", **NOISED)
        assert bytes_of(images_of(later, weights)) == left
    with store_of(first) as store:
        assert [len(events) for events in store.events()] == [1, 1]


@pytest.mark.parametrize(
    ("before", "after"),
    [(NOISED, PLAIN), (PLAIN, NOISED)],
    ids=["the plain average of privatized groups", "a draw of plain groups"],
)
def test_a_changed_kind_releases_nothing_of_the_same_people(
    tmp_path: Path, weights: Weights, children: RealChildren, before: Any, after: Any
) -> None:
    first = busy_hospital(tmp_path / "h", weights, 16, **before)
    images_of(first, weights)
    second = next_study(first, weights, "second", **after)
    assert code_of(lambda: images_of(second, weights)) == "E-GROUP-ARTEFACT"


def test_a_changed_share_gives_nothing_new(
    tmp_path: Path, weights: Weights, children: RealChildren
) -> None:
    """Each group keeps its kind; the share is filled up with new groups: there are none."""
    first = busy_hospital(tmp_path / "h", weights, PEOPLE, synthesis__privatize__share=0.25)
    left = images_of(first, weights)
    assert len(bytes_of(left, 1)) == 2 and len(bytes_of(left, 0)) == 6
    for share in (0.5, 0.1):
        later = next_study(first, weights, f"share-{share}", synthesis__privatize__share=share)
        found = images_of(later, weights)
        assert bytes_of(found) == bytes_of(left)
        assert bytes_of(found, 1) == bytes_of(left, 1)


def test_another_size_is_a_new_release_and_refused(
    tmp_path: Path, weights: Weights, children: RealChildren
) -> None:
    first = busy_hospital(tmp_path / "h", weights, 16, **PLAIN)
    images_of(first, weights)
    with store_of(first) as store:
        (one, *_) = store.frozen()
        bigger = Artefact(
            np.zeros((64, 64, 3), np.uint8), one.artefacts[0].label, "fundus", "", "f" * 64
        )
        with pytest.raises(PolicyError) as refused:
            store.release({one.group: [bigger]}, "similar", Limit(1000.0, 1e-5))
        assert refused.value.code == "E-GROUP-ARTEFACT"
        assert store.frozen()[0].artefacts == one.artefacts


def test_a_second_draw_leaves_only_within_the_cap_over_all_draws_of_the_average(
    tmp_path: Path, weights: Weights, children: RealChildren
) -> None:
    first = busy_hospital(tmp_path / "h", weights, 16, **NOISED)
    left = bytes_of(images_of(first, weights))
    second = next_study(first, weights, "second", **NOISED, synthesis__privatize__scale=0.6)
    epsilon = sum(latent_event(one.study).epsilon_per_image for one in (first, second))
    too_little = {"max_epsilon_average": epsilon * 0.999}
    assert code_of(lambda: images_of(second, weights, **too_little)) == "E-GROUP-ARTEFACT"
    # the policy allows it
    third = next_study(first, weights, "third", **NOISED, synthesis__privatize__scale=0.6)
    drawn = bytes_of(images_of(third, weights, max_epsilon_average=epsilon * 1.001))
    assert drawn and not drawn & left
    with store_of(first) as store:
        assert [len(events) for events in store.events()] == [2, 2]
    # each mechanism has its own bytes from then on
    for name, changes, expected in (("a", {}, left), ("b", {"scale": 0.6}, drawn)):
        keys = {f"synthesis__privatize__{key}": value for key, value in changes.items()}
        later = next_study(first, weights, name, **NOISED, **keys)
        assert bytes_of(images_of(later, weights)) == expected


def test_a_site_refuses_a_plan_whose_single_draw_is_above_its_cap(
    tmp_path: Path, weights: Weights, children: RealChildren
) -> None:
    hospital = busy_hospital(tmp_path / "h", weights, 16, **NOISED)
    act = lambda: images_of(hospital, weights, max_epsilon_average=5.0)  # noqa: E731
    assert code_of(act) == "E-POLICY-PLAN"
    assert children.runs == 0


def test_what_the_child_changes_of_a_frozen_group_does_not_pass_the_gate(
    tmp_path: Path, weights: Weights, children: RealChildren, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = busy_hospital(tmp_path / "h", weights, 16, **PLAIN)
    images_of(first, weights)
    second = next_study(first, weights, "second", **PLAIN)

    def one_bit_more(*arguments: Any) -> Any:
        ending = children(*arguments)
        out = arguments[0] / "out.safetensors"
        arrays = tensors.read(out, max_bytes=1 << 26)
        arrays["images"][0, 0, 0, 0] ^= 1
        tensors.write(out, arrays)
        return ending

    monkeypatch.setattr("client.daemon.jobs.run_child", one_bit_more)
    with store_of(first) as store:
        before = store.frozen()
        assert code_of(lambda: images_of(second, weights)) == "E-GATE-28"
        assert store.frozen() == before
    assert not list((first.root / "outbox").glob(f"*{second.study.hash()}*"))


def test_a_batch_that_the_gate_refuses_freezes_nothing(
    tmp_path: Path, weights: Weights, children: RealChildren, monkeypatch: pytest.MonkeyPatch
) -> None:
    hospital = busy_hospital(tmp_path / "h", weights, 16, **PLAIN)
    monkeypatch.setattr("client.daemon.images.await_review", lambda *_: None)
    site = hospital.site(review="required")
    sent = weights["gan"] | weights["glow"]
    act = lambda: site.answer(hospital.ask("synthesize", weights=sent))  # noqa: E731
    assert code_of(act) == "E-GATE-25"
    with store_of(hospital) as store:
        assert store.groups() == ()


@pytest.mark.parametrize(
    "place",
    [
        "client.egress.gate.freeze",
        "client.state.records.Records.note_cleared",
        "client.egress.outbox.Outbox.store",
    ],
    ids=["before the store", "after the store", "before the outbox"],
)
@pytest.mark.parametrize("folder", ["kept", "lost"])
def test_a_kill_between_store_and_outbox_sends_the_same_bytes_or_nothing(
    tmp_path: Path,
    weights: Weights,
    children: RealChildren,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    folder: str,
) -> None:
    hospital = busy_hospital(tmp_path / "h", weights, 16, **NOISED)
    made: list[set[bytes]] = []

    def dies(*_: Any) -> None:
        out = children.folders[-1] / "out.safetensors"
        made.append(bytes_of(tensors.read(out, max_bytes=1 << 26)))
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(place, dies)
        with pytest.raises(Killed):
            images_of(hospital, weights)
    with store_of(hospital) as store:
        recorded = {a.image.tobytes() for one in store.frozen() for a in one.artefacts}
    assert recorded == (set() if place.endswith("freeze") else made[0])
    # the next start; perhaps the job folder is gone
    if folder == "lost":
        shutil.rmtree(children.folders[-1])
        if place.endswith("Outbox.store"):
            assert code_of(lambda: images_of(hospital, weights)) == "E-ROLLBACK"
            return
    sent = bytes_of(images_of(hospital, weights))
    if folder == "kept" or recorded:
        assert sent == made[0]
    assert bytes_of(images_of(hospital, weights)) == sent


# --- (6) a claim of independence never rests on groups, or on a roster, that data formed


def test_a_batch_that_another_study_overtook_is_made_again(
    tmp_path: Path, weights: Weights, children: RealChildren, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its child knew nothing of the groups that were frozen meanwhile: it must not stay stuck."""
    first = busy_hospital(tmp_path / "h", weights, 16, **PLAIN)

    def kill(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("client.daemon.site.images.clear", kill)
        with pytest.raises(Killed):
            images_of(first, weights)
    # the same groups, other images of them
    change_photographs(first, slice(0, 3))
    second = next_study(first, weights, "second", **PLAIN)
    left = bytes_of(images_of(second, weights))
    assert bytes_of(images_of(first, weights)) == left


def test_replacing_one_image_of_one_person_changes_no_group_of_a_later_covered_study(
    tmp_path: Path, weights: Weights, children: RealChildren
) -> None:
    covered: list[set[tuple[str, ...]]] = []
    formed: list[set[tuple[str, ...]]] = []
    for world in ("as it is", "replaced"):
        first = busy_hospital(tmp_path / world, weights, PEOPLE, **PLAIN)
        if world == "replaced":
            # the same secret in both worlds
            key = Path("state", "keys", "pseudonym.key")
            shutil.copy(tmp_path / "as it is" / key, tmp_path / world / key)
            change_photographs(first, slice(5, 6))
        images_of(first, weights)
        formed.append({group.members for group in groups_of(children.folders[-1])})
        second = next_study(first, weights, "covered", **COVERED)
        assert covers_every_image(second.study)
        images_of(second, weights)
        covered.append({group.members for group in groups_of(children.folders[-1])})
        assert sum(len(members) for members in covered[-1]) == PEOPLE
    assert formed[0] != formed[1]  # the images did choose the groups of the first study
    assert covered[0] == covered[1]


def test_a_covered_study_is_charged_again_and_binds_no_later_study(
    tmp_path: Path, weights: Weights, children: RealChildren
) -> None:
    first = busy_hospital(tmp_path / "h", weights, PEOPLE, **COVERED)
    left = bytes_of(images_of(first, weights))
    second = next_study(first, weights, "second", **COVERED)
    assert not bytes_of(images_of(second, weights)) & left
    assert len([row for row in first.site().ledger().rows() if row.kind == "reserve"]) == 2
    with store_of(first) as store:
        assert store.groups() == ()
    plain = next_study(first, weights, "plain", **PLAIN)
    images_of(plain, weights)
    assert sum(len(group.members) for group in groups_of(children.folders[-1])) == PEOPLE


def test_a_plain_image_cannot_leave_in_a_covered_study(
    tmp_path: Path, weights: Weights, children: RealChildren, monkeypatch: pytest.MonkeyPatch
) -> None:
    hospital = busy_hospital(tmp_path / "h", weights, PEOPLE, **COVERED)

    def forgets_the_noise(*arguments: Any) -> Any:
        ending = children(*arguments)
        out = arguments[0] / "out.safetensors"
        arrays = tensors.read(out, max_bytes=1 << 26)
        arrays["privatized"][0] = 0
        tensors.write(out, arrays)
        return ending

    monkeypatch.setattr("client.daemon.jobs.run_child", forgets_the_noise)
    assert code_of(lambda: images_of(hospital, weights)) == "E-GATE-28"


# --- version 0.1

OLD = """
CREATE TABLE grouped (
  token TEXT PRIMARY KEY, label INTEGER NOT NULL, laterality INTEGER NOT NULL, k INTEGER NOT NULL);
CREATE TABLE member (pseudonym TEXT PRIMARY KEY, token TEXT NOT NULL REFERENCES grouped);
CREATE TRIGGER grouped_same BEFORE UPDATE ON grouped
  BEGIN SELECT RAISE(ABORT, 'append only'); END;
"""


def old_store(path: Path, group: Group) -> None:
    """A file as version 0.1 left it."""
    db = sqlite3.connect(path)
    db.executescript(OLD)
    row = (group.token, group.stratum.label, group.stratum.laterality, group.k)
    db.execute("INSERT INTO grouped VALUES (?, ?, ?, ?)", row)
    db.executemany("INSERT INTO member VALUES (?, ?)", [(m, group.token) for m in group.members])
    db.commit()
    db.close()


def test_groups_of_an_old_file_are_kept_and_never_released_again(
    tmp_path: Path, weights: Weights
) -> None:
    """What left of them is not known: the child is told to hold them back, and the gate does."""
    hospital = busy_hospital(tmp_path / "h", weights, PEOPLE, **PLAIN)
    group = Group(tuple(pseudonym(patient) for patient in range(5)), Stratum(0, 2), 5)
    old_store(hospital.root / "groups.sqlite", group)
    groups, stored = frozen_groups(hospital.site().records, hospital.study)
    assert Evidence.from_json(groups).groups == (group,)
    assert [USES[use] for use in tensors.loads(stored, max_bytes=1 << 20)["uses"]] == ["hold"]
    image = Wanted.of(hospital.study).artefact(np.zeros((32, 32, 3), np.uint8), 0, False)
    with store_of(hospital) as store:
        ((kept, formed_by, artefacts),) = store.frozen()
        assert (kept, formed_by, artefacts) == (group, "unknown", ())
        with pytest.raises(PolicyError, match="not known what was released") as refused:
            store.release({group: [image]}, "similar", Limit(1000.0, 1e-5))
        assert refused.value.code == "E-GROUP-ARTEFACT"
    # the old file, as it was
    copy = hospital.root / "groups.sqlite.0.1.backup"
    assert copy.stat().st_mode & 0o077 == 0
    db = sqlite3.connect(copy)
    assert db.execute("SELECT token FROM grouped").fetchall() == [(group.token,)]
    assert len(db.execute("PRAGMA table_info(grouped)").fetchall()) == 4
    db.close()


def test_the_small_plan_of_these_tests_is_the_preset_kind() -> None:
    assert not covers_every_image(small_study())
    assert covers_every_image(small_study(**COVERED))
    assert not covers_every_image(small_study(**NOISED))
