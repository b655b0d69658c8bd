"""Meets every durable point of a scenario: kill there, start again, complete, compare."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tests.faults.disk import Act, Event, Point
from tests.faults.lives import Folders, Life, Log, fail, kill, live, suspend

FULL = {"E-DISK-FULL"}


class Scenario(Protocol):
    """What a scenario is: how it begins, one life, and what must hold at the end."""

    name: str
    side: str
    watched: Sequence[str]

    def prepare(self, folders: Folders) -> None: ...
    def play_before(self, home: Path, log: Log) -> None: ...
    def play(self, home: Path, log: Log) -> None: ...
    def faults(self, folders: Folders) -> list[str]: ...


@dataclass(frozen=True)
class Outcome:
    """What came of one fault at one point. `wrong`: "" where it is allowed."""

    fault: str
    scenario: str
    point: str
    result: str
    wrong: str = ""


class Stage:
    """A scenario with its folders: every run begins from the same disk."""

    def __init__(self, scenario: Scenario, folder: Path) -> None:
        self.scenario = scenario
        self.folders = Folders(folder / "home", scenario.watched)
        self._copy = folder / "copy"
        self.folders.home.mkdir(parents=True)
        scenario.prepare(self.folders)
        before = live(scenario.play_before, self.folders)
        assert before.end == "complete", (scenario.name, before)
        shutil.copytree(self.folders.home, self._copy)
        self._log = self.folders.log.path.read_bytes() if self.folders.log.path.exists() else b""
        self.whole = self.run()
        assert self.whole.end == "complete", (scenario.name, self.whole.end, self.whole.code)
        assert not scenario.faults(self.folders), scenario.faults(self.folders)

    def reset(self) -> None:
        """Put the disk back as it was before the first event."""
        shutil.rmtree(self.folders.home)
        shutil.copytree(self._copy, self.folders.home)
        self.folders.log.path.write_bytes(self._log)

    def run(self, point: Point | None = None) -> Life:
        """Return how a life ended from the first disk on."""
        self.reset()
        return live(self.scenario.play, self.folders, point)

    def again(self) -> Life:
        """Return how the next life ended, over the disk that the last one left."""
        return live(self.scenario.play, self.folders)

    def judge(self, fault: str, point: str, first: str, wrong: str = "") -> Outcome:
        """Complete after a fault, and return what came of it."""
        second = self.again()
        if second.end != "complete":
            wrong = wrong or f"afterwards {second.end}: {second.code}"
        else:
            wrong = wrong or "; ".join(self.scenario.faults(self.folders))
        result = f"{first}, then complete" if first else "complete"
        return Outcome(fault, self.scenario.name, point, wrong or result, wrong)


def kills(stage: Stage, stride: int = 1) -> Iterator[Outcome]:
    """Kill before and after each event, and yield what came of it."""
    for event in stage.whole.events:
        for number, when in enumerate(("before", "after")):
            if (2 * event.number + number) % stride:
                continue
            life = stage.run(Point(event.number, when, kill))
            wrong = "" if life.end == "killed" else f"not met: {life.end} {life.code}"
            yield stage.judge("kill -9", f"{when} {event.number} {event}", "", wrong)


DISKS = {"full disk": errno.ENOSPC, "read-only disk": errno.EROFS}


def disks(stage: Stage, stride: int = 1) -> Iterator[Outcome]:
    """Let the disk be full, or read-only, from each event on, until the next start."""
    for fault, number in DISKS.items():
        for event in stage.whole.events[::stride]:
            life = stage.run(Point(event.number, "before", fail(number), on=True))
            wrong = ""
            if life.end not in ("refused", "complete"):
                wrong = f"{life.end} {life.code}"
            elif life.end == "refused" and number == errno.ENOSPC and life.code not in FULL:
                wrong = f"refused with {life.code}"
            first = f"refused {life.code}" if life.end == "refused" else ""
            yield stage.judge(fault, f"from {event.number} {event}", first, wrong)


def suspensions(stage: Stage, stride: int = 1) -> Iterator[Outcome]:
    """Stop the process at each event and wake it again."""
    for event in stage.whole.events[::stride]:
        life = stage.run(Point(event.number, "before", suspend))
        wrong = "" if life.end == "complete" else f"{life.end} {life.code}"
        yield stage.judge("suspended", f"before {event.number} {event}", "", wrong)


__all__ = ["Act", "Event", "Outcome", "Scenario", "Stage", "disks", "kills", "suspensions"]
