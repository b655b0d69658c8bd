"""Disk space kept back for records: a preallocated file that is given up when the disk is full.

In: the folder of the records. Out: room for a write that must not fail.
Guarantees: a write of a record finds the room of the reserve when the disk is full; the reserve is
made again only when twice its size is free.
Not covered: another process that takes the room first; a disk that is full for longer than the
reserve lasts.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from common.errors import EnvironmentFault

NAME = "reserve"
SIZE_BYTES = 16 << 20
LOW_BYTES = 1 << 20  # below it a database may fail in the middle of a transaction
FULL = "E-DISK-FULL"
T = TypeVar("T")


def hold_reserve(folder: Path, size_bytes: int = SIZE_BYTES) -> bool:
    """Make the reserve unless it is there or the disk has no room; return whether it is held."""
    path = folder / NAME
    try:
        if path.exists():
            return True
        if _free_bytes(folder) < 2 * size_bytes:
            return False
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, size_bytes)
        finally:
            os.close(descriptor)
    except OSError:
        # half a reserve is none
        release_reserve(folder)
        return False
    return True


def release_reserve(folder: Path) -> bool:
    """Give the reserve up; return whether there was one."""
    try:
        (folder / NAME).unlink()
    except OSError:
        return False
    return True


def make_room(folder: Path) -> None:
    """Give the reserve up if the disk is nearly full; for a transaction that cannot be repeated."""
    try:
        low = _free_bytes(folder) < LOW_BYTES
    except OSError:
        return
    if low:
        release_reserve(folder)


def write_with_reserve(folder: Path, write: Callable[[], T]) -> T:
    """Return what `write` returns; on a full disk, give the reserve up and write once more.

    Raises what `write` raises: EnvironmentFault (E-DISK-FULL) where that did not help.
    """
    try:
        return write()
    except EnvironmentFault as error:
        if error.code != FULL or not release_reserve(folder):
            raise
    return write()


def _free_bytes(folder: Path) -> int:
    """What this account may still write on the folder's disk."""
    facts = os.statvfs(folder)
    return facts.f_bavail * facts.f_frsize
