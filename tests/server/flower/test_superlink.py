"""The supervised child processes: their life, their environment, their end. Flower's programs are stood in for by shell
scripts here; the real ones are in tests/e2e/test_transport.py."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import server.flower.superlink as superlink
from common.errors import ConfigurationError, EnvironmentFault, PeerError, RefusedError
from common.process import free_port
from common.wire.app_bundle import write_app
from server.flower.calls import FlowerCli
from server.flower.superlink import RunStatus, SuperLink, _json_in
from server.operator.certificates import ServerFiles, create_authority, issue_server_certificate
from tests.transport import until

STAND_IN = """\
#!/bin/sh
name=$(basename "$0")
env > "$name.env"
echo "$@" > "$name.args"
echo $$ >> "$name.pids"
sleep 1000 &
echo $! >> "$name.pids"
wait
"""

FLWR = """\
import pathlib, sys, time
here = pathlib.Path(__file__).parent
def app(arguments, prog_name):
    with (here / "flwr.args").open("a") as file:
        file.write(" ".join(arguments) + "\\n")
    if "crash" in arguments:
        __import__("os")._exit(3)
    if "hang" in arguments:
        time.sleep(100)
    print("Using SuperLink")
    sys.__stdout__.write((here / "flwr.json").read_text())
    raise SystemExit(2 if "fail" in arguments else 0)
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> ServerFiles:
    folder = tmp_path_factory.mktemp("tls")
    return issue_server_certificate(create_authority(folder / "ca"), folder / "server")


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of stand-ins; an answer for `flwr` is what lies in flwr.json."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("flower-superlink", "flower-superexec"):
        (folder / name).write_text(STAND_IN)
    (folder / "flwr").write_text(FLWR)
    for path in folder.iterdir():
        path.chmod(0o755)
    monkeypatch.setattr(superlink, "_program", lambda name: str(folder / name))
    monkeypatch.setattr(superlink, "WATCH_S", 0.02)
    monkeypatch.setattr(superlink, "STOP_GRACE_S", 0.1)
    monkeypatch.setattr(superlink, "RESTART_DELAYS_S", (0.05,))
    return folder


@pytest.fixture
def link(tmp_path: Path, files: ServerFiles, programs: Path) -> Iterator[SuperLink]:
    one = SuperLink(tmp_path / "superlink", free_port(), files, environment={"KOHORT_TEST": "yes"})
    yield one
    one.stop()


def pids(folder: Path, name: str) -> list[int]:
    path = folder / f"{name}.pids"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


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
        superlink._program = lambda name: "{programs}/" + name
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


# --- the operator's commands ------------------------------------------------------------------------------------------


def answer(programs: Path, **fields: object) -> None:
    (programs / "flwr.json").write_text(json.dumps(fields))


def test_a_bundle_with_code_in_it_is_not_submitted(
    link: SuperLink, programs: Path, tmp_path: Path
) -> None:
    write_app(tmp_path / "app", b"a: 1\n")
    (tmp_path / "app" / "server.py").write_text("import os")
    with pytest.raises(RefusedError) as refused:
        link.submit(tmp_path / "app")
    assert refused.value.code == "E-BUNDLE-CODE"
    assert not (programs / "flwr.args").exists()


def test_a_run_whose_hash_differs_from_what_sites_pin_is_stopped(
    link: SuperLink, programs: Path, tmp_path: Path
) -> None:
    link.state_dir.mkdir()
    write_app(tmp_path / "app", b"a: 1\n")
    answer(programs, success=True, **{"run-id": "7", "fab-hash": "00000000"})
    with pytest.raises(PeerError) as wrong:
        link.submit(tmp_path / "app")
    assert wrong.value.code == "E-BUNDLE-HASH"
    assert "stop 7" in (programs / "flwr.args").read_text()


def test_a_revoked_key_is_named_as_such(link: SuperLink, programs: Path, tmp_path: Path) -> None:
    link.state_dir.mkdir()
    (tmp_path / "node.pub").write_text("ecdsa-sha2-nistp384 AAAA site\n")
    answer(programs, success=False, **{"error-message": "[code: 23] Public key already in use."})
    with pytest.raises(RefusedError) as refused:
        link.register(tmp_path / "node.pub", "a")
    assert refused.value.code == "E-KEY-REVOKED"


def test_a_run_status_is_read_from_flowers_words(link: SuperLink, programs: Path) -> None:
    link.state_dir.mkdir()
    row = {"run-id": "9", "status": "finished:completed", "status-details": "", "fab-hash": "aa"}
    answer(programs, success=True, runs=[row])
    assert link.run_status(9) == RunStatus(9, "finished", "completed", "", "aa")
    assert link.run_status(9).completed
    answer(programs, success=True, runs=[{**row, "status": "running"}])
    assert not link.run_status(9).finished


def test_flowers_command_line_is_loaded_once_and_survives_its_own_death(
    link: SuperLink, programs: Path, tmp_path: Path
) -> None:
    answer(programs, success=True)
    cli = FlowerCli(str(programs / "flwr"), dict(os.environ), tmp_path, 1.0)
    first = cli.run(["list"])
    assert (first.code, _json_in(first.text)) == (0, {"success": True})
    assert cli._child is not None
    pid = cli._child.pid
    assert cli.run(["fail"]).code == 2
    assert cli._child.pid == pid
    with pytest.raises(PeerError, match="without an answer"):
        cli.run(["crash"])
    assert cli.run(["list"]).code == 0
    with pytest.raises(PeerError, match="no answer within"):
        cli.run(["hang"])
    assert cli.run(["list"]).code == 0
    last = cli._child.pid
    cli.close()
    assert not alive(last)
