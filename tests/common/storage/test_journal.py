"""The journal: order, append only, survives a crash."""

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from common.errors import EnvironmentFault, RefusedError
from common.storage import journal as journals
from common.storage.journal import Journal
from tests.full_disks import fill, small_disk


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


def test_an_entry_is_made_from_all_before_it_or_not_written(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.sqlite")
    for _ in range(2):
        journal.append_after("a", "x", lambda before: {"before": len(before)})
    with pytest.raises(KeyError):
        journal.append_after("a", "x", lambda before: before[0].data["no such field"])
    assert [entry.data for entry in journal.entries()] == [{"before": 0}, {"before": 1}]
    journal.close()


def test_two_processes_make_entries_one_after_the_other(tmp_path: Path) -> None:
    """Each counts what it sees; a count that comes twice was made beside another one."""
    journals = [Journal(tmp_path / "j.sqlite") for _ in range(2)]

    def write(journal: Journal) -> None:
        for _ in range(10):
            journal.append_after("a", "x", lambda before: {"before": len(before)})

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, journals))
    counts = [entry.data["before"] for entry in journals[0].entries()]
    assert counts == list(range(20))
    for journal in journals:
        journal.close()


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


def test_a_full_disk_is_named_when_a_journal_is_made(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as folder:
        (folder / "state").mkdir()
        (folder / "state" / "j").touch()
        fill(folder)
        with pytest.raises(EnvironmentFault, match="cannot open the journal") as found:
            Journal(folder / "state" / "j")
    assert found.value.code == "E-DISK-FULL"
    assert "free some space there" in str(found.value.hint)


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


@pytest.mark.parametrize("case", DAMAGED_ROWS)
def test_a_damaged_row_is_refused_by_a_query_for_other_rows(case: str, tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.sqlite")
    journal.append("b/1", "x")
    assert len(journal.entries("b/")) == 1
    journal._db.execute("INSERT INTO entry (key, state, data) VALUES (?, ?, ?)", DAMAGED_ROWS[case])
    for _ in range(2):
        with pytest.raises(RefusedError) as caught:
            journal.entries("b/")
        assert caught.value.code == "E-JOURNAL"
    journal.close()


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys of the rows that were read, in order."""
    keys = []

    def note(row: tuple[str, ...]) -> journals.Entry:
        entry = read(row)
        keys.append(entry.key)
        return entry

    read = journals._entry
    monkeypatch.setattr(journals, "_entry", note)
    return keys


def test_a_query_reads_the_rows_that_it_returns(tmp_path: Path, parsed: list[str]) -> None:
    """Whole is checked once: afterwards the rows that are new since, of any key."""
    keys = [f"{study}/{number}/a" for study in ("p", "q") for number in range(50)]
    with contextlib.closing(Journal(tmp_path / "j.sqlite")) as journal:
        for key in keys:
            journal.append(key, "x")
        assert [entry.key for entry in journal.entries("q/1/")] == ["q/1/a"]
        assert parsed == [*keys, "q/1/a"]
        parsed.clear()
        assert len(journal.entries("q/2")) == 11
        assert len(parsed) == 11
        parsed.clear()
        journal.append("r", "x")
        assert len(journal.entries("q/3")) == 11
        assert len(parsed) == 12
        parsed.clear()
        assert journal.latest("p/7/a") is not None
        assert parsed == ["p/7/a"]


def test_a_query_after_an_entry_returns_what_any_process_wrote_since(
    tmp_path: Path, parsed: list[str]
) -> None:
    with (
        contextlib.closing(Journal(tmp_path / "j.sqlite")) as journal,
        contextlib.closing(Journal(tmp_path / "j.sqlite")) as other,
    ):
        for number in range(20):
            journal.append(f"a/{number}", "x")
        last = journal.entries()[-1].seq
        other.append("a/20", "x")
        other.append("b", "x")
        parsed.clear()
        assert [entry.key for entry in journal.entries("a/", after=last)] == ["a/20"]
        assert parsed == ["a/20", "b"]


PREFIXES = {"none": "", "a letter": "a", "with a slash": "a/", "exact": "a/1", "beyond ASCII": "ä"}


@pytest.mark.parametrize("case", PREFIXES)
def test_a_prefix_finds_exactly_the_keys_that_start_with_it(case: str, tmp_path: Path) -> None:
    keys = ["a", "a/1", "a/1/b", "a/10", "a0", "b", "A/1", "ä", "äé\u20ac", "a/\U0001f600", "", "%"]
    with contextlib.closing(Journal(tmp_path / "j.sqlite")) as journal:
        for key in keys:
            journal.append(key, "x")
        found = [entry.key for entry in journal.entries(PREFIXES[case])]
        assert found == [key for key in keys if key.startswith(PREFIXES[case])]
