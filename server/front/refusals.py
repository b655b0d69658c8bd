"""How many requests the front has refused, by status: its own process counts, the server shows it.

In: the status of each refusal. Out: a small file in the operator's state folder.
Guarantees: a status is one of the list below; nothing that a peer sent stands in the file; a file
that cannot be read counts as none.
Not covered: connections that end before a request, and what nginx refuses itself.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path

from common.errors import KohortError
from common.storage.files import atomic_write, read_capped
from server.front import rules

FILE = "front-refusals.json"
CAP_BYTES = 4096
WRITE_S = 10.0  # how often the file follows the counts
MOST = 1 << 53  # what every reader of JSON keeps whole


class Refusals:
    """The counts of one front since it started."""

    def __init__(self) -> None:
        self.counts = dict.fromkeys(rules.REFUSALS, 0)

    def note(self, status: int) -> None:
        """Count one refusal."""
        self.counts[status] += 1


async def keep_written(root: Path, refusals: Refusals) -> None:
    """Write the counts below `root` now, and again whenever they have changed."""
    written: dict[int, int] = {}
    while True:
        if refusals.counts != written:
            counts = dict(refusals.counts)
            try:
                await asyncio.to_thread(write_refusals, root, counts)
                written = counts
            except KohortError:
                # a full disk: the next turn tries again
                pass
        await asyncio.sleep(WRITE_S)


def write_refusals(root: Path, counts: Mapping[int, int]) -> None:
    """Write counts into their file; raises EnvironmentFault on a full disk."""
    text = json.dumps({str(status): count for status, count in counts.items()})
    atomic_write(root / FILE, text.encode(), mode=0o600)


def read_refusals(root: Path) -> dict[int, int]:
    """Return the counts in the file by status; none where it is missing or damaged."""
    try:
        found = json.loads(read_capped(root / FILE, CAP_BYTES))
        return {status: _count(found[str(status)]) for status in rules.REFUSALS}
    except Exception:
        # whatever it is, these are no counts
        return {}


def _count(value: object) -> int:
    """A count; raises ValueError for anything else."""
    if type(value) is not int or not 0 <= value < MOST:
        raise ValueError("count")
    return value
