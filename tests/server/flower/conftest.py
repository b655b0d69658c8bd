"""Stand-ins for Flower's programs, and a SuperLink that runs them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from common.process import free_port
from server.flower import child, superlink
from server.flower.superlink import SuperLink
from server.operator.certificates import ServerFiles, create_authority, issue_server_certificate

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
    monkeypatch.setattr(superlink, "program_path", lambda name: str(folder / name))
    monkeypatch.setattr(superlink, "WATCH_S", 0.02)
    monkeypatch.setattr(child, "STOP_GRACE_S", 0.1)
    monkeypatch.setattr(child, "RESTART_DELAYS_S", (0.05,))
    return folder


@pytest.fixture
def link(tmp_path: Path, files: ServerFiles, programs: Path) -> Iterator[SuperLink]:
    one = SuperLink(tmp_path / "superlink", free_port(), files, environment={"KOHORT_TEST": "yes"})
    yield one
    one.stop()
