"""One child process: its start, its end.

In: a job folder, the grouping secret. Out: an `Ending`.
Guarantees: the child has no keys, a bare environment and one secret, sent over a pipe; it dies
with this process; what it prints stays in the folder.
Not covered: what the child computes (client/child), whether it may leave (client/egress/gate.py).
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

from client.state.jobs import LOG, Progress, Stopped, is_finished, read_error, read_progress
from common.errors import disk_faults_named

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


@dataclass(frozen=True)
class Ending:
    """How a child ended: finished, refused with a code of ours, or crashed (code "")."""

    finished: bool
    code: str = ""


def run_child(
    folder: Path, threads: int, secret: bytes, stop: threading.Event, progress: Progress
) -> Ending:
    """Run `python -m client.child.job FOLDER` and wait for it.

    Raises Stopped, with the child killed, when `stop` is set. `secret` goes through the child's
    standard input, which stays open: the child ends when it closes.
    """
    child = _start(folder, threads)
    try:
        _send_secret(child, secret)
        _wait(child, folder, stop, progress)
    finally:
        _end(child)
    if child.returncode == 0 and is_finished(folder):
        return Ending(True)
    return Ending(False, read_error(folder))


def _start(folder: Path, threads: int) -> subprocess.Popen[bytes]:
    """Start the child in a session of its own; its output goes to the job folder."""
    command = [sys.executable, "-P", "-m", "client.child.job", str(folder)]
    with (
        disk_faults_named("cannot start the child in", folder),
        open(folder / LOG, "wb") as log,
    ):
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=_environment(threads),
            start_new_session=True,
        )


def _environment(threads: int) -> dict[str, str]:
    """What a child inherits: no key, no proxy, and of our settings only the number of threads."""
    kept = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    count = str(threads or os.cpu_count() or 1)
    return kept | {
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "OPENBLAS_NUM_THREADS": count,
    }


def _send_secret(child: subprocess.Popen[bytes], secret: bytes) -> None:
    """Send the secret as one line of hex; the wait finds a child that has ended already."""
    assert child.stdin is not None
    try:
        child.stdin.write(secret.hex().encode() + b"\n")
        child.stdin.flush()
    except BrokenPipeError:
        pass


def _wait(
    child: subprocess.Popen[bytes], folder: Path, stop: threading.Event, progress: Progress
) -> None:
    """Wait for the end and report progress; raises Stopped."""
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
