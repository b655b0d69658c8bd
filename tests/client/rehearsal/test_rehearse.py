"""A rehearsal goes through a whole plan, spends nothing, and nothing of it can leave."""

from __future__ import annotations

import hashlib
import shutil
import signal
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from client.cli.rehearse import find_plan
from client.daemon.jobs import Ending
from client.egress.gate import Gate
from client.rehearsal.scratch import FOLDER, LOCK, PICTURES, RUN, sweep_rehearsal
from client.state.folder import State
from client.state.group_store import Group, Grouping, GroupStore, Stratum
from client.state.jobs import OUTPUT, PRACTICE, Progress, Stopped
from client.state.ledger import PracticeReservation, Reservation
from client.state.people import PeopleFile
from client.state.plans import Plans
from common.errors import KohortError, PolicyError, RefusedError
from common.privacy.events import round_event
from common.storage.lock import FolderLock
from common.study.bundle import open_bundle
from common.study.plan import load_study
from common.wire import tensors
from common.wire.messages import Header
from tests.client.cli.typing_commands import Cli, photographs
from tests.client.rehearsal.conftest import InProcess, joined
from tests.sites import Hospital, make_hospital, pseudonym
from tests.sized_plans import pair_weights
from tests.studies import VESSELS

SIDE_FILES = ("-wal", "-shm")  # SQLite's own, which come and go with a reader


@pytest.fixture(autouse=True)
def _own_signals() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def digests(root: Path) -> dict[str, str]:
    """SHA-256 of every file of a state folder but the rehearsal's own; of a database, its rows.

    A reader may move rows from an SQLite log into its file, which changes nothing.
    """
    found = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if not path.is_file() or name.startswith(FOLDER) or name.endswith(SIDE_FILES):
            continue
        content = path.read_bytes()
        if path.suffix == ".sqlite":
            with closing(sqlite3.connect(path)) as database:
                content = "\n".join(database.iterdump()).encode()
        found[name] = hashlib.sha256(content).hexdigest()
    return found


def test_a_whole_plan_is_rehearsed_and_the_state_folder_stays_as_it_was(
    tmp_path: Path, weights: dict[str, tensors.Arrays], children: InProcess, cli: Cli
) -> None:
    hospital = joined(make_hospital(tmp_path, weights=weights, privacy__canaries=8))
    hospital.site().ledger()
    before = digests(hospital.root)
    ledger = State(hospital.root).ledger.read_bytes()
    code, out, err = cli("rehearse", "--state", hospital.root)
    assert code == 0, err
    # every round, then the image batch
    done = [(job.kind, job.model) for job in children.jobs]
    assert done == [("train", "gan"), ("train", "gan"), ("train", "glow"), ("synthesize", "")]
    assert all(job.practice for job in children.jobs)
    for phase in ("gan round 1 of 2: ", "gan round 2 of 2: ", "glow round 1 of 1: ", "audit: "):
        assert f"  {phase}" in out
    assert "images that would leave: 2 of at most 40\n  none: 1\n  mild-moderate: 1\n" in out
    assert "  severe: 0\n" in out and "shortened" not in out
    assert "nothing was spent and nothing was sent" in out
    # nothing else happened
    assert digests(hospital.root) == before
    assert State(hospital.root).ledger.read_bytes() == ledger
    assert [row.kind for row in hospital.site().ledger().rows()] == ["open"]
    assert not (hospital.root / "outbox").exists() or not any((hospital.root / "outbox").iterdir())
    assert sorted(path.name for path in (hospital.root / FOLDER).iterdir()) == [LOCK]


