"""Opens a state folder of version 0.1: a backup first, then the first heads, or a refusal.

In: a state folder. Out: the same folder in the present layout, and the backup's folder.
Guarantees:
1. Nothing is changed before a copy of it is on disk, for the site's account alone.
2. What the old records name must be there: ledger heads that were signed, reservations, messages in
   the outbox, groups of images that left. Otherwise the folder is refused (E-STATE-UNPROVEN).
3. From then on every answer has its head, as if it had been taken when it was signed.
4. A folder of the present layout that lost its `version` or its heads does not pass for an old one.
Not covered: copying the outbox, which is not changed; how the groups of an old store were formed
(client/state/group_store.py).
"""

from __future__ import annotations

import datetime
import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

from client.state.folder import State, message_file
from client.state.group_store import GroupStore
from client.state.head import AFTER_LOSS, Heads, rollback
from client.state.ledger import Reservation
from client.state.ledger_file import transaction
from client.state.leftovers import find_unnamed
from common.errors import EnvironmentFault, PolicyError, RefusedError, disk_faults_named
from common.storage.files import atomic_write, read_capped
from common.storage.journal import Entry
from common.wire.messages import Sealed, digest_of, digest_of_sealed
from common.wire.tensors import read

LAYOUT = "2"
VERSION_CAP_BYTES = 64
MESSAGE_CAP_BYTES = (1 << 30) + (1 << 20)
MARK = "layout"  # the journal's key of a migration
# of the present layout alone
NEW_STATES = ("exported", "charged")


def upgrade(state: State) -> Path | None:
    """Bring a state folder to the present layout; return where the copy of an old one lies.

    Raises RefusedError (E-STATE-VERSION) for another layout, PolicyError (E-STATE-UNPROVEN).
    """
    if state.version.is_file():
        found = read_capped(state.version, VERSION_CAP_BYTES).decode("ascii", "replace").strip()
        if found == LAYOUT:
            return None
        raise RefusedError(
            f"{state.version}: layout {found[:16]!r}, this version of kohort knows {LAYOUT!r}",
            hint="update kohort, or put the state folder of this version back",
            code="E-STATE-VERSION",
        )
    backup = None
    if _is_present(state):
        if not Heads(state).any():
            raise rollback("the list of heads and the version of the folder are lost")
    elif _is_used(state):
        backup = _migrate(state)
    atomic_write(state.version, f"{LAYOUT}\n".encode(), mode=0o600)
    return backup


def check_state(state: State) -> None:
    """Raise PolicyError (E-ROLLBACK) if a folder is older than what left of it; changes nothing.

    A folder of version 0.1 has no heads yet: the next `kohort-site run` migrates it.
    """
    if state.version.is_file():
        Heads(state).check()


def _is_used(state: State) -> bool:
    """Whether something was reserved, frozen or sent here; an approved plan alone is not."""
    files = (state.ledger, state.groups, state.canaries, state.outbox, state.jobs, state.weights)
    if any(path.exists() for path in files):
        return True
    return any(not entry.key.startswith("plan/") for entry in state.journal.entries())


def _migrate(state: State) -> Path:
    """Copy, prove, and take the head of every answer."""
    # (1) a copy of everything that the migration opens, once
    mark = state.journal.latest(MARK)
    if mark is not None:
        backup = state.root / str(mark.data["backup"])
    else:
        backup = _back_up(state)
        state.journal.append(MARK, "migrating", {"backup": backup.name})
    # (2) what the records name is there
    _prove_ledger(state)
    answered = _prove_outbox(state)
    _prove_groups(state, answered)
    unnamed = find_unnamed(state)
    if unnamed:
        raise _unproven(f"the journal does not name {unnamed} that is here")
    # (3) every answer names its bytes, and has its head
    for key, digests in answered.items():
        latest = state.journal.latest(key)
        if latest is not None and "sealed" not in latest.data:
            state.journal.append(key, "answered", {"sealed": digests})
    heads = Heads(state)
    for key in answered:
        heads.take(key)
    heads.take(MARK)
    state.journal.append(MARK, "migrated", {"backup": backup.name})
    return backup


def _is_present(state: State) -> bool:
    """Whether the journal says that this folder has the present layout, or was migrated to it."""
    mark = state.journal.latest(MARK)
    if mark is not None:
        return mark.state == "migrated"
    for entry in state.journal.entries():
        if entry.state in NEW_STATES or "sealed" in entry.data:
            return True
    return False


