"""Meets every point of a scenario with every fault, starts again, completes, compares.

In: a `Stage`: a scenario with its folders and its events. Out: one `Outcome` a fault and point.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from tests.faults import clocks
from tests.faults.disk import Event, Point
from tests.faults.lives import Folders, Life, Log, cut_power, fail, kill, live, suspend

# how a disk that fails may be answered: with the code that says so
ALLOWED = {"full disk": {"E-DISK-FULL"}, "read-only disk": {"E-ENVIRONMENT"}}
DISKS = {"full disk": errno.ENOSPC, "read-only disk": errno.EROFS}
# how a state that is damaged or old may be refused; a journal that is gone knows of no approval
DAMAGED = {"E-ROLLBACK", "E-LEDGER", "E-PEOPLE", "E-ENVIRONMENT", "E-REFUSED", "E-WEIGHTS-LOST"}
DAMAGED |= {"E-PLAN-UNAPPROVED"}
TRIES = 20  # lives until a point is met that the order of threads may hide
CUTS = ("empty", "a quarter", "half", "a page less", "a byte less")


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
        assert before.end == "complete", (scenario.name, before.end, before.code)
        shutil.copytree(self.folders.home, self._copy)
        self._log = self.folders.log.path.read_bytes() if self.folders.log.path.exists() else b""
        self.whole = self.run()
        assert self.whole.end == "complete", (scenario.name, self.whole.end, self.whole.code)
        found = scenario.faults(self.folders)
        assert not found, (scenario.name, found)

    def reset(self) -> None:
        """Put the disk back as it was before the first event."""
        shutil.rmtree(self.folders.home)
        shutil.copytree(self._copy, self.folders.home)
        self.folders.log.path.write_bytes(self._log)

    def put_back(self, part: str) -> None:
        """Restore the state, or one part of it, from before the first event."""
        root = self.folders.home / self.folders.watched[0]
        source = self._copy / self.folders.watched[0]
        if part == "all":
            shutil.rmtree(root)
            shutil.copytree(source, root)
        elif (root / part).is_dir():
            shutil.rmtree(root / part)
            if (source / part).is_dir():
                shutil.copytree(source / part, root / part)
        else:
            for suffix in ("", "-wal", "-shm", "-journal"):
                (root / (part + suffix)).unlink(missing_ok=True)
                if (source / (part + suffix)).is_file():
                    shutil.copyfile(source / (part + suffix), root / (part + suffix))

    def run(
        self, point: Point | None = None, around: Callable[[ExitStack], None] | None = None
    ) -> Life:
        """Return how a life ended from the first disk on."""
        self.reset()
        return live(self.scenario.play, self.folders, point, around)

    def again(self) -> Life:
        """Return how the next life ended, over the disk that the last one left."""
        return live(self.scenario.play, self.folders)

    def judge(self, fault: str, point: str, first: str = "", wrong: str = "") -> Outcome:
        """Complete after a fault, and return what came of it."""
        second = self.again()
        if second.end != "complete":
            wrong = wrong or f"afterwards {second.end}: {second.code}"
        else:
            wrong = wrong or "; ".join(self.scenario.faults(self.folders))
        result = f"{first}, then complete" if first else "complete"
        return Outcome(fault, self.scenario.name, point, wrong or result, wrong)


def kills(stage: Stage, stride: int = 1, first: int = 0) -> Iterator[Outcome]:
    """Kill before and after each event, and yield what came of it."""
    points = [(event, when) for event in stage.whole.events for when in ("before", "after")]
    for event, when in points[first::stride]:
        life = meet(stage, Point(event.number, when, kill))
        wrong = "" if life.end == "killed" else f"not met: {life.end} {life.code}"
        yield stage.judge("kill -9", f"{when} {name(event)}", "", wrong)


def meet(stage: Stage, point: Point) -> Life:
    """Return the life that met a point.

    Threads of one life write in their own order: a run can have fewer events than the first one, or
    end in time. It is begun again some times.
    """
    life = stage.run(point)
    for _ in range(TRIES):
        if life.end != "complete":
            break
        life = stage.run(point)
    return life


def power_cuts(stage: Stage, stride: int = 1, first: int = 0) -> Iterator[Outcome]:
    """Lose what was written and not synced, at each event that makes bytes or names durable."""
    kinds = ("close", "fsync", "replace", "rename")
    events = [event for event in stage.whole.events if event.kind in kinds]
    for event in events[first::stride]:
        life = meet(stage, Point(event.number, "before", cut_power))
        wrong = "" if life.end == "killed" else f"not met: {life.end} {life.code}"
        yield stage.judge("power cut", f"before {name(event)}", "", wrong)


def disks(stage: Stage, stride: int = 1, first: int = 0) -> Iterator[Outcome]:
    """Let the disk be full, or read-only, from each event on, until the next start.

    A scenario whose program lives on gets its disk back after some failures.
    """
    heals = getattr(stage.scenario, "heals_after", 1 << 30)
    for fault, number in DISKS.items():
        for event in stage.whole.events[first::stride]:
            life = stage.run(Point(event.number, "before", fail(number, heals), on=True))
            wrong = "" if life.end in ("refused", "complete") else f"{life.end} {life.code}"
            if life.end == "refused" and life.code not in ALLOWED[fault]:
                wrong = f"refused with {life.code}"
            first_end = f"refused {life.code}" if life.end == "refused" else ""
            yield stage.judge(fault, f"from {name(event)}", first_end, wrong)


def suspensions(stage: Stage, stride: int = 1, first: int = 0) -> Iterator[Outcome]:
    """Stop the process at each event, and let it wake six minutes later."""
    for event in stage.whole.events[first::stride]:
        point = Point(event.number, "before", suspend)
        life = stage.run(point, clocks.install)
        wrong = "" if life.end == "complete" else f"{life.end} {life.code}"
        yield stage.judge("suspended", f"before {name(event)}", "", wrong)


def clock_jumps(stage: Stage, stride: int = 1, first: int = 0) -> Iterator[Outcome]:
    """Let the clock jump at each event, until the next start."""
    for jump, to in clocks.JUMPS.items():
        for event in stage.whole.events[first::stride]:
            life = stage.run(Point(event.number, "before", to), clocks.install)
            allowed = life.end == "complete" or (life.end, life.code) == ("refused", "E-CONFIG")
            wrong = "" if allowed else f"{life.end} {life.code}"
            first_end = f"refused {life.code}" if life.end == "refused" else ""
            yield stage.judge(f"clock {jump}", f"before {name(event)}", first_end, wrong)


def torn_tails(stage: Stage, stride: int = 1, first: int = 0) -> Iterator[Outcome]:
    """Cut each file of the finished state at several places, alone."""
    stage.run()
    names = sorted(part_names(stage.folders))
    places = [(path, cut) for path in names for cut in CUTS]
    for path, cut in places[first::stride]:
        stage.run()
        torn = stage.folders.home / path
        if torn.stat().st_size:
            os.truncate(torn, kept_bytes(torn.stat().st_size, cut))
        yield refuse_or_complete(stage, "torn tail", f"{plain(path)}: {cut}")


def restores(stage: Stage, stride: int = 1, first: int = 0) -> Iterator[Outcome]:
    """Put the whole state, or one part of it, back as it was before this life.

    What a scenario leaves open, as the threat model says, is met and stands in the table as open.
    """
    left_open = getattr(stage.scenario, "left_open", ())
    stage.run()
    parts = ["all", *sorted(databases(stage.folders))]
    for part in parts[first::stride]:
        stage.run()
        stage.put_back(part)
        outcome = refuse_or_complete(stage, "restored backup", part)
        if part in left_open and outcome.wrong:
            outcome = replace(outcome, result="open, as the threat model says", wrong="")
        yield outcome


def refuse_or_complete(stage: Stage, fault: str, point: str) -> Outcome:
    """Start over a damaged state: it is refused by a code and computes nothing, or it completes."""
    log = stage.folders.log
    before = len(log.read("ran")) + len(log.read("spent"))
    life = stage.again()
    wrong = ""
    if life.end == "refused" and life.code in DAMAGED:
        if len(log.read("ran")) + len(log.read("spent")) > before:
            wrong = f"computed, then refused {life.code}"
    elif life.end == "complete":
        wrong = "; ".join(stage.scenario.faults(stage.folders))
    else:
        wrong = f"{life.end} {life.code}"
    result = "complete" if life.end == "complete" else f"refused {life.code}"
    return Outcome(fault, stage.scenario.name, point, wrong or result, wrong)


def name(event: Event) -> str:
    """Return an event as the table names it."""
    return f"{event.number} {event}"


def plain(path: str) -> str:
    """Return a path without digests."""
    from tests.faults.disk import RANDOM

    for pattern, text in RANDOM:
        path = pattern.sub(text, path)
    return path


def part_names(folders: Folders) -> list[str]:
    """Return the files whose tails are torn: databases, messages, reviews, weights, canaries."""
    found = []
    for watched in folders.watched:
        for path in (folders.home / watched).rglob("*"):
            inside = path.suffix in (".sqlite", ".sealed", ".safetensors") or "-wal" in path.name
            if path.is_file() and inside:
                found.append(path.relative_to(folders.home).as_posix())
    return found


def databases(folders: Folders) -> list[str]:
    """Return the databases and the outbox of a state."""
    root = folders.home / folders.watched[0]
    found = [path.name for path in root.glob("*.sqlite")]
    return [*found, "outbox"] if (root / "outbox").is_dir() else found


def kept_bytes(size: int, cut: str) -> int:
    """Return how many bytes of a file stay."""
    kept = {
        "empty": 0,
        "a quarter": size // 4,
        "half": size // 2,
        "a page less": max(0, size - 4096),
        "a byte less": size - 1,
    }
    return kept[cut]


FAULTS: dict[str, Callable[[Stage, int, int], Iterator[Outcome]]] = {
    "kill -9": kills,
    "power cut": power_cuts,
    "disk": disks,
    "suspended": suspensions,
    "clock": clock_jumps,
    "torn tail": torn_tails,
    "restored backup": restores,
}
