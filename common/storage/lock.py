"""A lock on a folder: one process at a time.

In: the path of a lock file. Out: a held lock, or EnvironmentFault `E-LOCKED` that names the holder.
Guarantees: the kernel frees the lock when its holder dies, by `kill -9` too.
Not covered: a copy of the folder on another machine.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path
from types import TracebackType

from common.errors import EnvironmentFault, disk_faults_named

NAME_BYTES = 64
TRIES = 4
TRY_S = 0.05


def is_held(path: Path) -> bool:
    """Return whether a process holds this lock now."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


class FolderLock:
    """Held from construction until `release()`; also a context manager."""

    def __init__(self, path: Path, what: str) -> None:
        with disk_faults_named("cannot lock", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._take()
            self._write_name(what)
        except OSError as error:
            holder = self._read_name() or what
            os.close(self._descriptor)
            raise EnvironmentFault(
                f"{path}: another process is already running {holder} here",
                hint="stop it first, or use another folder",
                code="E-LOCKED",
            ) from error

    def _take(self) -> None:
        """Lock, or raise; a moment's patience for whoever asks `is_held`."""
        for _ in range(TRIES - 1):
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                time.sleep(TRY_S)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _write_name(self, what: str) -> None:
        """Write down who holds the lock, for whoever is refused; a full disk changes nothing."""
        with contextlib.suppress(OSError):
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, what.encode()[:NAME_BYTES], 0)

    def _read_name(self) -> str:
        """Return who holds the lock, "" where it is not written."""
        with contextlib.suppress(OSError):
            name = os.pread(self._descriptor, NAME_BYTES, 0).decode("ascii", "replace")
            return name if name.isprintable() else ""
        return ""

    def release(self) -> None:
        """Give the lock back; a second call does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()
