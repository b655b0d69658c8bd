"""Who withdrew is in nothing that is computed later (docs/promises): theorems, through the daemon.

The children here form groups as real ones do: frozen groups first, over the cohort that the job
names.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.child.checks import Candidate
from client.child.rosters import Formed, person_names, read_frozen, sort_by_use
from client.egress.evidence import Evidence
from client.ingest.cohort import Cohort, persons_of
from client.ingest.withdrawal import withdraw
from client.learn import train_gan, train_glow, train_wgan
from client.state.group_store import Group, GroupStore
from client.state.jobs import Job, Stopped
from client.state.ledger import PracticeReservation
from client.state.people import PeopleFile
from client.synthesize.group import regroup, roster
from common.errors import PolicyError, RefusedError
from common.privacy.events import round_event
from common.privacy.noise import SeededNoiseSource
from common.study.bundle import write_bundle
from common.study.plan import load_study
from common.wire import tensors
from common.wire.messages import Sealed
from tests import wgan_rounds
from tests.client.learn import test_train_gan, test_train_glow
from tests.sites import Hospital, make_hospital, pseudonym, scripted, write_plan

KEY = b"g" * 32
NO_REVIEW = {"review": "not_required"}


@pytest.fixture
def hospital(tmp_path: Path) -> Hospital:
    return make_hospital(tmp_path)


def leave(hospital: Hospital, *patients: int) -> None:
    """These invented patients withdraw."""
    withdraw([(pseudonym(patient),) for patient in patients], (), hospital.site().state)


def honest_groups(folder: Path, k: int = 5) -> Formed:
    """What a child forms at random over the job's cohort, with what frozen groups give again."""
    cohort = Cohort.open(Path(Job.read(folder).cohort))
    frozen = read_frozen(folder)
    names = person_names(cohort, frozen.groups)
    who = roster(names, cohort.patient_of, cohort.labels, key=KEY, laterality_of=cohort.laterality)
    return sort_by_use(regroup(frozen.groups, who, k, "random", key=KEY), frozen, who)


