"""Stand-ins for our programs, and a SuperLink that runs them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from server.flower import child, superlink
from server.flower.superlink import SuperLink

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
NAMES = ("server.flower.link_process", "server.flower.executor")
PIN = "ab" * 32


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of stand-ins, named as the modules that they stand for."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in NAMES:
        (folder / name).write_text(STAND_IN)
        (folder / name).chmod(0o755)

    def program(module: str, *arguments: str) -> list[str]:
        return [str(folder / module), *arguments]

    monkeypatch.setattr(superlink, "program", program)
    monkeypatch.setattr(superlink, "WATCH_S", 0.02)
    monkeypatch.setattr(child, "STOP_GRACE_S", 0.1)
    monkeypatch.setattr(child, "RESTART_DELAYS_S", (0.05,))
    return folder


@pytest.fixture
def link(tmp_path: Path, programs: Path) -> Iterator[SuperLink]:
    one = SuperLink(tmp_path / "superlink", PIN, environment={"KOHORT_TEST": "yes"})
    yield one
    one.stop()