def test_a_bundle_that_nobody_approved_is_rehearsed_shorter_and_its_pictures_kept(
    tmp_path: Path, weights: dict[str, tensors.Arrays], children: InProcess, cli: Cli
) -> None:
    hospital = joined(make_hospital(tmp_path, weights=weights, approve=False))
    code, out, err = cli(
        "rehearse", "--state", hospital.root, hospital.bundle, "--rounds", "1", "--steps", "1",
        "--keep",
    )  # fmt: skip
    assert code == 0, err
    assert [job.kind for job in children.jobs] == ["train", "train", "synthesize"]
    assert "gan round 1 of 1" in out and "shortened: " in out
    pictures = hospital.root / FOLDER / PICTURES
    assert pictures.stat().st_mode & 0o777 == 0o700
    (sheet,) = pictures.iterdir()
    assert sheet.read_bytes()[:4] == b"\x89PNG" and sheet.stat().st_mode & 0o777 == 0o600
    assert f"look at {sheet}" in out
    assert not (hospital.root / FOLDER / RUN).exists()
    # whoever withdraws may be in them
    code, _, err = cli("withdraw", "--state", hospital.root, "--ahead", "MRN-1")
    assert code == 0, err
    assert not pictures.exists()


def test_a_plan_of_pairs_ends_in_pairs_as_the_server_would_draw_them(
    tmp_path: Path, cli: Cli
) -> None:
    """With real children, as on a hospital's machine."""
    changes = {
        "modality": "vessels",
        "intake": VESSELS["intake"],
        "models": VESSELS["models"],
        "synthesis": None,
        "models__wgan__rounds": 1,
    }
    weights = untrained_pairs()
    hospital = joined(make_hospital(tmp_path, weights=weights, **changes))
    before = digests(hospital.root)
    code, out, err = cli("rehearse", "--state", hospital.root, "small", "--keep")
    assert code == 0, err
    assert "  wgan round 1 of 1: " in out and "  pairs: " in out and " GiB\n" in out
    assert "the server would draw 12 pairs like those here" in out
    assert (hospital.root / FOLDER / PICTURES / "contact_sheet.png").is_file()
    assert digests(hospital.root) == before


def untrained_pairs() -> dict[str, tensors.Arrays]:
    """Weights of the small plan of pairs, small random numbers."""
    import numpy as np

    rng = np.random.default_rng(0)
    return {
        model: {
            name: rng.normal(0, 0.05, array.shape).astype(np.float32)
            for name, array in arrays.items()
        }
        for model, arrays in pair_weights(32).items()
    }


# --- nothing of it leaves -------------------------------------------------------------------------


def put_in_place(monkeypatch: pytest.MonkeyPatch, source: Path) -> None:
    """Let the daemon find a rehearsal's files in its own job folder, as if its child left them."""

    def copied(
        folder: Path, threads: int, secret: bytes, stop: threading.Event, progress: Progress
    ) -> Ending:
        for name in ("out.safetensors", "evidence.json", "contact_sheet.png", "tally.safetensors"):
            if (source / name).is_file():
                shutil.copy(source / name, folder / name)
        return Ending(True)

    monkeypatch.setattr("client.daemon.jobs.run_child", copied)