@pytest.fixture
def children(hospital: Hospital, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Scripted children whose image batches have honest groups."""
    children = scripted(monkeypatch, hospital.study)
    size = hospital.study.intake.size_px

    def images(folder: Path) -> tensors.Arrays:
        formed = honest_groups(folder)
        rng = np.random.default_rng(children.runs)
        candidates = list(formed.again)
        for group in formed.new:
            pixels = rng.integers(0, 255, (size, size, 3), dtype=np.uint8)
            candidates.append(Candidate(pixels, group, privatized=False))
        groups = tuple(candidate.group for candidate in candidates)
        evidence = Evidence(groups, tuple(range(len(groups))), ())
        (folder / "evidence.json").write_bytes(evidence.to_json())
        (folder / "contact_sheet.png").write_bytes(b"sheet")
        return {
            "images": np.stack([candidate.image for candidate in candidates]),
            "labels": np.array([group.stratum.label for group in groups], np.int64),
            "privatized": np.zeros(len(groups), np.uint8),
        }

    children._images = images
    return children


def frozen_groups(hospital: Hospital) -> tuple[Group, ...]:
    with GroupStore(hospital.site().state.groups) as store:
        return store.groups()


# --- one place


def test_who_withdrew_is_in_no_cohort_that_is_opened(hospital: Hospital) -> None:
    folder = hospital.site().state.cohort(hospital.study.intake)
    before = Cohort.open(folder)
    leave(hospital, 3, 11)
    after = Cohort.open(folder)
    stay = [p for p in range(16) if p not in (3, 11)]
    assert after.patient_count == 14
    assert after.pseudonyms == tuple(pseudonym(p) for p in stay)
    assert not {pseudonym(3), pseudonym(11)} & {n for names in after.aliases for n in names}
    rows = np.flatnonzero(np.isin(before.patient_of, stay))
    assert np.array_equal(after.images, before.images[rows])
    assert np.array_equal(after.labels, before.labels[rows])
    assert np.array_equal(after.laterality, before.laterality[rows])
    names = [before.pseudonyms[p] for p in before.patient_of[rows]]
    assert [after.pseudonyms[p] for p in after.patient_of] == names
    assert set(persons_of(folder)) == set(after.pseudonyms)


def test_nothing_else_reads_a_cohort_of_everybody() -> None:
    """The whole cohort is read to recognise whose a file is, and to verify; by nothing else."""
    client = Path(__file__).parents[2] / "client"
    readers = {"images.npy": set(), "read_whole": set()}  # type: dict[str, set[str]]
    for path in client.rglob("*.py"):
        text = path.read_text()
        for what, found in readers.items():
            if what in text:
                found.add(path.relative_to(client).as_posix())
    assert readers["images.npy"] <= {
        "ingest/build.py",
        "ingest/cohort.py",
        "ingest/cohort_files.py",
    }
    assert readers["read_whole"] == {"ingest/cohort.py", "ingest/whose.py"}


def test_a_withdrawal_holds_after_a_restart_and_a_second_time_changes_nothing(
    hospital: Hospital,
) -> None:
    leave(hospital, 2)
    book = hospital.site().records.people()
    count, digest = book.count, book.digest
    leave(hospital, 2)
    assert (book.count, book.digest) == (count, digest)
    assert PeopleFile(book.path).read().withdrawn == {pseudonym(2)}
    assert book.path.stat().st_mode & 0o077 == 0


def test_a_linked_id_withdraws_too_whether_the_link_is_older_or_younger(
    hospital: Hospital,
) -> None:
    book = hospital.site().records.people()
    folder = hospital.site().state.cohort(hospital.study.intake)
    book.state([[pseudonym(0), pseudonym(1)]], {})
    leave(hospital, 1)
    assert not {pseudonym(0), pseudonym(1)} & set(persons_of(folder))
    assert pseudonym(5) in persons_of(folder)
    book.state([[pseudonym(1), pseudonym(5)]], {})
    assert not {pseudonym(0), pseudonym(1), pseudonym(5)} & set(persons_of(folder))
    assert Cohort.open(folder).patient_count == 13


def test_two_patients_who_are_found_to_be_one_person_are_one_patient(hospital: Hospital) -> None:
    folder = hospital.site().state.cohort(hospital.study.intake)
    hospital.site().records.people().state([[pseudonym(4), pseudonym(9)]], {})
    cohort = Cohort.open(folder)
    assert cohort.patient_count == 15
    (one,) = {int(cohort.patient_of[row]) for row in (4, 9)}
    assert cohort.aliases[one] == tuple(sorted((pseudonym(4), pseudonym(9))))
    persons = persons_of(folder)
    assert persons[pseudonym(4)] == persons[pseudonym(9)]
    assert len(set(persons.values())) == 15


def test_a_damaged_persons_file_stops_everything(hospital: Hospital, children: Any) -> None:
    from common.storage.journal import Journal

    site = hospital.site(**NO_REVIEW)
    Journal(site.state.people).append("people", "withdrawn", {"names": [7]})
    with pytest.raises(RefusedError) as refused:
        site.answer(hospital.ask("train"))
    assert refused.value.code == "E-PEOPLE"
    assert children.runs == 0


def test_a_state_that_forgot_a_withdrawal_spends_nothing(hospital: Hospital, children: Any) -> None:
    site = hospital.site(**NO_REVIEW)
    leave(hospital, 2)
    for path in hospital.root.glob("people.sqlite*"):
        path.unlink()
    with pytest.raises(PolicyError) as refused:
        hospital.site(**NO_REVIEW).answer(hospital.ask("train"))
    assert refused.value.code == "E-ROLLBACK"
    assert children.runs == 0
    assert not [row for row in site.ledger().rows() if row.kind == "reserve"]


# --- training


def test_the_next_round_of_a_running_study_trains_without_who_withdrew(
    hospital: Hospital, children: Any
) -> None:
    seen: list[tuple[str, ...]] = []
    update = children._update

    def train(folder: Path) -> tensors.Arrays:
        seen.append(Cohort.open(Path(Job.read(folder).cohort)).pseudonyms)
        return dict(update(folder))

    children._update = train
    site = hospital.site()
    site.answer(hospital.ask("train"))
    leave(hospital, 7)
    site.answer(hospital.ask("train", round=1))
    assert pseudonym(7) in seen[0]
    assert set(seen[0]) - set(seen[1]) == {pseudonym(7)}


def test_a_withdrawal_changes_no_privacy_parameter(hospital: Hospital, children: Any) -> None:
    site = hospital.site()
    site.answer(hospital.ask("train"))
    leave(hospital, *range(8))
    site.answer(hospital.ask("train", round=1))
    reserved = [row.data for row in site.ledger().rows() if row.kind == "reserve"]
    assert len(reserved) == 2
    assert reserved[0]["event"] == reserved[1]["event"]


def few(left: int, channels: int) -> Cohort:
    """A cohort of very few patients."""
    names = tuple(f"{p:064x}" for p in range(left))
    return Cohort(
        folder=Path("unused"),
        images=np.zeros((left, 32, 32, channels), np.uint8),
        patient_of=np.arange(left),
        labels=np.zeros(left, np.int64),
        laterality=np.zeros(left, np.int8),
        pseudonyms=names,
        aliases=tuple((name,) for name in names),
        label_names=("none",),
        digest="0" * 64,
    )


TRAINERS: dict[str, tuple[Any, Any, int]] = {
    "gan": (train_gan, test_train_gan, 3),
    "glow": (train_glow, test_train_glow, 3),
    "wgan": (train_wgan, wgan_rounds, 2),
}


@pytest.mark.parametrize("left", [0, 1, 3])
@pytest.mark.parametrize("model", TRAINERS)
def test_a_round_trains_however_few_patients_stay(model: str, left: int) -> None:
    """A round that stopped, or sent less, would tell that patients left."""
    trainer, helpers, channels = TRAINERS[model]
    plan = helpers.study()
    weights = helpers.start(plan)
    reservation = PracticeReservation(round_event(plan, model, 10**6))
    noise = SeededNoiseSource(0)
    deltas = trainer.train(
        few(left, channels), plan, weights, reservation, noise, lambda done, total: None
    )
    assert reservation.taken == reservation.steps
    assert {name: delta.shape for name, delta in deltas.items()} == {
        name: array.shape for name, array in weights.items()
    }
    assert all(np.isfinite(delta).all() for delta in deltas.values())


def test_everybody_may_withdraw(hospital: Hospital) -> None:
    leave(hospital, *range(16))
    cohort = Cohort.open(hospital.site().state.cohort(hospital.study.intake))
    assert (cohort.patient_count, cohort.images.shape[0]) == (0, 0)


# --- images


def second_study(hospital: Hospital, tmp_path: Path, name: str) -> Hospital:
    """Another plan of the same intake rules at the same site."""
    folder = tmp_path / name
    folder.mkdir()
    plan = write_plan(folder, name=name)
    write_bundle(plan, hospital.operator, folder / "bundle")
    hospital.site().plans.approve(folder / "bundle")
    return Hospital(hospital.root, hospital.operator, load_study(plan), folder / "bundle")


def test_a_group_that_lost_a_member_is_never_released_again(
    hospital: Hospital, children: Any, tmp_path: Path
) -> None:
    site = hospital.site(**NO_REVIEW)
    site.answer(hospital.ask("synthesize"))
    (lost, kept) = sorted(
        frozen_groups(hospital), key=lambda group: pseudonym(0) not in group.members
    )
    assert pseudonym(0) in lost.members
    leave(hospital, 0)

    later = second_study(hospital, tmp_path, "later")
    later.site(**NO_REVIEW).answer(later.ask("synthesize"))
    folders = sorted((hospital.root / "jobs").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    evidence = Evidence.read(folders[-1] / "evidence.json")
    assert kept.token in {group.token for group in evidence.groups}
    left = {member for group in evidence.groups for member in group.members}
    assert not left & set(lost.members), "an average of the others would isolate who is missing"


def test_a_batch_that_waits_for_review_with_somebody_who_withdrew_never_leaves(
    hospital: Hospital, children: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = hospital.site()
    asked = hospital.ask("synthesize")
    answers: list[Sealed] = []
    first: list[str] = []

    def pass_time(timeout: float | None = None) -> bool:
        """The person at the review, once a second."""
        batch = site.reviews.batches()[-1]
        if not first:
            first.append(batch.digest)
            leave(hospital, 0)
        elif batch.state == "waiting" and batch.digest != first[0]:
            site.reviews.decide(batch.digest, approve=True, reviewer="Dr. Test")
        return False

    monkeypatch.setattr(site.stop, "wait", pass_time)
    answers.append(site.answer(asked))
    assert children.runs == 2
    states = {batch.digest: batch.state for batch in site.reviews.batches()}
    assert states.pop(first[0]) == "rejected"
    assert list(states.values()) == ["approved"]
    assert all(pseudonym(0) not in group.members for group in frozen_groups(hospital))
    # what left is the second batch, and it is what comes again
    sent = tensors.loads(answers[0].payload, max_bytes=1 << 24)["images"]
    rng = np.random.default_rng(2)
    assert np.array_equal(sent[0], rng.integers(0, 255, sent[0].shape, dtype=np.uint8))
    assert site.answer(asked) == answers[0]


def test_an_approved_batch_does_not_leave_after_a_withdrawal(
    hospital: Hospital, children: Any
) -> None:
    """Approved while the daemon was stopped; the withdrawal came before it started again."""
    site = hospital.site()
    site.stop.set()
    with pytest.raises(Stopped):
        site.answer(hospital.ask("synthesize"))
    site.reviews.decide("", approve=True, reviewer="Dr. Test")
    leave(hospital, 0)
    again = hospital.site()
    again.stop.set()
    with pytest.raises(Stopped):
        again.answer(hospital.ask("synthesize"))
    assert children.runs == 2
    assert frozen_groups(hospital) == ()
    assert not list(hospital.root.glob("outbox/*.sealed"))


def test_a_dropped_batch_stays_spent(hospital: Hospital, children: Any) -> None:
    site = hospital.site()
    site.stop.set()
    with pytest.raises(Stopped):
        site.answer(hospital.ask("synthesize"))
    kinds = [row.kind for row in site.ledger().rows()]
    leave(hospital, 0)
    again = hospital.site()
    again.stop.set()
    with pytest.raises(Stopped):
        again.answer(hospital.ask("synthesize"))
    later = [row.kind for row in site.ledger().rows()]
    assert later[: len(kinds)] == kinds
    assert later[len(kinds) :] == ["declare"]


def test_a_child_that_names_somebody_who_withdrew_is_refused_by_the_gate(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule 22 stands behind the rest: the scripted groups hold everybody."""
    children = scripted(monkeypatch, hospital.study)
    leave(hospital, 0)
    with pytest.raises(RefusedError) as refused:
        hospital.site(**NO_REVIEW).answer(hospital.ask("synthesize"))
    assert refused.value.code == "E-GATE-22"
    assert children.runs == 1


# --- what is written


def test_the_journal_and_the_log_name_nobody(
    hospital: Hospital, children: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        leave(hospital, 0)
        hospital.site(**NO_REVIEW).answer(hospital.ask("synthesize"))
    state = hospital.site().state
    (entry,) = [entry for entry in state.journal.entries("withdrawal")]
    book = hospital.site().records.people()
    assert entry.state == "noted"
    assert set(entry.data) == {"entries", "digest"}
    assert pseudonym(0) not in json.dumps([e.data for e in state.journal.entries()])
    assert pseudonym(0) not in caplog.text
    assert "withdr" not in caplog.text
    assert book.count >= entry.data["entries"] >= 1


def test_what_a_round_answered_before_stays_the_same_bytes(
    hospital: Hospital, children: Any
) -> None:
    """What has left cannot be called back, and is not computed again."""
    site = hospital.site(**NO_REVIEW)
    asked = hospital.ask("synthesize")
    first = site.answer(asked)
    leave(hospital, 0)
    assert hospital.site(**NO_REVIEW).answer(asked) == first
    assert children.runs == 1
