"""The list of files that did not enter, by opaque ids; and the same list by path, on site.

In: names below the data folder with their reasons; later the list on disk and the files of today.
Out: a list of ids and codes; `Refusals`, for the site's own screen.
Guarantees:
  - no name is stored: a name is found again by hashing the names that are there now, once
  - a list is read within a cap; a damaged one is refused
Not covered: who may see the names (client/cli/quarantine.py).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from client.ingest.listing import file_id_of
from client.ingest.quarantine import Reason
from common.errors import RefusedError
from common.storage.files import atomic_write, read_capped

LIST = "quarantine.csv"
LIST_CAP_BYTES = 1 << 28
HEADER = "file,code"
REASONS = {reason.value: reason for reason in Reason}
LINE = re.compile(r"[0-9a-f]{32},[a-z0-9-]{1,64}")
OF_ANOTHER_VERSION = "A reason of another version."
INGEST_AGAIN = "kohort-site ingest --refresh says it in this version's words"


@dataclass(frozen=True)
class RefusedFile:
    """One file that did not enter. `path`: below the data folder, as it is called."""

    path: str
    code: str

    @property
    def sentence(self) -> str:
        """Return what the code means."""
        return REASONS[self.code].sentence if self.code in REASONS else OF_ANOTHER_VERSION

    @property
    def fix(self) -> str:
        """Return what to do about it."""
        return REASONS[self.code].fix if self.code in REASONS else INGEST_AGAIN


@dataclass(frozen=True)
class Refusals:
    """The files that did not enter, sorted by code and path.

    `gone`: listed files that are no longer there, or have another name. `built`: the list is that
    of a cohort; else of a last attempt that built none. `time`: when the list was written.
    """

    files: tuple[RefusedFile, ...]
    gone: int
    built: bool
    time: datetime

    def counts(self) -> dict[str, int]:
        """Return the number of files of each code, the most frequent first."""
        found = Counter(file.code for file in self.files)
        return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def write_refused(path: Path, key: bytes, outcomes: Iterable[tuple[str, Reason]]) -> None:
    """Write the opaque id and the reason code of every (name, reason), sorted."""
    lines = sorted(f"{file_id_of(key, name)},{reason.value}" for name, reason in outcomes)
    atomic_write(path, "\n".join([HEADER, *lines, ""]).encode("ascii"), mode=0o600)


def read_refused(path: Path) -> list[tuple[str, str]]:
    """Return the (opaque id, code) of every line. Raises RefusedError for a damaged list."""
    damage = RefusedError(
        f"{path}: not a list of refused files", hint="kohort-site ingest --refresh writes a new one"
    )
    try:
        header, *lines = read_capped(path, LIST_CAP_BYTES).decode("ascii").splitlines()
    except ValueError as error:
        raise damage from error
    if header != HEADER or not all(map(LINE.fullmatch, lines)):
        raise damage
    return [(line[:32], line[33:]) for line in lines]


def find_refused(path: Path, names: Iterable[str], key: bytes, *, built: bool) -> Refusals:
    """Return the list at `path` by name; `names`: the files below the data folder, of today."""
    named = {file_id_of(key, name): name for name in names}
    found = []
    gone = 0
    for file_id, code in read_refused(path):
        if file_id in named:
            found.append(RefusedFile(named[file_id], code))
        else:
            gone += 1
    found.sort(key=lambda file: (file.code, file.path))
    written = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    return Refusals(tuple(found), gone, built, written)
