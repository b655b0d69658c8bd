"""The supervised child processes: their life, their environment, their end.

Shell scripts stand in for Flower's programs; the real ones run in tests/e2e/test_transport.py.
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
from common.errors import ConfigurationError, EnvironmentFault
from common.process import free_port
from server.flower.superlink import SuperLink
from server.operator.certificates import ServerFiles, create_authority, issue_server_certificate
from tests.server.flower.processes import alive, pids
from tests.transport import until


def started(folder: Path) -> list[int]:
    """The pids of both programs and their children, once all run."""
    names = ("flower-superlink", "flower-superexec")
    until(lambda: all(len(pids(folder, name)) >= 2 for name in names))
    return [pid for name in names for pid in pids(folder, name)]


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
    for name in ("flower-superlink", "flower-superexec"):
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
        assert seen["NO_PROXY"] == "127.0.0.1,localhost"
        assert seen["FLWR_HOME"] == str(link.state_dir / "flwr")
        assert "FLWR_SOMETHING" not in seen
        assert seen["KOHORT_TEST"] == "yes"
        assert seen["PATH"].split(":")[0] == str(Path(sys.executable).parent)
    assert (link.state_dir / "flwr").stat().st_mode & 0o777 == 0o700
    assert (link.state_dir / "superexec.secret").stat().st_mode & 0o777 == 0o600
    assert len((link.state_dir / "superexec.secret").read_bytes()) >= 48


def test_the_server_is_never_started_open(link: SuperLink) -> None:
    link.start()
    started(link.state_dir)
    arguments = (link.state_dir / "flower-superlink.args").read_text()
    for flag in (
        "--host 127.0.0.1",
        "--isolation process",
        "--superexec-auth-secret-file",
        "--enable-supernode-auth",
        "--database",
        "--disable-runtime-dependency-installation",
        "--ssl-certfile",
    ):
        assert flag in arguments
    assert "--insecure" not in arguments + (link.state_dir / "flower-superexec.args").read_text()


def test_a_program_that_dies_is_started_again(link: SuperLink) -> None:
    link.start()
    started(link.state_dir)
    os.kill(pids(link.state_dir, "flower-superexec")[0], signal.SIGKILL)
    until(lambda: len(pids(link.state_dir, "flower-superexec")) >= 4)
    everything = pids(link.state_dir, "flower-superexec") + pids(link.state_dir, "flower-superlink")
    link.stop()
    assert not any(alive(pid) for pid in everything)


def test_a_second_server_on_the_same_folder_is_refused(link: SuperLink, files: ServerFiles) -> None:
    link.start()
    with pytest.raises(EnvironmentFault) as refused:
        SuperLink(link.state_dir, free_port(), files).start()
    assert refused.value.code == "E-LOCKED"


def test_a_taken_port_is_named_and_the_folder_is_free_again(
    link: SuperLink, files: ServerFiles, tmp_path: Path
) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        other = SuperLink(tmp_path / "other", taken.getsockname()[1], files)
        for _ in range(2):
            with pytest.raises(EnvironmentFault) as refused:
                other.start()
            assert refused.value.code == "E-PORT"


def test_an_expired_certificate_is_refused_before_the_start(tmp_path: Path, programs: Path) -> None:
    expired = issue_server_certificate(create_authority(tmp_path / "ca"), tmp_path / "tls", days=-1)
    with pytest.raises(ConfigurationError, match="expired"):
        SuperLink(tmp_path / "superlink", free_port(), expired).start()


def test_a_server_that_does_not_answer_is_reported_with_its_log(link: SuperLink) -> None:
    link.start()
    with pytest.raises(EnvironmentFault) as fault:
        link.wait_ready(0.3)
    assert fault.value.code == "E-SUPERLINK-START"


def test_a_server_that_keeps_dying_is_reported_at_once(link: SuperLink, programs: Path) -> None:
    (programs / "flower-superlink").write_text("#!/bin/sh\necho no such thing; exit 3\n")
    link.start()
    begun = time.monotonic()
    with pytest.raises(EnvironmentFault, match="no such thing"):
        link.wait_ready(300.0)
    assert time.monotonic() - begun < 60.0


def test_the_children_end_when_this_process_is_killed(
    tmp_path: Path, files: ServerFiles, programs: Path
) -> None:
    script = textwrap.dedent(
        f"""
        import time
        from pathlib import Path
        import server.flower.superlink as superlink
        from common.process import free_port
        from server.operator.certificates import ServerFiles
        superlink.program_path = lambda name: "{programs}/" + name
        files = ServerFiles(Path("{files.certificate}"), Path("{files.key}"), Path("{files.ca}"))
        superlink.SuperLink(Path("{tmp_path}/killed"), free_port(), files).start()
        time.sleep(1000)
        """
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script], cwd=Path(superlink.__file__).parents[2]
    )
    try:
        started(tmp_path / "killed")
        programs_alone = [
            pids(tmp_path / "killed", name)[0] for name in ("flower-superlink", "flower-superexec")
        ]
    finally:
        parent.kill()
        parent.wait()
    until(lambda: not any(alive(pid) for pid in programs_alone))
    for name in (
        "flower-superlink",
        "flower-superexec",
    ):  # the stand-ins' own children know nothing of us
        for pid in pids(tmp_path / "killed", name)[1:]:
            os.kill(pid, signal.SIGKILL)
