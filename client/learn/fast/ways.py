"""The exact ways to a convolution's weight gradients, and which is fastest on this machine.

In: the public shapes of one call, and attempts on invented tensors of those shapes.
Out: the name of a way; layers.py computes it.
Guarantees:
  - a way is chosen by timing attempts alone, inside `trials`, and only once a file was named;
    elsewhere a shape that is not known takes the first way
  - one process takes one way for a shape, always; processes that share the file take the same
  - what the file holds for another processor, torch or number of threads is not used; a damaged or
    too large file counts as empty
Not covered: whether the ways agree (backends.py tries the chosen one on invented patients).
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal, get_args

import torch

from common.errors import KohortError
from common.storage.files import atomic_write, read_capped

Way = Literal["products", "one by one", "grouped"]
WAYS: tuple[Way, ...] = get_args(Way)
FILE_CAP_BYTES = 2**20
PROCESSORS_CAP_BYTES = 2**24
ROUNDS = 3  # of each attempt; the fastest counts
HOPELESS = 2.0  # times the fastest: no further round
MARGIN = 1.1  # how many times faster than the first way another one must be: timings tremble
Attempts = Mapping[Way, Callable[[], None]]


class Choices:
    """The way of each shape, in memory and in a file of the machine."""

    def __init__(self) -> None:
        self._chosen: dict[str, Way] = {}
        self._file: Path | None = None
        self._trying = False

    def keep_in(self, file: Path) -> None:
        """Try shapes that are not known from now on, and keep the choices in this file."""
        self._file = file

    @contextlib.contextmanager
    def trials(self) -> Iterator[None]:
        """While active, a shape that is not known is tried. One process of the file at a time."""
        if self._file is None or self._trying:
            yield
            return
        with _lock(self._file):
            self._chosen = _read(self._file) | self._chosen
            known = len(self._chosen)
            self._trying = True
            try:
                yield
            finally:
                self._trying = False
                if len(self._chosen) > known:
                    _write(self._file, self._chosen)

    def of(self, shapes: str, attempts: Callable[[], Attempts]) -> Way:
        """Return the way of a call; `attempts()` is asked for only if the shapes must be tried."""
        if not self._chosen and not self._trying:
            return WAYS[0]
        key = f"{_machine()}; {shapes}"
        if key not in self._chosen and self._trying:
            self._chosen[key] = fastest(attempts())
        return self._chosen.get(key, WAYS[0])


CHOICES = Choices()


def fastest(attempts: Attempts) -> Way:
    """Return the way whose attempt took the least time; the first, unless another clearly won."""
    seconds = dict.fromkeys(attempts, math.inf)
    for _ in range(1 + ROUNDS):  # the first warms up
        for way, attempt in attempts.items():
            # a way that is far behind is not tried again
            if seconds[way] < math.inf and seconds[way] > HOPELESS * min(seconds.values()):
                continue
            start = time.perf_counter()
            attempt()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[way] = min(seconds[way], time.perf_counter() - start)
    first = next(iter(attempts))
    best = min(attempts, key=lambda way: seconds[way])
    return best if seconds[first] > MARGIN * seconds[best] else first


def _machine() -> str:
    """What a choice holds for: processor, instruction set, torch, threads, accelerator."""
    accelerator = ""
    if torch.cuda.is_available():
        accelerator = torch.cuda.get_device_name()
    parts = (_processor(), torch.backends.cpu.get_cpu_capability(), accelerator)
    return "; ".join((*parts, f"torch {torch.__version__}, {torch.get_num_threads()} threads"))


@functools.cache
def _processor() -> str:
    """The processor's family, model, name and stepping, as the kernel says them of the first."""
    try:
        text = read_capped(Path("/proc/cpuinfo"), PROCESSORS_CAP_BYTES).decode()
    except (OSError, KohortError, ValueError):
        return "unknown processor"
    facts = []
    for line in text.partition("\n\n")[0].splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("cpu family", "model", "model name", "stepping"):
            facts.append(value.strip())
    return ", ".join(facts)


@contextlib.contextmanager
def _lock(file: Path) -> Iterator[None]:
    """Hold the file's lock, where its folder can be written."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            handle = stack.enter_context(file.with_name(f"{file.name}.lock").open("a"))
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _read(file: Path) -> dict[str, Way]:
    """The choices in a file; none where it is missing, damaged or too large."""
    try:
        found = json.loads(read_capped(file, FILE_CAP_BYTES))
    except (OSError, KohortError, ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {shapes: way for shapes, way in found.items() if way in WAYS}


def _write(file: Path, chosen: Mapping[str, Way]) -> None:
    """Write the choices, where the folder can be written: without them the next child tries."""
    text = json.dumps(chosen, indent=1, sort_keys=True).encode()
    if len(text) <= FILE_CAP_BYTES:
        with contextlib.suppress(OSError, KohortError):
            atomic_write(file, text, mode=0o600)
