"""The journal: order, append only, survives a crash."""

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import EnvironmentFault, RefusedError
from common.storage.journal import Journal


def test_entries_come_back_in_order_and_the_latest_wins(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.sqlite")
    journal.append("a/1", "started", {"n": 1})
    journal.append("b/1", "started")
    journal.append("a/1", "done", {"n": 2})
    assert journal.latest("a/1") is not None
    assert journal.latest("a/1").state == "done"  # type: ignore[union-attr]
    assert journal.latest("c") is None
    journal.close()
    again = Journal(tmp_path / "j.sqlite")
    assert [(e.key, e.state) for e in again.entries("a/")] == [("a/1", "started"), ("a/1", "done")]
    again.close()


def test_nothing_is_changed_or_removed(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.sqlite")
    journal.append("a", "x")
    journal.close()
    database = sqlite3.connect(tmp_path / "j.sqlite")
    for statement in ("UPDATE entry SET state = 'y'", "DELETE FROM entry"):
        with pytest.raises(sqlite3.IntegrityError, match="append only"):
            database.execute(statement)
    database.close()


def test_what_append_returned_from_survives_kill_9(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from common.storage.journal import Journal\n"
        "j = Journal(Path(sys.argv[1]))\n"
        "for n in range(10000):\n j.append('k', str(n)); print(n, flush=True)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "j")], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    for _ in range(20):
        last = int(child.stdout.readline())
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()
    journal = Journal(tmp_path / "j")
    entry = journal.latest("k")
    assert entry is not None
    assert int(entry.state) >= last
    journal.close()


def test_a_file_that_is_no_journal_is_told(tmp_path: Path) -> None:
    (tmp_path / "j").write_bytes(b"not a database at all, but long enough to be read as one" * 20)
    with pytest.raises(EnvironmentFault, match="cannot open the journal"):
        Journal(tmp_path / "j")


def test_a_new_journal_and_its_side_files_are_for_this_account_alone(tmp_path: Path) -> None:
    """Whatever the umask: the side files hold the newest entries."""
    before = os.umask(0o022)
    try:
        journal = Journal(tmp_path / "journal.sqlite")
        journal.append("key", "state")
        found = sorted(tmp_path.iterdir())
        assert len(found) == 3
        assert {path.stat().st_mode & 0o777 for path in found} == {0o600}
        journal.close()
    finally:
        os.umask(before)


DAMAGED_ROWS = {
    "no JSON": ("a", "x", "{"),
    "no object": ("a", "x", "[]"),
    "depth alone": ("a", "x", "[" * 100_000),
    "a key of bytes": (b"a", "x", "{}"),
    "bytes that are no text": ("a", "x", b"\xff"),
}


@pytest.mark.parametrize("case", DAMAGED_ROWS)
def test_a_row_that_was_not_written_by_append_is_refused(case: str, tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.sqlite")
    journal._db.execute("INSERT INTO entry (key, state, data) VALUES (?, ?, ?)", DAMAGED_ROWS[case])
    with pytest.raises(RefusedError) as caught:
        journal.entries()
    assert caught.value.code == "E-JOURNAL"
    journal.close()


def test_a_damaged_file_is_named_at_its_opening_or_its_reading(tmp_path: Path) -> None:
    path = tmp_path / "j.sqlite"
    journal = Journal(path)
    for number in range(200):
        journal.append(f"key {number}", "x", {"n": number})
    journal._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    journal.close()
    whole = path.read_bytes()
    for at in range(0, len(whole), 512):
        path.write_bytes(whole[:at] + bytes([255] * 256) + whole[at + 256 :])
        for side in tmp_path.glob("j.sqlite-*"):
            side.unlink()
        try:
            again = Journal(path)
        except EnvironmentFault:
            continue
        with contextlib.suppress(EnvironmentFault, RefusedError):
            again.entries()
        again.close()
