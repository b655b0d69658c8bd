"""Gives one parser many inputs and notes what should not happen.

In: a `Target`, a number of inputs, a seed. Out: an `Outcome` with the faults and their inputs.
A fault is: an exception that is not one of ours, a `Bug`, more than 2 s, more memory than the cap.
"""

from __future__ import annotations

import logging
import os
import resource
import signal
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from common.errors import Bug, KohortError
from tests.fuzz.mutation import INPUT_CAP, Maker

HANG_S = 2.0
ALARM_S = 12.0  # ends a call that another process may have slowed down
FAULTS_KEPT = 20
PAGE = resource.getpagesize()


class Hang(BaseException):
    """The alarm rang inside a parser."""


@dataclass(frozen=True)
class Parser:
    """One parser at work: what it is called with, how inputs are made, what else it may raise.

    `good`: an input that is as it should be, where few made ones are.
    """

    call: Callable[[bytes], object]
    makers: Sequence[Maker]
    allowed: tuple[type[BaseException], ...] = ()
    good: bytes | None = None


@dataclass(frozen=True)
class Target:
    """A parser of outside bytes.

    `reads`: the product's functions that it covers, as module:function. `build`: sets it up in an
    empty folder. `memory_mib`: what one call may take. `few`: inputs in the normal suite.
    """

    name: str
    reads: tuple[str, ...]
    build: Callable[[Path], Parser]
    memory_mib: int = 64
    few: int = 1500


@dataclass(frozen=True)
class Fault:
    """An input that a parser did not stand, and what happened."""

    data: bytes
    what: str


@dataclass
class Outcome:
    """What was seen: `slowest_s` of one call, `grown_mib` of the process since the start."""

    inputs: int = 0
    returned: int = 0
    seconds: float = 0.0
    slowest_s: float = 0.0
    grown_mib: float = 0.0
    faults: list[Fault] = field(default_factory=list)


def run(
    target: Target,
    parser: Parser,
    inputs: int,
    seed: str,
    *,
    seconds: float = float("inf"),
    note: Callable[[bytes], None] = lambda data: None,
) -> Outcome:
    """Return what happened to so many inputs, or to those that fit into `seconds`.

    `note` gets each input before its call: it survives a process that a codec ends.
    """
    rng = Random(f"{target.name} {seed}")
    outcome = Outcome()
    began = time.monotonic()
    peak = _peak_mib()
    with _guarded(target.memory_mib):
        if parser.good is not None:
            _count(outcome, parser, parser.good)
        while outcome.inputs < inputs:
            maker = parser.makers[int(rng.random() * len(parser.makers))]
            data = maker(rng)[:INPUT_CAP]
            note(data)
            _count(outcome, parser, data)
            if len(outcome.faults) >= FAULTS_KEPT or time.monotonic() - began > seconds:
                break
    outcome.seconds = time.monotonic() - began
    outcome.grown_mib = _peak_mib() - peak
    return outcome


def replay(target: Target, parser: Parser, data: bytes) -> Fault | None:
    """Return the fault of one input, or None."""
    with _guarded(target.memory_mib):
        return _try(parser, data, Outcome())


def _count(outcome: Outcome, parser: Parser, data: bytes) -> None:
    """One input more; each kind of fault is kept once."""
    outcome.inputs += 1
    fault = _try(parser, data, outcome)
    if fault is not None and fault.what not in {known.what for known in outcome.faults}:
        outcome.faults.append(fault)


def _try(parser: Parser, data: bytes, outcome: Outcome) -> Fault | None:
    """The fault of one call; one that was slow is tried again, because the machine is shared."""
    what, took_s = _call(parser, data, outcome)
    if not what and took_s > HANG_S:
        what, took_s = _call(parser, data, outcome)
    outcome.slowest_s = max(outcome.slowest_s, took_s)
    if not what and took_s > HANG_S:
        what = "slower than 2 s"
    return Fault(data, what) if what else None


def _call(parser: Parser, data: bytes, outcome: Outcome) -> tuple[str, float]:
    """What is wrong with one call ("" if nothing), and its seconds."""
    what = ""
    began = time.perf_counter()
    signal.setitimer(signal.ITIMER_REAL, ALARM_S)
    try:
        parser.call(data)
        outcome.returned += 1
    except Bug as error:
        what = _place(error)
    except (KohortError, *parser.allowed):
        pass
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        what = _place(error)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return what, time.perf_counter() - began


def _place(error: BaseException) -> str:
    """An exception's type and the last lines of ours that it passed."""
    ours = []
    for frame in traceback.extract_tb(error.__traceback__):
        if "/tests/fuzz/" not in frame.filename and "/lib/" not in frame.filename:
            ours.append(f"{'/'.join(Path(frame.filename).parts[-2:])}:{frame.lineno}")
    return f"{type(error).__name__} {' '.join(ours[-2:])}"


@contextmanager
def memory_folder() -> Iterator[Path]:
    """An empty folder, in memory where there is one: most parsers read a file."""
    shared = Path("/dev/shm")
    parent = shared if os.access(shared, os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=parent, prefix="kohort-fuzz-") as name:
        yield Path(name)


@contextmanager
def _guarded(memory_mib: int) -> Iterator[None]:
    """The alarm, the memory limit above what is in use now, no warnings and no log."""

    def ring(*_: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_in_use() + (memory_mib << 20), limits[1]))
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.signal(signal.SIGALRM, before)


def _in_use() -> int:
    """The address space of this process, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * PAGE


def _peak_mib() -> float:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
