"""Opens a file of the hospital: a regular one, small enough, and nothing else.

Guarantees: no link is followed, no pipe is waited on.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from client.ingest.quarantine import Reason, Unusable


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
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise Unusable(Reason.NOT_A_FILE)
        if status.st_size > max_bytes:
            raise Unusable(Reason.FILE_TOO_LARGE)
        yield file
