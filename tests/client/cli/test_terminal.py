"""What commands show while they work: counts, and the time that is left."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.cli.terminal import LINE_S, PhaseLines, phase_bar
from client.ingest.build import COMPARING, READING
from common.errors import EnvironmentFault
from common.storage.lock import FolderLock
from tests.client.cli.typing_commands import Cli


class Clock:
    """A time that a test sets."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_where_there_is_no_terminal_a_line_says_now_and_then_how_far_a_phase_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = Clock()
    lines = PhaseLines(clock)
    for done in range(0, 1001, 10):
        lines.show(READING, done, 1000)
        clock.now += LINE_S / 40
    lines.show(COMPARING, 256, 1000)
    lines.show(COMPARING, 1000, 1000)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [
        "reading files: 0 of 1,000",
        "reading files: 400 of 1,000, about 45 s left",
        "reading files: 800 of 1,000, about 15 s left",
        "reading files: 1,000 of 1,000",
        "comparing images: 256 of 1,000",
        "comparing images: 1,000 of 1,000",
    ]


def test_the_pace_is_that_of_now(capsys: pytest.CaptureFixture[str]) -> None:
    """What an earlier start has finished passes in a moment, and says nothing of the rest."""
    clock = Clock()
    lines = PhaseLines(clock)
    for done, after in ((1, 0.0), (900, LINE_S), (910, LINE_S), (920, LINE_S)):
        clock.now += after
        lines.show(READING, done, 1000)
    assert capsys.readouterr().err.splitlines()[-1].endswith("920 of 1,000, about 4 min left")


def test_a_daemon_writes_no_counts_into_its_log(capsys: pytest.CaptureFixture[str]) -> None:
    with phase_bar() as show:
        show(READING, 3, 12)
    assert capsys.readouterr().err == ""
    with phase_bar(lines=True) as show:
        show(READING, 3, 12)
    assert capsys.readouterr().err == "reading files: 3 of 12\n"


def test_a_second_start_is_told_who_is_at_work(joined: tuple[Path, Path], cli: Cli) -> None:
    state, _ = joined
    for holder in ("kohort-site ingest", "kohort-site run"):
        with FolderLock(state / "lock", holder):
            code, _, err = cli("ingest", "--state", state)
        assert code == 5
        assert f"another process is already running {holder} here" in err
        assert "stop it first" in err


def test_a_lock_file_that_says_nothing_readable_names_what_was_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with FolderLock(path, "kohort-site run"):
        path.write_bytes(b"\x1b[2J\xff")
        with pytest.raises(EnvironmentFault, match="already running kohort-site ingest here"):
            FolderLock(path, "kohort-site ingest")
