"""What a site's own staff read of the work: the same round numbers, steps, time left."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import pytest

from client.cli.status import status
from client.daemon.standing import site_standing
from client.state.jobs import PROGRESS, Work, read_progress, read_work, write_progress
from client.state.work import AtWork, at_work
from common.storage.heartbeat import Heartbeat
from common.study.round_names import name_of_key
from tests.sites import Hospital, make_hospital
from tests.studies import small_study

NOON = 1_700_000_000.0


def begin(hospital: Hospital, key: str, phase: str, done: int, total: int) -> Path:
    """Journal a round as begun, with a child that reported."""
    state = hospital.site().state
    folder = state.jobs / "0123"
    folder.mkdir(parents=True, exist_ok=True)
    state.journal.append(key, "started", {"folder": folder.name, "reservation": ""})
    write_progress(folder, done, total, phase)
    return folder


def test_rounds_are_counted_from_one_as_the_operator_counts_them() -> None:
    study = small_study()
    assert name_of_key(study, "0" * 64 + "/train/gan/0/0") == "train gan round 1 of 2"
    assert name_of_key(study, "0" * 64 + "/train/gan/1/0") == "train gan round 2 of 2"
    assert name_of_key(study, "0" * 64 + "/synthesize//0/0") == "synthesize"


def test_time_left_follows_the_pace_since_the_phases_first_report() -> None:
    work = Work("gan", done=30, total=100, first=10, since=NOON)
    assert work.seconds_left(NOON + 40) == pytest.approx(140)
    assert Work("gan", 10, 100, 10, NOON).seconds_left(NOON + 40) is None
    line = AtWork("train gan round 1 of 2", work).line(NOON + 40, counts=False)
    assert line == "train gan round 1 of 2: gan, step 30 of 100, about 2 min left"
    line = AtWork("train gan round 1 of 2", work).line(NOON + 40, counts=True)
    assert line.startswith("train gan round 1 of 2: gan, step 30 of 100, about 2 min left (")


@pytest.mark.parametrize("phase", ["invert", "align"])
def test_the_log_shows_no_number_of_images(phase: str) -> None:
    one = AtWork("synthesize", Work(phase, 137, 411, 1, NOON))
    assert "137 of 411" in one.line(NOON + 60, counts=True)
    assert one.line(NOON + 60, counts=False) == f"synthesize: {phase}"


def test_a_phase_keeps_its_beginning_and_the_next_begins_anew(tmp_path: Path) -> None:
    write_progress(tmp_path, 1, 50, "encoder")
    began = read_work(tmp_path)
    write_progress(tmp_path, 2, 50, "encoder")
    assert (read_work(tmp_path).since, read_work(tmp_path).first) == (began.since, 1)
    write_progress(tmp_path, 16, 300, "invert")
    assert (read_work(tmp_path).phase, read_work(tmp_path).first) == ("invert", 16)
    assert read_progress(tmp_path) == (16, 300)


HUGE_SINCE = b'{"since": 1' + b"0" * 400 + b"}"
HUGE_DONE = b'{"done": 1' + b"0" * 400 + b"}"


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"3 4",
        b"[]",
        b"{}x",
        b'{"done": -1}',
        b'{"more": 1}',
        b"\xff",
        b'{"since": NaN}',
        HUGE_SINCE,
        HUGE_DONE,
    ],
)
def test_a_damaged_report_is_none(tmp_path: Path, text: bytes) -> None:
    (tmp_path / PROGRESS).write_bytes(text)
    assert read_work(tmp_path) == Work()


def test_status_shows_the_work_of_a_running_daemon_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hospital = make_hospital(tmp_path)
    site = hospital.site()
    site.state.membership.write_text(site.membership.model_dump_json())
    key = f"{hospital.study.hash()}/train/gan/1/0"
    begin(hospital, key, "gan", 1, 2)
    assert site_standing(hospital.root).plans[0].work == ()
    with closing(Heartbeat(hospital.root, "a test")) as heart:
        heart.enter("running")
        status(hospital.root)
        shown = capsys.readouterr().out
        assert "  train gan round 2 of 2: gan, step 1 of 2 (" in shown
        json.dumps(site_standing(hospital.root).to_dict())
        # answered: nothing is at work any more
        hospital.site().state.journal.append(key, "answered", {"sealed": []})
        assert site_standing(hospital.root).plans[0].work == ()


def test_an_answered_round_is_no_work(tmp_path: Path) -> None:
    hospital = make_hospital(tmp_path)
    state = hospital.site().state
    key = f"{hospital.study.hash()}/train/gan/0/0"
    begin(hospital, key, "gan", 1, 2)
    assert len(list(at_work(state, hospital.study.hash(), hospital.study))) == 1
    state.journal.append(key, "answered", {"sealed": []})
    assert not list(at_work(state, hospital.study.hash(), hospital.study))
