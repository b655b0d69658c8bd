"""A process that fuzzes one target, and what its parent learns of it.

Guarantees: a process that a codec ends, or that hangs, is a fault of its last input.
"""

from __future__ import annotations

import mmap
import multiprocessing
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.fuzz import harness
from tests.fuzz.harness import Target
from tests.fuzz.mutation import INPUT_CAP
from tests.fuzz.targets import TARGETS

STUCK_S = 60.0


def start(
    target: Target, share: int, seed: str, seconds: float, folder: Path, number: int
) -> tuple[Any, Connection, Path]:
    """A process at work, the pipe of its outcome, the file of its current input."""
    context = multiprocessing.get_context("fork")
    mine, theirs = context.Pipe(duplex=False)
    current = folder / f"current-{number}"
    current.write_bytes(bytes(8 + INPUT_CAP))
    place = folder / str(number)
    place.mkdir()
    arguments = (target.name, share, seed, seconds, str(place), str(current), theirs)
    process = context.Process(target=work, args=arguments)
    process.start()
    theirs.close()
    return process, mine, current


def work(
    name: str, share: int, seed: str, seconds: float, folder: str, current: str, pipe: Connection
) -> None:
    """The process: its outcome goes through the pipe."""
    target = TARGETS[name]
    parser = target.build(Path(folder))
    with open(current, "r+b") as file, mmap.mmap(file.fileno(), 0) as shared:

        def note(data: bytes) -> None:
            shared[:8] = len(data).to_bytes(8, "little")
            shared[8 : 8 + len(data)] = data

        outcome = harness.run(target, parser, share, seed, seconds=seconds, note=note)
    pipe.send(outcome)


def wait(process: Any, pipe: Connection, current: Path) -> harness.Outcome:
    """The outcome; of a process that ended without one, its last input as a fault."""
    last = b""
    while not pipe.poll(STUCK_S):
        now = current.read_bytes()
        if now == last or not process.is_alive():
            break
        last = now
    if pipe.poll():
        try:
            outcome: harness.Outcome = pipe.recv()
            process.join()
            return outcome
        except EOFError:
            pass
    process.kill()
    process.join()
    shared = current.read_bytes()
    data = shared[8 : 8 + int.from_bytes(shared[:8], "little")]
    return harness.Outcome(
        inputs=1, faults=[harness.Fault(data, f"the process ended with {process.exitcode}")]
    )