# --- (1) the copy --------------------------------------------------------------------------------


def _back_up(state: State) -> Path:
    """Copy ledger, journal, groups and canaries into a new folder; return it."""
    today = datetime.date.today().isoformat()
    number = 1
    folder = state.root / f"backup-0.1-{today}"
    while folder.exists():  # an earlier try ended half-way
        number += 1
        folder = state.root / f"backup-0.1-{today}-{number}"
    with disk_faults_named("cannot write the backup", folder):
        folder.mkdir(mode=0o700)
        for path in (state.ledger, state.journal.path, state.groups):
            if path.is_file():
                _copy_database(path, folder / path.name)
        if state.canaries.is_dir():
            shutil.copytree(state.canaries, folder / state.canaries.name)
    return folder


def _copy_database(source: Path, target: Path) -> None:
    """Copy an SQLite file with what lies beside it, whatever its journal mode."""
    os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600))
    try:
        with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(target)) as new:
            old.backup(new)
    except sqlite3.Error as error:
        raise EnvironmentFault(
            f"cannot copy {source}: {error}", hint="free some space, and start again"
        ) from error


# --- (2) the proof -------------------------------------------------------------------------------


def _prove_ledger(state: State) -> None:
    """The ledger holds every head that was signed and every reservation of the journal."""
    known: set[str] = set()
    reserved: dict[int, object] = {}
    if state.ledger.is_file():
        with transaction(state.ledger) as (_, entries):
            known = {entry.head for entry in entries}
            reserved = {e.seq: e.data["event"] for e in entries if e.kind == "reserve"}
    for entry in state.journal.entries():
        head = entry.data.get("head")
        if entry.state == "cleared" and head is not None and head not in known:
            raise _unproven("the ledger is older than what was signed")
        if _reservation(entry) not in (0, *reserved):
            raise _unproven("the ledger lacks a reservation of the journal")


def _reservation(entry: Entry) -> int:
    """The ledger's entry that a journal entry names; 0 where it names none."""
    text = entry.data.get("reservation")
    if entry.state not in ("reserved", "started") or not text:
        return 0
    return Reservation.from_json(str(text)).id


def _prove_outbox(state: State) -> dict[str, list[str]]:
    """Return, for every answered round, the digests of its messages; each must be there."""
    cleared: dict[str, list[str]] = {}
    answered: dict[str, list[str]] = {}
    for entry in state.journal.entries():
        if entry.state == "cleared":
            cleared[entry.key] = [str(digest) for digest in entry.data["digests"]]
        if entry.state == "answered":
            answered[entry.key] = _prove_messages(state, entry.key, cleared.get(entry.key, []))
    # what was signed, before the process ended: its first part is stored last
    for key, digests in cleared.items():
        if key not in answered and message_file(state.outbox, key).is_file():
            answered[key] = _prove_messages(state, key, digests)
    return answered


def _prove_messages(state: State, key: str, digests: list[str]) -> list[str]:
    """The digests of a round's stored messages, whose payloads the journal names."""
    place = key.rpartition("/")[0]
    found: list[str] = []
    for part, digest in enumerate(digests):
        path = message_file(state.outbox, f"{place}/{part}")
        if not path.is_file():
            raise _unproven("the outbox lacks a message that was signed")
        fields = read(path, max_bytes=MESSAGE_CAP_BYTES)
        sealed = Sealed(*(fields[name].tobytes() for name in Sealed._fields))
        if digest_of(sealed.payload) != digest:
            raise _unproven("a message of the outbox is not the one that was signed")
        found.append(digest_of_sealed(sealed))
    if not found:
        raise _unproven("the journal lacks what an answer was")
    return found


def _prove_groups(state: State, answered: dict[str, list[str]]) -> None:
    """Where images left, groups are frozen."""
    if not any("/synthesize/" in key for key in answered):
        return
    if state.groups.is_file():
        with GroupStore(state.groups) as store:
            if store.groups():
                return
    raise _unproven("images left, and no group is frozen")


def _unproven(what: str) -> PolicyError:
    """The refusal of an old folder in which something is missing."""
    return PolicyError(
        f"state folder of version 0.1: {what}; it cannot be migrated, and nothing is spent",
        hint=f"put the newest copy of the whole state folder back; if there is none: {AFTER_LOSS}",
        code="E-STATE-UNPROVEN",
    )
