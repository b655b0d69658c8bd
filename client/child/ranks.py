"""The processes of one host that train together: rank 0 is the daemon's child, the others are its.

In: a job folder, the rank of this process, the devices, one for each process.
Out: the group in which they share each step (client/learn/workers.py).
Guarantees: the others end with rank 0. When one of them ends early, rank 0 ends at once. The code
of a refusal lies in the job folder, whichever of them refused, so the round is not tried again.
Not covered: what they exchange; several hosts.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from client.learn.workers import ALONE, Workers, meet, part
from client.state.jobs import LOST

MEETING = "meeting"  # the file over which the processes find each other
ENDING_S = 2.0  # between a connection that broke and the end of the process behind it
PROGRAM = ("-P", "-m", "client.child.job")


@contextmanager
def together(folder: Path, rank: int, devices: Sequence[torch.device]) -> Iterator[Workers]:
    """Yield the group of all processes, one a device; rank 0 starts the others."""
    if len(devices) == 1:
        yield ALONE
        return
    done = threading.Event()
    others: list[subprocess.Popen[bytes]] = []
    if rank == 0:
        others = [_start(folder, number, done) for number in range(1, len(devices))]
    try:
        yield meet(folder / MEETING, rank, len(devices), devices[rank])
        part()
    except RuntimeError:
        # the connection to a process breaks before the watch hears of its end
        if any(_has_failed(other) for other in others):
            os._exit(LOST)
        raise
    finally:
        done.set()
        for other in others:
            other.kill()
            other.wait()


def _has_failed(other: subprocess.Popen[bytes]) -> bool:
    """Whether a process ended, or does so within ENDING_S, and not well."""
    with suppress(subprocess.TimeoutExpired):
        return other.wait(ENDING_S) != 0
    return False


def _start(folder: Path, rank: int, done: threading.Event) -> subprocess.Popen[bytes]:
    """Start another process of this job, and end with it if it ends before the work is done."""
    command = [sys.executable, *PROGRAM, str(folder), str(rank)]
    other = subprocess.Popen(command, stdin=subprocess.PIPE)
    assert other.stdin is not None
    # the secret is not for it; the pipe stays open, so that it ends when this process does
    other.stdin.write(b"\n")
    other.stdin.flush()

    def watch() -> None:
        if other.wait() and not done.is_set():
            os._exit(LOST)

    threading.Thread(target=watch, daemon=True).start()
    return other
