"""A job folder: the format that the daemon and its child process share.

In: a `Job` and what the child needs. Out: the files named below; all of them stay on site.
Guarantees: the output appears whole or not at all; a finished folder holds the whole output.
Not covered: starting a child (client/daemon/jobs.py), its work (client/child).
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from common.compute import Compute
from common.errors import KohortError, RefusedError, damage_named, disk_faults_named
from common.process import usable_cores
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
FINDINGS = "findings.json"  # what the audit found of each image
OUTPUT = "out.safetensors"  # written last
ERROR = "error"  # the code of a refusal
LOG = "child.log"
PRACTICE = "practice"  # a tensor in whatever a rehearsal makes: neither gate nor server knows it

LOST = 71  # exit code of a child where another process of its training ended early

JSON_CAP_BYTES = 1 << 28
WEIGHTS_CAP_BYTES = 1 << 32
OUTPUT_CAP_BYTES = 1 << 32
ERROR_CAP_BYTES = 64
PROGRESS_CAP_BYTES = 4096
MOST_STEPS = 1 << 53  # of what a child reports

Progress = Callable[[int, int], None]


class Stopped(KohortError):
    """The daemon was asked to stop while it waited. Nothing is sent; the next start resumes."""

    exit_code = 5
    default_code = "E-STOPPED"


@dataclass(frozen=True)
class Job:
    """What a child needs to know.

    `plan` and `cohort` are folders; `reservation` is the ledger's text, "" where there is none.
    `people`: the digest of the persons file when the job began. `ways`: the file of what is fastest
    on this machine; without one, nothing is tried. `threads`: of all its processes together, 0 for
    one a core. `processes`: how many share a training round on the processor.

    `practice`: a job of a rehearsal. Its `reservation` is the text of a mechanism, which no ledger
    holds. `pairs`: a rehearsal's alone; of a study, the server draws them. `domain`: of
    `kohort-site check --pictures` (client/child/domain.py).
    """

    kind: Literal["train", "synthesize", "pairs", "domain"]
    model: str
    plan: str
    cohort: str
    reservation: str
    threads: int
    memory_gib: float
    people: str = ""
    ways: str = ""
    compute: Compute = field(default_factory=Compute)
    processes: int = 1
    practice: bool = False

    @property
    def process_count(self) -> int:
        """How many processes the work has: in training one a GPU, or as many as the site says."""
        if self.kind != "train":
            return 1
        return max(self.processes, len(self.compute.numbers))

    @property
    def threads_each(self) -> int:
        """How many threads one of the processes has."""
        return max(1, (self.threads or usable_cores()) // self.process_count)

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
        text = asdict(self) | {"compute": self.compute.model_dump()}
        atomic_write(folder / JOB, canonical(text), mode=0o600)

    @classmethod
    def read(cls, folder: Path) -> Job:
        """Return the job in a folder; raises RefusedError for anything but `write`'s text."""
        text = read_capped(folder / JOB, JSON_CAP_BYTES)
        with damage_named(RefusedError(f"{folder}/{JOB}: not a job of this version")):
            data = json.loads(text)
            compute = Compute.model_validate(data.pop("compute", {}))
            return cls(**data, compute=compute)


def is_finished(folder: Path) -> bool:
    """Return whether the folder holds a whole output."""
    return (folder / OUTPUT).is_file()


def read_error(folder: Path) -> str:
    """Return the code with which the child refused, or "" if it left none."""
    path = folder / ERROR
    if not path.is_file():
        return ""
    return read_capped(path, ERROR_CAP_BYTES).decode("ascii", "replace")


@dataclass(frozen=True)
class Work:
    """How far a child is in its present phase.

    `first` and `since`: what was done at the phase's first report, and when (seconds since 1970).
    """

    phase: str = ""
    done: int = 0
    total: int = 0
    first: int = 0
    since: float = 0.0

    def seconds_left(self, now: float) -> float | None:
        """Return an estimate of the phase's remaining seconds, None while nothing tells it."""
        passed = now - self.since
        if self.done <= self.first or passed <= 0:
            return None
        return passed * (self.total - self.done) / (self.done - self.first)


def write_progress(folder: Path, done: int, total: int, phase: str = "") -> None:
    """Write how far the child is; replaced atomically, not synced."""
    before = read_work(folder)
    work = Work(phase, done, total, done, time.time())
    # the same phase goes on; a new one begins
    if before.phase == phase and before.total == total and before.done <= done:
        work = replace(work, first=before.first, since=before.since)
    part = folder / f".{PROGRESS}"
    part.write_text(json.dumps(asdict(work)))
    os.replace(part, folder / PROGRESS)


def read_work(folder: Path) -> Work:
    """Return how far the child is; an empty `Work` before its first report."""
    try:
        with (folder / PROGRESS).open("rb") as file:
            facts = json.loads(file.read(PROGRESS_CAP_BYTES))
        work = Work(**facts)
        numbers = (work.done, work.total, work.first)
        counts = all(type(n) is int and 0 <= n <= MOST_STEPS for n in numbers)
        if counts and type(work.phase) is str and math.isfinite(work.since):
            return work
    except (OSError, ValueError, TypeError, RecursionError, OverflowError):
        pass
    return Work()


def read_progress(folder: Path) -> tuple[int, int]:
    """Return (done, total), or (0, 0) before the first step."""
    work = read_work(folder)
    return work.done, work.total
