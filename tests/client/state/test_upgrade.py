"""A state folder of version 0.1 is copied, migrated, and refused where it proves too little.

folder_0_1/ was written by the daemon at commit 946725e: one training round and one image batch were
answered. Its databases are there as SQL, row by row.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from client.state.folder import State
from client.state.group_store import GroupStore
from client.state.head import Heads
from client.state.ledger_file import transaction
from client.state.upgrade import upgrade
from common.errors import KohortError
from common.storage.journal import Journal
from tests.sites import Hospital, make_hospital, scripted

OLD = Path(__file__).with_name("folder_0_1")
PLAN = "df168e879adb28035e0ca0aa172ea72d041ce61cb851208e3b34b9e1f0ea0e6e"
UPDATE = f"{PLAN}/train/gan/0/0"


@pytest.fixture
def old(tmp_path: Path) -> State:
    """The old folder, as it lay on disk."""
    return write_old(tmp_path / "state")


def write_old(root: Path) -> State:
    state = State(root)
    (root / "keys").mkdir(parents=True)
    state.pseudonym_key.write_bytes(bytes.fromhex((OLD / "pseudonym.key.hex").read_text()))
    for name in ("ledger", "journal", "groups"):
        with closing(sqlite3.connect(root / f"{name}.sqlite")) as database:
            database.executescript((OLD / f"{name}.sql").read_text())
    shutil.copytree(OLD / "outbox", state.outbox)
    shutil.copytree(OLD / "canaries", state.canaries)
    return state


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(KohortError) as error:
        call()
    return error.value.code


def rows(path: Path, table: str) -> list[object]:
    with closing(sqlite3.connect(path)) as database:
        return database.execute(f"SELECT * FROM {table} ORDER BY 1").fetchall()


def test_an_old_folder_is_copied_first_and_then_has_a_head_for_every_answer(old: State) -> None:
    before = {name: rows(old.root / f"{name}.sqlite", table) for name, table in TABLES.items()}
    canary = next(old.canaries.iterdir()).read_bytes()
    backup = upgrade(old)
    # the copy is whole, and for the site's account alone
    assert backup is not None and backup.name.startswith("backup-0.1-20")
    assert backup.stat().st_mode & 0o077 == 0
    for name, table in TABLES.items():
        copied = backup / f"{name}.sqlite"
        assert copied.stat().st_mode & 0o077 == 0
        assert rows(copied, table) == before[name]
    assert next((backup / "canaries").iterdir()).read_bytes() == canary
    # the folder has a head for every answer, and holds
    keys = [entry.key for entry in Journal(old.heads).entries()]
    assert keys == [UPDATE, f"{PLAN}/synthesize//0/0", "layout"]
    Heads(State(old.root)).check()
    assert old.version.read_text() == "2\n"
    # opening it again changes nothing
    assert upgrade(State(old.root)) is None
    assert [entry.key for entry in Journal(old.heads).entries()] == keys


TABLES = {"ledger": "entries", "journal": "entry", "groups": "grouped"}


def test_what_was_signed_just_before_the_old_version_ended_has_its_head_too(old: State) -> None:
    with closing(sqlite3.connect(old.root / "journal.sqlite")) as database:
        database.executescript("DROP TRIGGER no_delete; DELETE FROM entry WHERE seq = 5")
    upgrade(old)
    latest = State(old.root).journal.latest(UPDATE)
    assert latest is not None and latest.state == "answered" and len(latest.data["sealed"]) == 1
    assert UPDATE in [entry.key for entry in Journal(old.heads).entries()]
    Heads(State(old.root)).check()


def test_a_migrated_folder_that_then_loses_a_part_spends_nothing(old: State) -> None:
    upgrade(old)
    for path in old.root.glob("groups.sqlite*"):
        path.unlink()
    assert refused(Heads(State(old.root)).check) == "E-ROLLBACK"


def lose(name: str) -> Callable[[State], None]:
    def remove(state: State) -> None:
        for path in state.root.glob(f"{name}*"):
            path.unlink()

    return remove


def lose_a_message(state: State) -> None:
    next(state.outbox.glob("*.sealed")).unlink()


def swap_the_messages(state: State) -> None:
    one, other = sorted(state.outbox.glob("*.sealed"))
    kept = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(kept)


def empty_the_groups(state: State) -> None:
    lose("groups.sqlite")(state)
    GroupStore(state.groups).close()


def shorten_the_ledger(state: State) -> None:
    """An old backup of it: the last entry is not there yet."""
    with closing(sqlite3.connect(state.ledger)) as database:
        database.executescript(
            "DROP TRIGGER no_delete; DELETE FROM entries WHERE seq = 4; PRAGMA user_version=3;"
        )


def lose_what_was_cleared(state: State) -> None:
    with closing(sqlite3.connect(state.root / "journal.sqlite")) as database:
        database.executescript("DROP TRIGGER no_delete; DELETE FROM entry WHERE state='cleared'")


UNPROVEN: dict[str, Callable[[State], None]] = {
    "the ledger is lost": lose("ledger.sqlite"),
    "the ledger is older than the journal": shorten_the_ledger,
    "a message is lost": lose_a_message,
    "a message is another one": swap_the_messages,
    "the groups are lost": lose("groups.sqlite"),
    "the groups are empty": empty_the_groups,
    "the journal does not say what was cleared": lose_what_was_cleared,
}


@pytest.mark.parametrize("case", UNPROVEN, ids=lambda case: case.replace(" ", "-"))
def test_an_old_folder_that_proves_too_little_is_refused(old: State, case: str) -> None:
    UNPROVEN[case](old)
    assert refused(lambda: upgrade(State(old.root))) == "E-STATE-UNPROVEN"
    # and again: a refusal leaves nothing behind that would pass
    assert refused(lambda: upgrade(State(old.root))) == "E-STATE-UNPROVEN"
    assert not old.version.exists()


@pytest.mark.parametrize("place", ["Heads.take", "_prove_groups", "atomic_write"])
def test_a_migration_that_was_cut_short_goes_on(
    old: State, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    class Dies(BaseException):
        """Stands for `kill -9`."""

    def die(*_: object, **__: object) -> None:
        raise Dies

    with monkeypatch.context() as patch:
        patch.setattr(f"client.state.upgrade.{place}", die)
        with pytest.raises(Dies):
            upgrade(old)
    upgrade(State(old.root))
    Heads(State(old.root)).check()
    assert len(list(old.root.glob("backup-0.1-*"))) == 1
    assert old.version.read_text() == "2\n"


def test_a_new_folder_needs_no_migration(tmp_path: Path) -> None:
    state = State(tmp_path)
    assert upgrade(state) is None
    assert state.version.read_text() == "2\n"
    assert not list(tmp_path.glob("backup*"))


def test_a_folder_of_another_version_is_refused(tmp_path: Path) -> None:
    state = State(tmp_path)
    for text in ("3", "", "0.1"):
        state.version.write_text(text)
        assert refused(lambda: upgrade(state)) == "E-STATE-VERSION"


@pytest.mark.parametrize("migrated", [True, False])
def test_a_present_folder_that_lost_version_and_heads_does_not_pass_for_an_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, migrated: bool
) -> None:
    if migrated:
        state = write_old(tmp_path / "state")
        upgrade(state)
    else:
        hospital = make_hospital(tmp_path)
        scripted(monkeypatch, hospital.study)
        site = hospital.site()
        site.answer(hospital.ask("train"))
        state = site.state
    state.version.unlink()
    lose("heads.sqlite")(state)
    assert refused(lambda: upgrade(State(state.root))) == "E-ROLLBACK"


def test_a_migrated_site_goes_on_from_what_it_spent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hospital = make_hospital(tmp_path, name="later")
    place = hospital.root
    # the present hospital takes over the old folder's records and secret
    old = write_old(tmp_path / "old")
    with closing(sqlite3.connect(place / "journal.sqlite")) as database:
        ((key, state, data),) = database.execute("SELECT key, state, data FROM entry").fetchall()
    for name in ("ledger.sqlite", "journal.sqlite", "groups.sqlite", "outbox", "canaries", "keys"):
        if (old.root / name).is_dir():
            shutil.copytree(old.root / name, place / name, dirs_exist_ok=True)
        else:
            lose(name)(State(place))
            shutil.copy(old.root / name, place / name)
    with closing(sqlite3.connect(place / "journal.sqlite")) as database, database:
        row = (key, state, data)
        database.execute("INSERT INTO entry (key, state, data) VALUES (?, ?, ?)", row)
    hospital = Hospital(place, hospital.operator, hospital.study, hospital.bundle)
    scripted(monkeypatch, hospital.study)
    hospital.site().answer(hospital.ask("train"))
    with transaction(State(place).ledger) as (_, entries):
        assert [entry.kind for entry in entries] == [
            "open", "reserve", "commit", "declare", "reserve", "commit",
        ]  # fmt: skip
    assert len(list(place.glob("backup-0.1-*"))) == 1
