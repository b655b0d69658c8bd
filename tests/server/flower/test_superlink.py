"""The supervised child processes: their life, their environment, their end.

Shell scripts stand in for our programs; the real ones run in tests/e2e/test_transport.py.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

import server.flower.superlink as superlink
from common.errors import EnvironmentFault
from server.flower.superlink import SuperLink
from tests.server.flower.conftest import NAMES, PIN
from tests.server.flower.processes import alive, pids
from tests.transport import until


def started(folder: Path) -> list[int]:
    """The pids of both programs and their children, once all run."""
    until(lambda: all(len(pids(folder, name)) >= 2 for name in NAMES))
    return [pid for name in NAMES for pid in pids(folder, name)]


def test_stop_ends_the_programs_and_what_they_started(link: SuperLink) -> None:
    link.start()
    running = started(link.state_dir)
    assert all(alive(pid) for pid in running)
    link.stop()
    assert not any(alive(pid) for pid in running)
    link.stop()


def test_the_environment_switches_off_what_phones_home(
    link: SuperLink, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "1")
    monkeypatch.setenv("FLWR_SOMETHING", "1")
    link.start()
    started(link.state_dir)
    for name in NAMES:
        seen = dict(
            line.split("=", 1)
            for line in (link.state_dir / f"{name}.env").read_text().splitlines()
            if "=" in line
        )
        assert seen["FLWR_TELEMETRY_ENABLED"] == "0"
        assert (
            seen["FLWR_DISABLE_UPDATE_CHECK"]
            == seen["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"]
            == "1"
        )
        assert seen["MALLOC_ARENA_MAX"] == "2"
        assert seen["FLWR_HOME"] == str(link.state_dir / "flwr")
        assert "FLWR_SOMETHING" not in seen
        assert seen["KOHORT_TEST"] == "yes"
    assert (link.state_dir / "flwr").stat().st_mode & 0o777 == 0o700
    assert (link.state_dir / "executor.secret").stat().st_mode & 0o777 == 0o600
    assert len((link.state_dir / "executor.secret").read_bytes()) >= 48


def test_the_executor_gets_the_pin_and_no_secret_stands_on_a_command_line(link: SuperLink) -> None:
    link.start()
    started(link.state_dir)
    secret = (link.state_dir / "executor.secret").read_text()
    for name in NAMES:
        assert secret not in (link.state_dir / f"{name}.args").read_text()
        assert secret not in (link.state_dir / f"{name}.env").read_text()
    assert PIN in (link.state_dir / "server.flower.executor.args").read_text()


def test_a_program_that_dies_is_started_again(link: SuperLink) -> None:
    link.start()
    started(link.state_dir)
    os.kill(pids(link.state_dir, NAMES[1])[0], signal.SIGKILL)
    until(lambda: len(pids(link.state_dir, NAMES[1])) >= 4)
    everything = pids(link.state_dir, NAMES[1]) + pids(link.state_dir, NAMES[0])
    link.stop()
    assert not any(alive(pid) for pid in everything)


def test_a_second_server_on_the_same_folder_is_refused(link: SuperLink) -> None:
    link.start()
    with pytest.raises(EnvironmentFault) as refused:
        SuperLink(link.state_dir, PIN).start()
    assert refused.value.code == "E-LOCKED"


def test_a_server_that_does_not_answer_is_reported_with_its_log(link: SuperLink) -> None:
    link.start()
    with pytest.raises(EnvironmentFault) as fault:
        link.wait_ready(0.3)
    assert fault.value.code == "E-SUPERLINK-START"


def test_a_server_that_keeps_dying_is_reported_at_once(link: SuperLink, programs: Path) -> None:
    (programs / NAMES[0]).write_text("#!/bin/sh\necho no such thing; exit 3\n")
    link.start()
    begun = time.monotonic()
    with pytest.raises(EnvironmentFault, match="no such thing"):
        link.wait_ready(300.0)
    assert time.monotonic() - begun < 60.0


def test_the_children_end_when_this_process_is_killed(tmp_path: Path, programs: Path) -> None:
    script = textwrap.dedent(
        f"""
        import time
        from pathlib import Path
        import server.flower.superlink as superlink
        superlink.program = lambda module, *rest: ["{programs}/" + module, *rest]
        superlink.SuperLink(Path("{tmp_path}/killed"), "{PIN}").start()
        time.sleep(1000)
        """
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script], cwd=Path(superlink.__file__).parents[2]
    )
    try:
        started(tmp_path / "killed")
        programs_alone = [pids(tmp_path / "killed", name)[0] for name in NAMES]
    finally:
        parent.kill()
        parent.wait()
    until(lambda: not any(alive(pid) for pid in programs_alone))
    # the stand-ins' own children know nothing of us
    for name in NAMES:
        for pid in pids(tmp_path / "killed", name)[1:]:
            os.kill(pid, signal.SIGKILL)
