"""How many requests the front has refused, by status: its process writes it, the server shows it.

In: counts. Out: a small file in the operator's state folder, and the counts in it.
Guarantees: a status is a number from 400 to 599, and there are few of them, so nothing that a peer
sent stands in the file; one that cannot be read counts as none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from common.storage.files import atomic_write, read_capped

FILE = "front-refusals.json"
CAP_BYTES = 4096
STATUSES = frozenset(map(str, range(400, 600)))
MOST_STATUSES = 32
MOST = 1 << 53  # what every reader of JSON keeps whole


def write_refusals(root: Path, counts: Mapping[int, int]) -> None:
    """Write counts into their file; raises EnvironmentFault on a full disk."""
    text = json.dumps({str(status): count for status, count in counts.items()})
    atomic_write(root / FILE, text.encode(), mode=0o600)


def read_refusals(root: Path) -> dict[int, int]:
    """Return the counts in the file by status; none where it is missing or damaged."""
    try:
        found = json.loads(read_capped(root / FILE, CAP_BYTES))
        if not found.keys() <= STATUSES or len(found) > MOST_STATUSES:
            raise ValueError("statuses")
        return {int(status): _count(value) for status, value in found.items()}
    except Exception:
        # whatever it is, these are no counts
        return {}


def _count(value: object) -> int:
    """A count; raises ValueError for anything else."""
    if type(value) is not int or not 0 <= value < MOST:
        raise ValueError("count")
    return value
