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
from common.storage.journal import Entry


def find_unnamed(state: State) -> str:
    """Return what the journal does not name, or ""."""
    entries = state.journal.entries()
    if _names(state.outbox, "*.sealed") - _messages(state, entries):
        return "a message of the outbox"
    if _names(state.jobs, "*") - _job_folders(entries):
        return "a job folder"
    if not _canaries_named(state, entries):
        return "a file of canaries"
    if not _groups_named(state, entries):
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
    """The folders of all children."""
    return {str(entry.data["folder"]) for entry in entries if "folder" in entry.data}


def _canaries_named(state: State, entries: Sequence[Entry]) -> bool:
    """Whether a round of their plan and model was reserved for all canaries."""
    for path in state.canaries.glob("*.safetensors"):
        plan, _, model = path.name.partition(".")[0].partition("-")
        trained = f"/train/{model}/"
        if not any(entry.key.startswith(plan) and trained in entry.key for entry in entries):
            return False
    return True


def _groups_named(state: State, entries: Sequence[Entry]) -> bool:
    """Whether images were asked for, where groups are frozen."""
    if not state.groups.is_file() or any("/synthesize/" in entry.key for entry in entries):
        return True
    with GroupStore(state.groups) as store:
        return not store.groups()
