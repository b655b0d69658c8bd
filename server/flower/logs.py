"""Caps the log file of a program that only appends to it: the old half of it is kept beside it.

In: the path of a log that another process holds open. Out: a file of bounded size, and one more.
Not covered: lines that are written while it is cut, which may be lost.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

LOG_BYTES = 16 << 20


def cap_log(path: Path, most: int = LOG_BYTES) -> None:
    """Move the content of a log that has grown too large to `NAME.1`; the log begins anew.

    The file stays the same, because its writer holds it open and appends.
    """
    try:
        if path.stat().st_size <= most:
            return
        older = path.with_name(path.name + ".1")
        part = path.with_name(f".part-{path.name}")
        shutil.copyfile(path, part)
        os.replace(part, older)
        os.truncate(path, 0)
    except OSError:
        # no log yet, or a full disk: the next look tries again
        return
