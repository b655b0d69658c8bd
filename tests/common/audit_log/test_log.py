"""A log names its first entry that is not as it was written, whatever was done to it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.audit_log.entries import Event, find_broken_link, follow
from common.audit_log.log import FILE, HEADS_FILE, AuditLog
from common.errors import Bug, ConfigurationError, KohortError, RefusedError
from common.wire import signing

KEY = signing.new_key()
OTHER = signing.new_key()
SITES = ("a", "b", "c", "d", "e")


def own() -> Ed25519PrivateKey:
    return KEY


@pytest.fixture
def log(tmp_path: Path) -> AuditLog:
    """A log with five entries and five signed heads."""
    found = AuditLog(tmp_path, own)
    for site in SITES:
        found.note("site-released", site=site)
    return found


def change(log: AuditLog, *statements: str, file: str = FILE) -> None:
    """Do to the file what nothing in the product does."""
    with closing(sqlite3.connect(log.path.with_name(file))) as database, database:
        for trigger in ("no_update", "no_delete"):
            database.execute(f"DROP TRIGGER IF EXISTS {trigger}")
        for statement in statements:
            database.execute(statement)


def flip(log: AuditLog) -> None:
    change(log, """UPDATE entry SET data = replace(data, '"site": "c"', '"site": "x"')""")


def flip_event(log: AuditLog) -> None:
    change(log, "UPDATE entry SET key = 'site-revoked' WHERE seq = 3")


def flip_to_garbage(log: AuditLog) -> None:
    change(log, "UPDATE entry SET data = '{' WHERE seq = 3")


def flip_shape(log: AuditLog) -> None:
    change(log, """UPDATE entry SET data = '{"facts": [], "time": 1}' WHERE seq = 3""")


def flip_last(log: AuditLog) -> None:
    change(log, """UPDATE entry SET data = replace(data, '"site": "e"', '"site": "x"')""")


def drop(log: AuditLog) -> None:
    change(log, "DELETE FROM entry WHERE seq = 3")


def drop_and_number_anew(log: AuditLog) -> None:
    change(
        log,
        "DELETE FROM entry WHERE seq = 3",
        "UPDATE entry SET seq = 3 WHERE seq = 4",
        "UPDATE entry SET seq = 4 WHERE seq = 5",
    )


def reorder(log: AuditLog) -> None:
    change(
        log,
        "UPDATE entry SET seq = 9 WHERE seq = 3",
        "UPDATE entry SET seq = 3 WHERE seq = 4",
        "UPDATE entry SET seq = 4 WHERE seq = 9",
    )


def truncate(log: AuditLog) -> None:
    change(log, "DELETE FROM entry WHERE seq > 3")


def truncate_all(log: AuditLog) -> None:
    change(log, "DELETE FROM entry")


def write_anew(log: AuditLog, first: int) -> None:
    """Write every entry from one on as another, with a chain that holds."""
    before: list[Event] = log.entries()[: first - 1]
    change(log, f"DELETE FROM entry WHERE seq >= {first}")
    for site in SITES[first - 1 :]:
        entry = follow(before, "site-revoked", "2026-12-01T00:00:00Z", {"site": site})
        before.append(entry)
        row = {
            "time": entry.time,
            "facts": entry.facts,
            "previous": entry.previous,
            "digest": entry.digest,
        }
        with closing(sqlite3.connect(log.path)) as database, database:
            database.execute(
                "INSERT INTO entry (key, state, data) VALUES (?, 'noted', ?)",
                (entry.event, json.dumps(row)),
            )


def fork(log: AuditLog) -> None:
    write_anew(log, 3)


def fork_with_heads_of_another(log: AuditLog) -> None:
    """Whoever has no key signs with another."""
    write_anew(log, 3)
    change(log, "DELETE FROM entry WHERE seq >= 3", file=HEADS_FILE)
    AuditLog(log.path.parent, lambda: OTHER).sign()


TAMPERINGS: dict[str, tuple[Callable[[AuditLog], None], int]] = {
    "an entry says something else": (flip, 3),
    "an entry is another event": (flip_event, 3),
    "an entry is no JSON": (flip_to_garbage, 3),
    "an entry has other fields": (flip_shape, 3),
    "the last entry says something else": (flip_last, 5),
    "an entry is missing": (drop, 3),
    "an entry is missing and the others are numbered anew": (drop_and_number_anew, 3),
    "two entries changed places": (reorder, 3),
    "the end is missing": (truncate, 4),
    "everything is missing": (truncate_all, 1),
    "the end was written anew, with a chain that holds": (fork, 3),
    "the end was written anew and signed by another": (fork_with_heads_of_another, 3),
}


@pytest.mark.parametrize("name", TAMPERINGS)
def test_the_first_broken_entry_is_named(log: AuditLog, name: str) -> None:
    tamper, first = TAMPERINGS[name]
    assert log.verify([KEY.public_key()]) == 5
    tamper(log)
    log.close()
    with pytest.raises(RefusedError, match=rf"entry {first}:"):
        AuditLog(log.path.parent, own).verify([KEY.public_key()])


def test_a_head_of_a_key_that_was_changed_still_counts(log: AuditLog) -> None:
    later = AuditLog(log.path.parent, lambda: OTHER)
    later.note("site-revoked", site="e")
    assert later.verify([OTHER.public_key(), KEY.public_key()]) == 6
    with pytest.raises(RefusedError, match=r"entry 1: the head of 1, .* not signed"):
        later.verify([OTHER.public_key()])


def test_a_key_that_is_locked_leaves_the_head_to_the_next_one(tmp_path: Path) -> None:
    def locked() -> Ed25519PrivateKey:
        raise ConfigurationError("it has a passphrase")

    AuditLog(tmp_path, locked).note("site-revoked", site="a")
    AuditLog(tmp_path).note("site-revoked", site="b")
    log = AuditLog(tmp_path, own)
    assert log.heads() == []
    head = log.sign()
    assert head is not None and head.seq == 2
    assert log.sign() == head
    assert [one.seq for one in log.heads()] == [2]


def test_an_event_may_be_noted_once_whatever_crashes(tmp_path: Path) -> None:
    log = AuditLog(tmp_path, own)
    for _ in range(2):
        log.note("study-complete", once=True, plan="p")
        log.note("study-extended", plan="p", seconds=5.0)
    assert [entry.event for entry in log.entries()] == [
        "study-complete",
        "study-extended",
        "study-extended",
    ]


@pytest.mark.parametrize(
    ("event", "facts"),
    [("withdrawn", {"patient": "4711"}), ("withdrawn", {}), ("patients", {"count": 3})],
    ids=["another fact", "no fact", "another event"],
)
def test_an_event_outside_the_list_is_a_bug(
    tmp_path: Path, event: str, facts: dict[str, str]
) -> None:
    with pytest.raises(Bug):
        AuditLog(tmp_path, own).note(event, **facts)
    assert AuditLog(tmp_path, own).entries() == []


def test_a_text_cannot_write_on_a_terminal(tmp_path: Path) -> None:
    log = AuditLog(tmp_path, own)
    log.note("plan-approved", plan="p", by="\x1b[2J" + "x" * 1000)
    (entry,) = log.entries()
    assert entry.line().isprintable()
    assert len(entry.line()) < 400


def test_several_processes_write_one_chain(tmp_path: Path) -> None:
    logs = [AuditLog(tmp_path, own) for _ in range(3)]
    for number in range(9):
        logs[number % 3].note("site-revoked", site=str(number))
    assert AuditLog(tmp_path).verify([KEY.public_key()]) == 9


def test_reading_makes_no_file(tmp_path: Path) -> None:
    log = AuditLog(tmp_path, own)
    assert (log.entries(), log.heads(), log.head, log.sign()) == ([], [], "", None)
    assert log.verify([KEY.public_key()]) == 0
    assert list(tmp_path.iterdir()) == []


def test_a_head_that_is_none_is_refused(log: AuditLog) -> None:
    change(log, "UPDATE entry SET data = '{}'", file=HEADS_FILE)
    log.close()
    with pytest.raises(KohortError, match="head"):
        AuditLog(log.path.parent, own).verify([KEY.public_key()])


def chained(*sites: str) -> list[Event]:
    """A chain that holds."""
    entries: list[Event] = []
    for site in sites:
        entries.append(follow(entries, "site-revoked", "2026-12-01T00:00:00Z", {"site": site}))
    return entries


def test_an_entry_that_was_written_anew_with_its_digest_breaks_the_next_one() -> None:
    entries = chained(*SITES)
    entries[2] = follow(entries[:2], "site-revoked", "2026-12-01T00:00:00Z", {"site": "x"})
    broken = find_broken_link(entries)
    assert broken is not None and broken.seq == 4
    assert "does not follow" in broken.how


def test_a_number_that_is_missing_is_named_before_what_follows() -> None:
    entries = chained(*SITES)
    broken = find_broken_link([*entries[:2], *entries[3:]])
    assert broken is not None and (broken.seq, broken.how[:7]) == (3, "missing")
