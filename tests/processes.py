"""Looks at running processes from outside, as another program of the machine would."""

from __future__ import annotations

import contextlib
from pathlib import Path


def descendants(pid: int) -> list[int]:
    """A process and everything that it started, as far as it runs."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        # a process that ends meanwhile has none
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for child in task.read_text().split():
                found += descendants(int(child))
    return found


def limits_of(pid: int) -> tuple[str, str]:
    """The mask for new files, and the largest core dump."""
    status = Path(f"/proc/{pid}/status").read_text()
    mask = next(line for line in status.splitlines() if line.startswith("Umask:"))
    limits = Path(f"/proc/{pid}/limits").read_text()
    core = next(line for line in limits.splitlines() if line.startswith("Max core file size"))
    return mask.split()[1], " ".join(core.split()[4:6])


def seen_from_outside(pid: int) -> bytes:
    """The command line and the environment of a process."""
    return Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()


def pieces(path: Path) -> list[bytes]:
    """What of a secret file must be seen nowhere: its lines, or its bytes, also in hex."""
    content = path.read_bytes()
    if b"PRIVATE KEY" in content:
        return [line for line in content.splitlines() if len(line) > 20 and b"-----" not in line]
    return [content.strip(), content.hex().encode()]
