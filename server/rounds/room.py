"""How much a study may write, from its plan alone, and what earlier rounds left behind.

In: a study's record. Out: a bound in bytes; the leftovers are gone.
Guarantees: nothing that a round still needs is removed.
"""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path

from common.privacy import boundary
from server.operator.caps import REPLY_EXTRA_BYTES, study_bytes
from server.rounds.record import StudyRecord

PART = ".part-*"
OLD_S = 3600.0  # a younger file may be another command's, at work now
ROUND = re.compile(r"(\w+)-([0-9]{6})")


def bytes_to_come(record: StudyRecord) -> int:
    """Return a bound on what the rounds of a study keep on disk at once."""
    return study_bytes(record.study, _checkpoint_sizes(record))


def largest_reply(record: StudyRecord) -> int:
    """Return a bound on one reply of a site: an update in float32, or a part of its images."""
    # a checkpoint may hold its numbers in half of that
    updates = 2 * max(_checkpoint_sizes(record), default=0)
    return max(updates, boundary.PART_CAP_BYTES) + REPLY_EXTRA_BYTES


def _checkpoint_sizes(record: StudyRecord) -> list[int]:
    """The bytes of each trained model's starting checkpoint."""
    sizes = []
    for plan in record.study.models.trained().values():
        if plan.start is not None:
            path = record.root / "bundle" / "checkpoints" / plan.start.name
            sizes.append(path.stat().st_size)
    return sizes


def sweep_rounds(record: StudyRecord) -> int:
    """Remove the folders of closed rounds that a crash left; return how many there were."""
    swept = 0
    for folder in sorted((record.root / "rounds").glob("*")):
        found = ROUND.fullmatch(folder.name)
        if found and record.closing_entry("train", found[1], int(found[2])):
            shutil.rmtree(folder, ignore_errors=True)
            swept += 1
    return swept


def sweep_parts(root: Path) -> int:
    """Remove files that were never finished, below a state folder; return how many there were."""
    swept = 0
    for path in sorted(root.rglob(PART)):
        try:
            if path.is_file() and time.time() - path.lstat().st_mtime > OLD_S:
                path.unlink()
                swept += 1
        except FileNotFoundError:
            continue
    return swept
