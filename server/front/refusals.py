"""Counts the front's refusals by status, and keeps the file of the counts current.

In: the status of each refusal. Out: server/operator/refusals.py's file.
Guarantees: every status is one of rules.py; a full disk hinders no request.
Not covered: connections that end before a request, and what nginx refuses itself.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from common.errors import KohortError
from server.front import rules
from server.operator.refusals import write_refusals

WRITE_S = 10.0  # how often the file follows the counts


class Refusals:
    """The counts of one front since it started."""

    def __init__(self) -> None:
        self.counts = dict.fromkeys(rules.REFUSALS, 0)

    def note(self, status: int) -> None:
        """Count one refusal; the answer between studies (503) is none."""
        if status in self.counts:
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
