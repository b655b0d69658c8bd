"""The memory of this machine against what a plan's phases need, before anything is spent.

In: a plan, and what this machine has. Out: lines for a person, or EnvironmentFault (E-PLAN-MEMORY).
Guarantees: only public constants of the plan and this machine count, never a cohort.
Not covered: memory of a GPU; other programs that take memory later.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from client.state.config import Limits, SiteCompute
from common.errors import EnvironmentFault
from common.storage.files import read_capped
from common.study.forecast import Phase, phases
from common.study.forecast_words import phase_lines
from common.study.plan import Study

MEMORY_FILE = Path("/proc/meminfo")
MEMORY_FILE_CAP_BYTES = 1 << 16
GIB = 1 << 30


# without any of these files no GPU is there
DRIVERS = ("/dev/nvidiactl", "/dev/nvmap", "/dev/dxg", "/dev/kfd")


def has_gpu_driver() -> bool:
    """Return whether this machine may have a GPU, without asking torch."""
    return any(Path(driver).exists() for driver in DRIVERS)


@dataclass(frozen=True)
class Room:
    """Bytes of memory: all of the machine's, what is free now, and the site's limit (0: none).

    `on_gpu`: the plan may run on GPUs, whose memory is not looked at here. `processes` train
    together, and share the memory.
    """

    total_bytes: int
    free_bytes: int
    limit_bytes: int = 0
    on_gpu: bool = False
    processes: int = 1

    @property
    def largest_bytes(self) -> int:
        """What one child may take at most."""
        if self.limit_bytes:
            return min(self.limit_bytes, self.total_bytes)
        return self.total_bytes


def read_room(limits: Limits, compute: SiteCompute) -> Room:
    """Return the memory of this machine under the site's limit."""
    limit_bytes = int(limits.child_memory_gib * GIB)
    total_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    free_bytes = total_bytes
    if MEMORY_FILE.is_file():
        text = read_capped(MEMORY_FILE, MEMORY_FILE_CAP_BYTES).decode("ascii", "replace")
        free_bytes = _available(text) or total_bytes
    on_gpu = compute.device.startswith("cuda")
    on_gpu |= compute.device == "auto" and has_gpu_driver()
    return Room(total_bytes, free_bytes, limit_bytes, on_gpu, compute.processes or 1)


def check_memory(study: Study, room: Room) -> None:
    """Raise EnvironmentFault (E-PLAN-MEMORY) where a phase of the plan needs more than there is."""
    needs = {phase.name: phase.memory_bytes for phase in phases(study)}
    for name in study.models.trained():
        needs[name] *= room.processes
    too_large = {name: need for name, need in needs.items() if need > room.largest_bytes}
    if room.on_gpu or not too_large:
        return
    needed = ", ".join(f"{name} about {need / GIB:.1f} GiB" for name, need in too_large.items())
    most = max(too_large.values())
    raise EnvironmentFault(
        f"plan {study.name}: {needed}; {_limit_words(room)}; nothing was spent",
        hint=_fix(room, most),
        code="E-PLAN-MEMORY",
    )


def memory_lines(study: Study, room: Room) -> Iterator[str]:
    """Yield memory and time of each phase here, and a warning where too little is free now."""
    found = phases(study)
    yield f"  machine      {_limit_words(room)}, {room.free_bytes / GIB:.1f} GiB free now"
    yield from phase_lines(found)
    tight = _names(found, room.free_bytes)
    if tight:
        yield f"    more than is free now: {tight}; end other programs before these phases"


def _names(found: tuple[Phase, ...], size_bytes: int) -> str:
    """The phases that need more than so many bytes."""
    return ", ".join(phase.name for phase in found if phase.memory_bytes > size_bytes)


def _limit_words(room: Room) -> str:
    """What a child may take, in words."""
    total = f"this machine has {room.total_bytes / GIB:.1f} GiB"
    if room.limit_bytes:
        return f"limits.child_memory_gib is {room.limit_bytes / GIB:g}, {total}"
    return total


def _fix(room: Room, most: int) -> str:
    """What would help."""
    other = "ask the operator for a smaller intake.size_px, width or items_per_patient"
    if most <= room.total_bytes:
        return f"set limits.child_memory_gib to {most / GIB + 0.05:.1f} or more, or {other}"
    return f"take a machine with more than {most / GIB:.1f} GiB, or {other}"


def _available(text: str) -> int:
    """Bytes that programs can take, by the kernel's own account; 0 where it gives none."""
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if name == "MemAvailable" and words and words[0].isdigit():
            return int(words[0]) << 10
    return 0
