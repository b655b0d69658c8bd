"""How full the folders are that server.yaml limits.

In: the state folder, the folder of releases. Out: a `DiskRow` each.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from server.operator.config import Limits
from server.operator.quota import GIB, folder_bytes
from server.operator.state import ServerState

NEAR, FULL = 0.8, 0.95


@dataclass(frozen=True)
class DiskRow:
    """A folder, the bytes that it holds, its key of server.yaml and that key's limit."""

    folder: Path
    key: str
    used_bytes: int
    limit_bytes: int
    free_bytes: int

    @property
    def share(self) -> float:
        """The used part of what may be used: of the limit, or of the disk where that ends first."""
        room = min(self.limit_bytes, self.used_bytes + self.free_bytes)
        return self.used_bytes / room if room else 1.0


def read_disk(place: ServerState, limits: Limits, releases: Path | None) -> tuple[DiskRow, ...]:
    """Return the folders of studies, of what sites pushed, and of releases where one is named."""
    rows = [
        _row(place.root / "studies", "studies_gib", limits.studies_gib),
        _row(place.superlink, "inbox_gib", limits.inbox_gib),
    ]
    if releases is not None:
        rows.append(_row(releases, "releases_gib", limits.releases_gib))
    return tuple(rows)


def _row(folder: Path, key: str, limit_gib: int) -> DiskRow:
    """One folder; a folder that is not there yet holds nothing."""
    there = folder
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    return DiskRow(folder, key, folder_bytes(folder), limit_gib * GIB, free)
