"""A heartbeat tells a process that runs from one that hangs, stopped or was killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from common.errors import EnvironmentFault
from common.storage import heartbeat
from common.storage.heartbeat import Heartbeat, life_of, read_beat

BEATING = """
import sys, time
from pathlib import Path
from common.storage.heartbeat import Heartbeat
Heartbeat(Path(sys.argv[1]), "a test").enter("running")
print("beats", flush=True)
time.sleep(600)
"""


def later(seconds: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


def test_where_nothing_ever_ran_it_says_so(tmp_path: Path) -> None:
    life = life_of(tmp_path)
    assert (life.state, life.alive) == ("never", False)
    assert not list(tmp_path.iterdir())


def test_a_life_from_its_start_to_its_stop(tmp_path: Path) -> None:
    with closing(Heartbeat(tmp_path, "a test")) as heart:
        heart.enter("starting")
        life = life_of(tmp_path)
        assert (life.state, life.alive, life.pid) == ("starting", True, os.getpid())
        heart.enter("running")
        heart.note(contact=3.0)
        life = life_of(tmp_path)
        assert life.state == "running" and life.facts == {"contact": 3.0}
        assert f"process {os.getpid()}" in life.words()
    life = life_of(tmp_path)
    assert (life.state, life.alive) == ("stopped", False)
    assert "stopped on" in life.words()
    # what the last one saw is there for the next
    with closing(Heartbeat(tmp_path, "a test")) as heart:
        assert heart.facts == {"contact": 3.0}


def test_a_process_that_gives_no_sign_of_life_hangs(tmp_path: Path) -> None:
    with closing(Heartbeat(tmp_path, "a test")) as heart:
        heart.enter("starting")
        assert life_of(tmp_path, later(61)).state == "starting"  # it may read a cohort
        assert life_of(tmp_path, later(1000)).state == "hung"
        heart.enter("running")
        assert life_of(tmp_path, later(59)).state == "running"
        assert life_of(tmp_path, later(61)).state == "hung"
        # a clock that jumped back by an hour
        assert life_of(tmp_path, later(-3600)).state == "hung"


def test_after_kill_9_it_does_not_run_and_its_last_sign_of_life_is_said(tmp_path: Path) -> None:
    command = [sys.executable, "-c", BEATING, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path.cwd()) as process:
        assert process.stdout is not None and process.stdout.readline()
        assert life_of(tmp_path).state == "running"
        process.kill()
    life = life_of(tmp_path)
    assert (life.state, life.pid) == ("died", process.pid)
    assert life.last_beat is not None and "killed or crashed" in life.words()
    assert heartbeat.spell_time(life.last_beat) in life.words()


def test_two_processes_cannot_beat_in_one_folder(tmp_path: Path) -> None:
    with closing(Heartbeat(tmp_path, "a test")), pytest.raises(EnvironmentFault) as refused:
        Heartbeat(tmp_path, "a test")
    assert refused.value.code == "E-LOCKED"


def test_on_a_full_disk_the_time_of_the_file_is_the_sign_of_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise EnvironmentFault("full", code="E-DISK-FULL")

    with closing(Heartbeat(tmp_path, "a test")) as heart:
        heart.enter("running")
        path = tmp_path / heartbeat.FILE
        # the last beat that found room is old
        path.write_text(json.dumps(json.loads(path.read_text()) | {"time": 1000.0}))
        os.utime(path, (1000, 1000))
        assert life_of(tmp_path).state == "hung"
        with monkeypatch.context() as patched:
            patched.setattr(Heartbeat, "_write", full)
            heart._written = -1e9
            heart.beat()
            assert life_of(tmp_path).state == "running"
            heart.note(contact=1.0)  # no fault of the disk ends the work


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b'{"pid": true, "started": 1, "time": 1, "stage": "running", "facts": {}}',
        b'{"pid": 1, "started": 1e300, "time": 1, "stage": "running", "facts": {}}',
        b'{"pid": 1, "started": 1, "time": "1", "stage": "running", "facts": {}}',
        b'{"pid": 1, "started": 1, "time": 1, "stage": "dead", "facts": {}}',
        b'{"pid": 1, "started": 1, "time": 1, "stage": "running", "facts": []}',
    ],
    ids=["empty", "bytes", "list", "no fields", "pid", "far", "text", "stage", "facts"],
)
def test_a_damaged_file_is_no_sign_of_life(tmp_path: Path, text: bytes) -> None:
    (tmp_path / heartbeat.FILE).write_bytes(text)
    assert read_beat(tmp_path) is None
    assert life_of(tmp_path).state == "never"
    with closing(Heartbeat(tmp_path, "a test")):
        assert life_of(tmp_path).state == "hung"
