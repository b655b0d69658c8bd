"""The life of a process on its machine: its files and memory, its parent, a free port."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import socket
import sys
import threading
import time
from typing import Any

STARTED = time.time()  # Unix time in seconds at which this process began
PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG
DUMPABLE = 4  # PR_SET_DUMPABLE
POLL_S = 1.0


def _prctl() -> Any:
    """The C function prctl; None where it does not exist."""
    return getattr(ctypes.CDLL(None), "prctl", None) if sys.platform == "linux" else None


_PRCTL = (
    _prctl()
)  # looked up before any fork, so that `end_with_parent` may run between fork and exec


def keep_private() -> None:
    """Let nobody else read what this process writes, and let nothing dump or trace its memory.

    Call it first in every program that holds keys or pixels. Its children inherit the mask and the
    limit on core dumps; that another process of this user may not trace it, they say themselves.
    """
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if _PRCTL is not None:
        _PRCTL(DUMPABLE, 0, 0, 0, 0)


def end_with_parent(signal_number: int = signal.SIGTERM) -> None:
    """Let the kernel send this process a signal when the thread that started it ends.

    Works after `kill -9` of the parent, and as a `preexec_fn`. Does nothing but on Linux.
    """
    if _PRCTL is not None:
        _PRCTL(PARENT_DEATH_SIGNAL, int(signal_number))


def end_with_input(exit_code: int) -> None:
    """End this process when its standard input closes.

    For a child whose parent holds the other end of the pipe.
    """

    def watch() -> None:
        sys.stdin.read()
        os._exit(exit_code)

    threading.Thread(target=watch, daemon=True).start()


def end_when_orphaned(exit_code: int = 1) -> None:
    """End this process when another process adopts it, which happens when its parent ends.

    For a process whose parent is not ours: its standard input and its starting thread tell nothing.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_S)
        os._exit(exit_code)

    threading.Thread(target=watch, daemon=True).start()


def usable_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def free_port() -> int:
    """Return a TCP port that is free on the loopback interface now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
