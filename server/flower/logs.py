"""Caps the log file of a program that only appends to it: the last part of it is kept beside it.

In: the path of a log that another process holds open. Out: an empty file, and a bounded one beside.
Guarantees: no more is copied than the bound, also while the program writes faster than that.
Not covered: lines that are written while it is cut, which may be lost.
"""

from __future__ import annotations

import os
from pathlib import Path

LOG_BYTES = 16 << 20


def cap_log(path: Path, most: int = LOG_BYTES) -> None:
    """Move the last bytes of a log that has grown too large to `NAME.1`; the log begins anew.

    `most`: how large the log may be, and how much of it is kept.

    The file stays the same, because its writer holds it open and appends.
    """
    try:
        size = path.stat().st_size
        if size <= most:
            return
        with path.open("rb") as log:
            log.seek(size - most)
            kept = log.read(most)
        part = path.with_name(f".part-{path.name}")
        part.write_bytes(kept)
        os.replace(part, path.with_name(path.name + ".1"))
        os.truncate(path, 0)
    except OSError:
        # no log yet, or a full disk: the next look tries again
        return
