"""What lies in a state folder although its journal does not name it: the journal is old, or lost.

In: a state folder. Out: the first such thing, in words, or "".
Guarantees: looking changes nothing. Every file that is looked at is written after the entry that
names it, so a crash leaves none that is not named.
Not covered: the weights seen last, which are on disk before the journal names them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from client.state.folder import State, message_file
from client.state.group_store import GroupStore
from client.state.spool import spool_name
from common.storage.journal import Entry


def find_unnamed(state: State) -> str:
    """Return what the journal does not name, or ""."""
    # what lies there first: a daemon that works meanwhile names a thing before it writes it
    messages = _names(state.outbox, "*.sealed")
    jobs = _names(state.jobs, "*")
    canaries = _names(state.canaries, "*.safetensors")
    groups = _has_groups(state)
    entries = state.journal.entries()
    if messages - _messages(state, entries):
        return "a message of the outbox"
    if jobs - _job_folders(entries):
        return "a job folder"
    if not _canaries_named(canaries, entries):
        return "a file of canaries"
    if groups and not any("/synthesize/" in entry.key for entry in entries):
        return "a frozen group"
    return ""


def _names(folder: Path, pattern: str) -> set[str]:
    """The names in a folder that may be missing."""
    return {path.name for path in folder.glob(pattern)}


def _messages(state: State, entries: Sequence[Entry]) -> set[str]:
    """The files of all messages that were cleared."""
    names: set[str] = set()
    for entry in entries:
        place = entry.key.rpartition("/")[0]
        if entry.state == "cleared":
            for part in range(len(entry.data["digests"])):
                names.add(message_file(state.outbox, f"{place}/{part}").name)
    return names


def _job_folders(entries: Sequence[Entry]) -> set[str]:
    """The folders of all children, and the spools of their rounds."""
    names = {str(entry.data["folder"]) for entry in entries if "folder" in entry.data}
    return names | {spool_name(name) for name in names}


def _canaries_named(names: set[str], entries: Sequence[Entry]) -> bool:
    """Whether a round of their plan and model was reserved for all canaries."""
    for name in names:
        plan, _, model = name.partition(".")[0].partition("-")
        trained = f"/train/{model}/"
        if not any(entry.key.startswith(plan) and trained in entry.key for entry in entries):
            return False
    return True


def _has_groups(state: State) -> bool:
    """Whether groups are frozen."""
    if not state.groups.is_file():
        return False
    with GroupStore(state.groups) as store:
        return bool(store.groups())
