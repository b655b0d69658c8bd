"""Time and memory of each phase of a rehearsal, as they pass.

In: the name of the phase that is at work now, many times a second. Out: a `Phase` for each.
Guarantees: memory is that of all processes below this one, by the kernel's own account.
Not covered: a peak between two looks; memory of a GPU.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

PROCESSES = Path("/proc")
CHILDREN_CAP_BYTES = 1 << 16
GIB = 1 << 30


@dataclass(frozen=True)
class Phase:
    """A phase that is over. `memory_bytes`: the most that was seen; 0 where nothing was."""

    name: str
    seconds: float
    memory_bytes: int

    def line(self) -> str:
        """Return the phase as a person reads it."""
        text = f"{self.name}: {duration(self.seconds)}"
        if self.memory_bytes:
            text += f", {self.memory_bytes / GIB:.1f} GiB"
        return text


@dataclass
class Meter:
    """Tells each phase once it is over."""

    tell: Callable[[Phase], None]
    phases: list[Phase] = field(default_factory=list)
    _name: str = ""
    _began: float = 0.0
    _most: int = 0

    def look(self, name: str) -> None:
        """Note that this phase is at work now."""
        if name != self._name:
            self.end()
            self._name = name
            self._began = time.monotonic()
            self._most = 0
        self._most = max(self._most, memory_below(os.getpid()))

    def end(self) -> None:
        """Note that the phase at work is over."""
        if self._name:
            self.phases.append(Phase(self._name, time.monotonic() - self._began, self._most))
            self.tell(self.phases[-1])
        self._name = ""

    @property
    def total(self) -> Phase:
        """All phases together: the time of all, the most memory of any."""
        seconds = sum(phase.seconds for phase in self.phases)
        most = max((phase.memory_bytes for phase in self.phases), default=0)
        return Phase("all phases", seconds, most)


def memory_below(process: int) -> int:
    """Return the resident bytes of every process below one; 0 where the kernel does not tell."""
    return sum(_resident_bytes(child) for child in _below(process))


def _below(process: int) -> Iterator[int]:
    """The processes that a process started, and those that they started."""
    for task in _list(PROCESSES / str(process) / "task"):
        for child in _words(task / "children"):
            yield int(child)
            yield from _below(int(child))


def _resident_bytes(process: int) -> int:
    """What a process holds in memory now; 0 for one that has ended."""
    words = _words(PROCESSES / str(process) / "statm")
    if len(words) < 2:
        return 0
    return int(words[1]) * os.sysconf("SC_PAGE_SIZE")


def _list(folder: Path) -> list[Path]:
    """What is in a folder of the kernel's, which may go at any time."""
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _words(file: Path) -> list[str]:
    """The numbers in a file of the kernel's, which may go at any time."""
    try:
        with file.open("rb") as stream:
            text = stream.read(CHILDREN_CAP_BYTES)
    except OSError:
        return []
    return [word for word in text.decode("ascii", "replace").split() if word.isdigit()]


def duration(seconds: float) -> str:
    """Return a time in words."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