def test_what_a_rehearsal_made_passes_no_gate(
    tmp_path: Path,
    weights: dict[str, tensors.Arrays],
    children: InProcess,
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hospital = joined(make_hospital(tmp_path, weights=weights, privacy__canaries=0))
    assert cli("rehearse", "--state", hospital.root, "--rounds", 1, "--steps", 1)[0] == 0
    updates = children.kept / "1-train"
    images = children.kept / "3-synthesize"
    site = hospital.site(review="not_required")
    # the update
    put_in_place(monkeypatch, updates)
    with pytest.raises(RefusedError) as refused:
        site.answer(hospital.ask("train", weights=weights["gan"]))
    assert refused.value.code == "E-GATE-05"
    # the images: by their mark, and where somebody took it away by the audit's code
    put_in_place(monkeypatch, images)
    asked = hospital.ask("synthesize", weights={**weights["gan"], **weights["glow"]})
    with pytest.raises(RefusedError) as refused:
        site.answer(asked)
    assert refused.value.code == "E-GATE-10"
    arrays = tensors.read(images / OUTPUT, max_bytes=1 << 26)
    del arrays[PRACTICE]
    tensors.write(images / OUTPUT, arrays)
    for folder in (hospital.root / "jobs").glob("*-0"):
        shutil.copy(images / OUTPUT, folder / OUTPUT)
    with pytest.raises(RefusedError) as refused:
        hospital.site(review="not_required").answer(asked)
    assert refused.value.code == "E-GATE-24"
    assert not (hospital.root / "outbox").exists() or not any((hospital.root / "outbox").iterdir())


def test_practice_steps_pass_neither_gate_nor_ledger(hospital: Hospital) -> None:
    site = hospital.site()
    practice = PracticeReservation(round_event(hospital.study, "gan", 2**20))
    with pytest.raises(PolicyError, match="practice") as refused:
        site.ledger().commit(practice, "0" * 64)  # type: ignore[arg-type]
    assert refused.value.code == "E-COMMIT"
    header = Header.model_validate_json(hospital.ask("train").header)
    with GroupStore(site.state.groups) as groups:
        gate = Gate.of(site.records, hospital.study, groups, site.reviews)
        with pytest.raises(RefusedError, match="practice steps"):
            gate._check_reservation(practice, practice.event, "0" * 64, header.digest)  # type: ignore[arg-type]


def test_the_text_of_practice_steps_is_no_reservation(hospital: Hospital) -> None:
    event = round_event(hospital.study, "gan", 2**20)
    with pytest.raises(RefusedError):
        Reservation.from_json(event.event())
    assert PracticeReservation.from_event(event.event()).event == event
    with pytest.raises(KohortError):
        PracticeReservation.from_event(Reservation(1, 1, event).to_json())


def test_a_rehearsed_plan_has_the_hash_of_no_approved_plan(
    hospital: Hospital, children: InProcess, cli: Cli
) -> None:
    seen: list[str] = []

    def look(folder: Path) -> str:
        seen.append(load_study(folder.parents[1] / "plan" / "study.yaml").hash())
        return "E-GROUP-SIZE"

    children.before = look
    cli("rehearse", "--state", hospital.root)
    assert seen and hospital.study.hash() not in seen


# --- the scratch folder ---------------------------------------------------------------------------


def test_a_refusing_child_is_named_and_nothing_of_it_stays(
    hospital: Hospital, children: InProcess, cli: Cli
) -> None:
    children.before = lambda folder: "E-GROUP-SIZE" if folder.name.startswith("synth") else ""
    code, out, err = cli("rehearse", "--state", hospital.root, "--rounds", 1, "--steps", 1)
    assert code == 3
    assert "synthesis: E-GROUP-SIZE: no stratum has k patients" in err
    assert "nothing was spent" in err and "gan round 1 of 1: " in out
    assert not (hospital.root / FOLDER / RUN).exists()


@pytest.mark.parametrize("ending", [KeyboardInterrupt, Stopped("stopped")], ids=["ctrl-C", "TERM"])
def test_a_rehearsal_that_is_stopped_leaves_nothing(
    hospital: Hospital,
    monkeypatch: pytest.MonkeyPatch,
    cli: Cli,
    ending: BaseException,
) -> None:
    held: list[bool] = []

    def stopped(folder: Path, *rest: object) -> Ending:
        held.append(folder.is_dir() and folder.stat().st_mode & 0o777 == 0o700)
        raise ending

    monkeypatch.setattr("client.daemon.jobs.run_child", stopped)
    code, *_ = cli("rehearse", "--state", hospital.root)
    assert code != 0 and held == [True]
    assert not (hospital.root / FOLDER / RUN).exists()


def test_what_a_killed_rehearsal_left_goes_at_the_next_start_and_not_beside_a_live_one(
    hospital: Hospital,
) -> None:
    run = hospital.root / FOLDER / RUN
    (run / "jobs").mkdir(parents=True)
    with FolderLock(hospital.root / FOLDER / LOCK, "test"):
        sweep_rehearsal(hospital.root)
        assert run.is_dir()
    sweep_rehearsal(hospital.root)
    assert not run.exists()
    sweep_rehearsal(hospital.root)


def test_one_rehearsal_at_a_time(hospital: Hospital, children: InProcess, cli: Cli) -> None:
    (hospital.root / FOLDER).mkdir()
    with FolderLock(hospital.root / FOLDER / LOCK, "kohort-site rehearse"):
        code, _, err = cli("rehearse", "--state", hospital.root)
    assert code == 5 and "already running kohort-site rehearse" in err and not children.jobs


def test_a_rehearsal_runs_beside_the_daemon(
    hospital: Hospital, children: InProcess, cli: Cli
) -> None:
    children.before = lambda folder: "E-GROUP-SIZE"
    with FolderLock(hospital.root / "lock", "kohort-site run"):
        code, _, err = cli("rehearse", "--state", hospital.root)
    assert code == 3 and "E-LOCKED" not in err and len(children.jobs) == 1


# --- plan, cohort, groups -------------------------------------------------------------------------


def test_frozen_groups_enter_as_in_a_study(
    hospital: Hospital, children: InProcess, cli: Cli
) -> None:
    members = tuple(pseudonym(patient) for patient in range(8))
    with GroupStore(State(hospital.root).groups) as store:
        store.freeze(Grouping((Group(members, Stratum(0, 2), 5),), ()))
    before = digests(hospital.root)
    code, out, err = cli("rehearse", "--state", hospital.root, "--rounds", 1, "--steps", 1)
    assert code == 0, err
    # the group left in no study of this kind, so it is held back; the other label's is new
    assert "images that would leave: 1 of" in out and "  mild-moderate: 1" in out
    assert digests(hospital.root) == before


def test_without_a_cohort_one_is_built_in_the_scratch_folder(
    tmp_path: Path, weights: dict[str, tensors.Arrays], children: InProcess, cli: Cli
) -> None:
    hospital = joined(make_hospital(tmp_path, weights=weights, approve=False))
    state = State(hospital.root)
    shutil.rmtree(state.cohort(hospital.study.intake))
    labels = photographs(tmp_path / "photographs")
    text = (hospital.root / "site.yaml").read_text()
    text = text.replace(str(tmp_path / "data"), str(tmp_path / "photographs"))
    (hospital.root / "site.yaml").write_text(
        text.replace("labels_csv: null", f'labels_csv: "{labels}"')
    )
    PeopleFile(state.people).withdraw([pseudonym(1)])
    before = digests(hospital.root)
    seen: list[str] = []
    children.before = lambda folder: seen.append(children.jobs[-1].cohort) or "E-GROUP-SIZE"
    code, out, _ = cli("rehearse", "--state", hospital.root, hospital.bundle)
    assert code == 3 and "  ingest: " in out
    assert FOLDER in seen[0] and digests(hospital.root) == before


def test_a_plan_that_this_site_could_not_run_is_not_rehearsed(
    tmp_path: Path, weights: dict[str, tensors.Arrays], children: InProcess, cli: Cli
) -> None:
    hospital = joined(make_hospital(tmp_path, weights=weights, synthesis__k=3))
    code, _, err = cli("rehearse", "--state", hospital.root)
    assert code == 3 and "policy.min_k is 5" in err and not children.jobs


@pytest.mark.parametrize("name", ["other", "0"], ids=["unknown", "other-hash"])
def test_a_plan_must_be_meant(hospital: Hospital, name: str, cli: Cli) -> None:
    code, _, err = cli("rehearse", "--state", hospital.root, name)
    if hospital.study.hash().startswith(name):
        pytest.skip("the hash begins so")
    assert code == 2 and "0 approved plans match" in err and "hint:" in err


def test_a_plan_is_found_by_name_by_hash_and_as_a_bundle(hospital: Hospital) -> None:
    plans = Plans(State(hospital.root), hospital.operator.public_key())
    key = hospital.study.hash()
    for name in ("", "small", key[:8]):
        assert find_plan(plans, name) == (hospital.study, plans.folder(key))
    assert find_plan(plans, str(hospital.bundle))[1] == hospital.bundle
    assert open_bundle(hospital.bundle, plans.operator) == hospital.study


def test_a_plan_that_cannot_be_shortened_so_is_refused_with_words(
    tmp_path: Path, weights: dict[str, tensors.Arrays], cli: Cli
) -> None:
    hospital = joined(make_hospital(tmp_path, weights=weights))
    code, _, err = cli("rehearse", "--state", hospital.root, "--rounds", 0)
    assert code == 2 and "rounds" in err
