"""Opens a file of the hospital: a regular one, small enough, and nothing else.

Guarantees: no link is followed, no pipe is waited on; a reader is given no more than the file has.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from client.ingest.quarantine import Reason, Unusable


class _Sized(io.BufferedReader):
    """A file that is never asked for more than it has.

    A reader that trusts a length in the file would otherwise allocate what the length says.
    """

    def __init__(self, descriptor: int, size: int) -> None:
        super().__init__(io.FileIO(descriptor, "rb"))
        self._size = size

    def read(self, size: int | None = -1, /) -> bytes:
        """Return at most so many bytes, and at most those that are left."""
        left = max(0, self._size - self.tell())
        if size is None or size < 0:
            size = left
        return super().read(min(size, left))


@contextmanager
def open_regular(path: str, max_bytes: int) -> Iterator[BinaryIO]:
    """Yield the file at `path`, open for reading.

    Raises Unusable (not-a-regular-file, unreadable-file, file-too-large).
    """
    # O_NOFOLLOW refuses a link; O_NONBLOCK does not wait for a pipe's writer
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        reason = Reason.UNREADABLE
        if os.path.islink(path):
            reason = Reason.NOT_A_FILE
        raise Unusable(reason) from error

    # check what was opened, not what the name pointed to before
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise Unusable(Reason.NOT_A_FILE)
    with _Sized(descriptor, status.st_size) as file:
        if status.st_size > max_bytes:
            raise Unusable(Reason.FILE_TOO_LARGE)
        yield file
