"""One computation in one child process: its folder, its start, its end.

In: a `Job`. Out: a finished folder (out.safetensors), or how the child ended. Guaranteed: the output appears whole or not at
all; the child has no keys, a bare environment, one secret over a pipe, and dies with the parent; what it prints stays in the
folder. Not covered: what the child computes (client/child/job.py) and whether it may leave (client/egress/gate.py).

Folder: job.json, in.safetensors (global weights), groups.json (frozen groups), canaries.safetensors (coins) -> progress,
tally.safetensors (of the canaries), out.safetensors, evidence.json, contact_sheet.png, inversions.png, error (a code), child.log.
All of it stays on site.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from common.errors import KohortError, RefusedError, disk_faults_named
from common.storage.files import atomic_write, read_capped
from common.wire.messages import canonical

JSON_CAP_BYTES = 1 << 28
CANARIES, TALLY = "canaries.safetensors", "tally.safetensors"
POLL_S = 0.1
KILL_WAIT_S = 5.0
PASSED_ON = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "CUDA_VISIBLE_DEVICES",
    "TZ",
)
Progress = Callable[[int, int], None]


class Stopped(KohortError):
    """The daemon was asked to stop while it waited; nothing is sent, the work goes on after the next start."""

    exit_code = 5
    default_code = "E-STOPPED"


@dataclass(frozen=True)
class Job:
    """What a child needs to know. `plan` and `cohort` are folders; `reservation` is the ledger's text, "" for none."""

    kind: Literal["train", "synthesize"]
    model: str
    plan: str
    cohort: str
    reservation: str
    threads: int
    memory_gib: float

    def write(self, folder: Path, weights: bytes, groups: bytes, canaries: bytes = b"") -> None:
        """Fill a job folder; what an earlier try left there is removed."""
        with disk_faults_named("cannot prepare the job", folder):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True, mode=0o700)
        atomic_write(folder / "in.safetensors", weights, mode=0o600)
        atomic_write(folder / "groups.json", groups, mode=0o600)
        if canaries:
            atomic_write(folder / CANARIES, canaries, mode=0o600)
        atomic_write(folder / "job.json", canonical(asdict(self)), mode=0o600)

    @classmethod
    def read(cls, folder: Path) -> Job:
        """Return the job in a folder; raises RefusedError for anything but `write`'s text."""
        try:
            return cls(**json.loads(read_capped(folder / "job.json", JSON_CAP_BYTES)))
        except (ValueError, TypeError) as error:
            raise RefusedError(f"{folder}/job.json: not a job of this version") from error


@dataclass(frozen=True)
class Ending:
    """How a child ended: finished, refused with a code of ours, or crashed (code "")."""

    finished: bool
    code: str = ""


def is_finished(folder: Path) -> bool:
    """Return whether the folder holds a whole output."""
    return (folder / "out.safetensors").is_file()


def run_child(
    folder: Path, threads: int, secret: bytes, stop: threading.Event, progress: Progress
) -> Ending:
    """Run `python -m client.child.job FOLDER` and wait for it; raises Stopped (child killed) when `stop` is set.

    `secret` goes through the child's standard input, which stays open: the child ends when it closes.
    """
    command = [sys.executable, "-P", "-m", "client.child.job", str(folder)]
    with (
        disk_faults_named("cannot start the child in", folder),
        open(folder / "child.log", "wb") as log,
    ):
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=_environment(threads),
            start_new_session=True,
        )
    try:
        _tell(child, secret)
        _wait(child, folder, stop, progress)
    finally:
        _end(child)
    if child.returncode == 0 and is_finished(folder):
        return Ending(True)
    return Ending(False, _code(folder))


def _environment(threads: int) -> dict[str, str]:
    """What a child inherits: no key, no proxy, no setting of ours but the number of threads."""
    kept = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    count = str(threads or os.cpu_count() or 1)
    return kept | {
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "OPENBLAS_NUM_THREADS": count,
    }


def _tell(child: subprocess.Popen[bytes], secret: bytes) -> None:
    """Send the secret as one line of hex; a child that is gone already is found by the wait."""
    assert child.stdin is not None
    try:
        child.stdin.write(secret.hex().encode() + b"\n")
        child.stdin.flush()
    except BrokenPipeError:
        pass


def _wait(
    child: subprocess.Popen[bytes], folder: Path, stop: threading.Event, progress: Progress
) -> None:
    """Wait for the end, showing progress; raises Stopped."""
    while child.poll() is None:
        progress(*read_progress(folder))
        if stop.wait(POLL_S):
            raise Stopped("stopped while a child was at work; what it had reserved stays spent")


def _end(child: subprocess.Popen[bytes]) -> None:
    """Make sure that the child is gone."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(KILL_WAIT_S)
        except subprocess.TimeoutExpired:
            child.kill()
    child.wait()
    if child.stdin is not None:
        try:
            child.stdin.close()
        except BrokenPipeError:
            pass


def write_progress(folder: Path, done: int, total: int) -> None:
    """Say how far the child is; replaced atomically, not synced."""
    part = folder / ".progress"
    part.write_text(f"{done} {total}")
    os.replace(part, folder / "progress")


def read_progress(folder: Path) -> tuple[int, int]:
    """Return (done, total), (0, 0) before the first step."""
    try:
        done, total = (folder / "progress").read_text().split()
        return int(done), int(total)
    except (OSError, ValueError):
        return 0, 0


def _code(folder: Path) -> str:
    """The code that the child left, or "" if it crashed."""
    path = folder / "error"
    return read_capped(path, 64).decode("ascii", "replace") if path.is_file() else ""
