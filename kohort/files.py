"""Files: read with a size cap, written atomically, identified by their SHA-256.

Guarantees: a reader allocates at most its cap; after a crash a written file is the old or the new
one.
"""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from pathlib import Path

from kohort.errors import RefusedError, disk_faults_named


def read_capped(path: Path, max_bytes: int) -> bytes:
    """Return the bytes of a file of at most `max_bytes`, checked before and while reading.

    A small file takes little memory, however large the cap is.
    """
    with disk_faults_named("cannot read", path), open(path, "rb") as file:
        expected = min(os.fstat(file.fileno()).st_size, max_bytes) + 1
        data = file.read(expected)
        # it has grown, or it is no plain file and says no size
        if len(data) == expected:
            data += file.read(max_bytes + 1 - expected)
    if len(data) > max_bytes:
        raise RefusedError(
            f"{path}: larger than the {max_bytes} bytes allowed", hint="is this the right file?"
        )
    return data


def atomic_write(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write `data` to `path` so that a crash leaves the old file or the new one."""
    with disk_faults_named("cannot write", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".part-")
        try:
            with os.fdopen(handle, "wb") as file:
                os.fchmod(file.fileno(), mode)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def write_new(path: Path, data: bytes) -> None:
    """Write a secret to a new file, mode 0600, whole or not at all; an existing one is an error."""
    if path.exists():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    atomic_write(path, data, mode=0o600)


def sync_folder(folder: Path) -> None:
    """Make a rename or a new name in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file in hex, read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
