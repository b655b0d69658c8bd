"""Processes that live and die over one folder: forked from this one, which has everything loaded.

In: what a process does (`play`), the folder, what happens to it at which point.
Out: how its life ended, the events that it saw, and a log that it wrote beside the folder.
Guarantees: a killed process runs nothing after the point: no handler, no buffer, no lock outlives
it, as after `kill -9`.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sqlite3
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.errors import Bug, KohortError
from tests.faults import clocks
from tests.faults.disk import REMOVES, Act, Disk, Event, Point

KILLED, RAISED, BROKEN = 86, 87, 88
LIMIT_S = 120.0
SQLITE = {
    errno.ENOSPC: ("database or disk is full", sqlite3.SQLITE_FULL, "SQLITE_FULL"),
    errno.EROFS: (
        "attempt to write a readonly database",
        sqlite3.SQLITE_READONLY,
        "SQLITE_READONLY",
    ),
}


@dataclass
class Log:
    """What processes tell their test, one JSON object a line: it survives their death."""

    path: Path

    def note(self, kind: str, **facts: Any) -> None:
        """Append one line, at once."""
        line = json.dumps({"kind": kind, **facts}) + "\n"
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, line.encode())
        os.close(descriptor)

    def read(self, kind: str = "") -> list[dict[str, Any]]:
        """Return the lines of a kind, oldest first."""
        if not self.path.exists():
            return []
        found = [json.loads(line) for line in self.path.read_text().splitlines()]
        return [entry for entry in found if kind in ("", entry["kind"])]


@dataclass(frozen=True)
class Life:
    """How a process ended: `complete`, `killed`, `refused` with a code, `broken` or `hung`."""

    end: str
    code: str = ""
    events: tuple[Event, ...] = ()
    unsynced: tuple[str, ...] = ()


@dataclass
class Folders:
    """Where processes live: the folders that are watched, and the log beside them."""

    home: Path
    watched: Sequence[str] = ("state",)
    log: Log = field(init=False)

    def __post_init__(self) -> None:
        self.log = Log(self.home.parent / f"{self.home.name}.log")

    @property
    def report(self) -> Path:
        """What the last process wrote at its end."""
        return self.home.parent / f"{self.home.name}.report"


Play = Callable[[Path, Log], None]
Surround = Callable[[ExitStack], None]


def live(
    play: Play, folders: Folders, point: Point | None = None, around: Surround | None = None
) -> Life:
    """Return how a process ended that did `play`; `around` prepares its world."""
    folders.report.unlink(missing_ok=True)
    with warnings.catch_warnings():
        # no other thread of a test holds a lock that the child needs
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        _be_born(play, folders, point, around)
    status = wait_for(pid)
    if status is None:
        return Life("hung")
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) == KILLED:
        return Life("killed")
    if not folders.report.exists():
        return Life("broken", f"status {status}")
    found = json.loads(folders.report.read_text())
    events = tuple(Event(*event) for event in found["events"])
    return Life(found["end"], found["code"], events, tuple(found["unsynced"]))


def wait_for(pid: int) -> int | None:
    """Return the status of a process; None for one that had to be ended."""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        found, status = os.waitpid(pid, os.WNOHANG | os.WUNTRACED)
        if found and os.WIFSTOPPED(status):
            os.kill(pid, signal.SIGCONT)
        elif found:
            return status
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def _be_born(play: Play, folders: Folders, point: Point | None, around: Surround | None) -> None:
    """The whole life of the forked process."""
    end, code = "broken", ""
    # the threads of the parent's pool are not here: whoever waits for them waits for ever
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    disk = Disk([folders.home / name for name in folders.watched], point)
    try:
        stack = ExitStack()
        if around is not None:
            around(stack)
        disk.install(stack)
        play(folders.home, folders.log)
        end = "complete"
    except Bug as error:
        code = f"Bug: {error}"
    except KohortError as error:
        end, code = "refused", error.code
    except BaseException as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        code = f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}: {error}"
        if os.environ.get("FAULTS_TRACE"):
            traceback.print_exc()
    finally:
        facts = {
            "end": end,
            "code": code,
            "events": [(event.number, event.kind, event.name) for event in disk.events],
            "unsynced": [*disk.unsynced, *never_synced(disk)],
        }
        folders.report.write_text(json.dumps(facts))
        os._exit(0)


def never_synced(disk: Disk) -> list[str]:
    """Return the files that a power cut may empty although the work is done."""
    return [str(disk.name_of(str(path))) for path in disk.dirty()]


# --- what can happen at a point -----------------------------------------------------------------


def kill(event: Event, when: str) -> None:
    """End the process: nothing of it runs after this."""
    os._exit(KILLED)


def suspend(event: Event, when: str) -> None:
    """Stop the process until somebody wakes it: six minutes have gone then."""
    os.kill(os.getpid(), signal.SIGSTOP)
    clocks.now.monotonic_s += clocks.SUSPENDED_S
    clocks.now.wall_s += clocks.SUSPENDED_S


def cut_power(event: Event, when: str) -> None:
    """End the process, and lose the bytes that were written and not synced."""
    assert Disk.installed is not None
    for path in Disk.installed.dirty():
        os.truncate(path, 0)
    os._exit(KILLED)


def fail(number: int, times: int = 1 << 30) -> Act:
    """The disk is full, or may only be read, from here on; it heals after so many failures."""
    left = [times]

    def act(event: Event, when: str) -> None:
        if not left[0]:
            return
        if event.kind == "checkpoint" or (number == errno.ENOSPC and event.kind in REMOVES):
            return
        left[0] -= 1
        if event.kind == "commit":
            text, code, name = SQLITE[number]
            error = sqlite3.OperationalError(text)
            error.sqlite_errorcode = code
            error.sqlite_errorname = name
            raise error
        raise OSError(number, os.strerror(number), event.name)

    return act
