"""A job folder: the format that the daemon and its child process share.

In: a `Job` and what the child needs. Out: the files named below; all of them stay on site.
Guarantees: the output appears whole or not at all; a finished folder holds the whole output.
Not covered: starting a child (client/daemon/jobs.py), its work (client/child).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from common.errors import KohortError, RefusedError, damage_named, disk_faults_named
from common.storage.files import atomic_write, read_capped
from common.wire.messages import canonical

# written by the daemon
JOB = "job.json"
WEIGHTS = "in.safetensors"  # the global weights
GROUPS = "groups.json"  # the frozen groups
STORED = "stored.safetensors"  # what may be released of them
CANARIES = "canaries.safetensors"  # which canaries take part, and where
# written by the child, beside contact_sheet.png and inversions.png
PROGRESS = "progress"
TALLY = "tally.safetensors"  # what was measured of canaries, noise and clip
EVIDENCE = "evidence.json"
OUTPUT = "out.safetensors"  # written last
ERROR = "error"  # the code of a refusal
LOG = "child.log"

JSON_CAP_BYTES = 1 << 28
WEIGHTS_CAP_BYTES = 1 << 32
OUTPUT_CAP_BYTES = 1 << 32
ERROR_CAP_BYTES = 64

Progress = Callable[[int, int], None]


class Stopped(KohortError):
    """The daemon was asked to stop while it waited. Nothing is sent; the next start resumes."""

    exit_code = 5
    default_code = "E-STOPPED"


@dataclass(frozen=True)
class Job:
    """What a child needs to know.

    `plan` and `cohort` are folders; `reservation` is the ledger's text, "" where there is none.
    `people`: the digest of the persons file when the job began.
    """

    kind: Literal["train", "synthesize"]
    model: str
    plan: str
    cohort: str
    reservation: str
    threads: int
    memory_gib: float
    people: str = ""

    def write(
        self,
        folder: Path,
        weights: bytes,
        groups: bytes,
        canaries: bytes = b"",
        stored: bytes = b"",
    ) -> None:
        """Fill a job folder; files of an earlier try are removed."""
        with disk_faults_named("cannot prepare the job", folder):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True, mode=0o700)
        atomic_write(folder / WEIGHTS, weights, mode=0o600)
        atomic_write(folder / GROUPS, groups, mode=0o600)
        if stored:
            atomic_write(folder / STORED, stored, mode=0o600)
        if canaries:
            atomic_write(folder / CANARIES, canaries, mode=0o600)
        atomic_write(folder / JOB, canonical(asdict(self)), mode=0o600)

    @classmethod
    def read(cls, folder: Path) -> Job:
        """Return the job in a folder; raises RefusedError for anything but `write`'s text."""
        text = read_capped(folder / JOB, JSON_CAP_BYTES)
        with damage_named(RefusedError(f"{folder}/{JOB}: not a job of this version")):
            return cls(**json.loads(text))


def is_finished(folder: Path) -> bool:
    """Return whether the folder holds a whole output."""
    return (folder / OUTPUT).is_file()


def read_error(folder: Path) -> str:
    """Return the code with which the child refused, or "" if it left none."""
    path = folder / ERROR
    if not path.is_file():
        return ""
    return read_capped(path, ERROR_CAP_BYTES).decode("ascii", "replace")


def write_progress(folder: Path, done: int, total: int) -> None:
    """Write how far the child is; replaced atomically, not synced."""
    part = folder / f".{PROGRESS}"
    part.write_text(f"{done} {total}")
    os.replace(part, folder / PROGRESS)


def read_progress(folder: Path) -> tuple[int, int]:
    """Return (done, total), or (0, 0) before the first step."""
    try:
        done, total = (folder / PROGRESS).read_text().split()
        return int(done), int(total)
    except (OSError, ValueError):
        return 0, 0
