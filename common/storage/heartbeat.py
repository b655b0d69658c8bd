"""A sign of life on disk: which process works on a folder, since when, and what it last saw.

In: a folder, and from time to time a beat with facts. Out: the `Life` of whoever works there.
Guarantees: the kernel frees the lock of a process that is dead, so a dead one is never called
running; the file is the old one or the new one; a file that cannot be read is no error.
Not covered: the file after a power cut, since it is not synced; what the facts mean.
"""

from __future__ import annotations

import json
import logging
import math
import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from common.errors import EnvironmentFault, RefusedError, damage_named, disk_faults_named
from common.storage.files import read_capped
from common.storage.lock import FolderLock, is_held
from common.storage.reserve import write_with_reserve

FILE = "heartbeat.json"
LOCK = "heartbeat.lock"
CAP_BYTES = 1 << 20
BEAT_S = 10.0  # how often a running process writes
SILENT_S = 60.0  # without a beat for so long it hangs
STARTING_S = 900.0  # while it starts it may be silent for longer: it reads a cohort, or asks torch
LAST_TIME = 1e11  # a time in seconds that no clock shows

log = logging.getLogger(__name__)

Stage = Literal["starting", "running", "stopped"]
STAGES = ("starting", "running", "stopped")
LifeState = Literal["never", "starting", "running", "hung", "stopped", "died"]


@dataclass(frozen=True)
class Beat:
    """What the file says. `started`, `time`: seconds since 1970. `facts`: the writer's own."""

    pid: int
    started: float
    time: float
    stage: Stage
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Life:
    """Whether a process works on a folder now. Times are None where nothing tells them."""

    state: LifeState
    pid: int = 0
    started: datetime | None = None
    last_beat: datetime | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def alive(self) -> bool:
        """Whether the process is there and gives signs of life."""
        return self.state in ("starting", "running")

    def words(self) -> str:
        """Return the state in words, with the times that tell most."""
        who = f"process {self.pid}, since {spell_time(self.started)}"
        last = spell_time(self.last_beat)
        return {
            "never": "not running: it has never run here",
            "starting": f"starting ({who})",
            "running": f"running ({who})",
            "hung": f"hung ({who}): no sign of life since {last}",
            "stopped": f"not running: stopped on {last}",
            "died": f"not running: it was killed or crashed; its last sign of life is of {last}",
        }[self.state]

    def to_dict(self) -> dict[str, object]:
        """Return state, process and times as JSON; without the facts."""
        return {
            "state": self.state,
            "pid": self.pid or None,
            "since": spell_json(self.started),
            "last_beat": spell_json(self.last_beat),
        }


class Heartbeat:
    """The running process's side; safe in threads. Held from construction until `close`.

    Raises EnvironmentFault (E-LOCKED) where another process beats in this folder.
    """

    def __init__(self, folder: Path, what: str) -> None:
        self._folder = folder
        self._lock = FolderLock(folder / LOCK, what)
        self._writing = threading.Lock()
        self._started = time.time()
        self._written = -math.inf
        self._stage: Stage = "starting"
        before = read_beat(folder)
        self._facts: dict[str, Any] = dict(before.facts) if before else {}

    @property
    def facts(self) -> Mapping[str, Any]:
        """What is written with each beat; at first what the process before left."""
        return self._facts

    def note(self, **facts: Any) -> None:
        """Change facts and write them now, on a full disk with the room of the reserve.

        A disk that takes nothing at all ends no work: the next beat tries again.
        """
        with self._writing:
            self._facts |= facts
            try:
                write_with_reserve(self._folder, self._write)
            except EnvironmentFault as error:
                log.warning("%s was not written: %s", FILE, error.code)

    def note_later(self, **facts: Any) -> None:
        """Change facts, which the next beat writes."""
        with self._writing:
            self._facts |= facts

    def enter(self, stage: Stage) -> None:
        """Write that another stage begins."""
        self._stage = stage
        self.note()

    def beat(self) -> None:
        """Give a sign of life, at most every `BEAT_S`; a full disk gets the time alone."""
        with self._writing:
            if time.monotonic() - self._written < BEAT_S:
                return
            try:
                self._write()
            except EnvironmentFault:
                with suppress(OSError):
                    os.utime(self._folder / FILE)

    def beat_while_starting(self) -> None:
        """Give a sign of life from a long piece of work, but only before the work proper begins."""
        if self._stage == "starting":
            self.beat()

    def close(self) -> None:
        """Write that the process stops by its own will, and give the folder back."""
        try:
            self.enter("stopped")
        finally:
            self._lock.release()

    def _write(self) -> None:
        """Replace the file; not synced."""
        beat = {
            "pid": os.getpid(),
            "started": self._started,
            "time": time.time(),
            "stage": self._stage,
            "facts": self._facts,
        }
        path = self._folder / FILE
        part = self._folder / f".part-{FILE}"
        with disk_faults_named("cannot write", path):
            descriptor = os.open(part, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(json.dumps(beat).encode())
            os.replace(part, path)
        self._written = time.monotonic()


def read_beat(folder: Path) -> Beat | None:
    """Return what was written last; None for no file, or for one that is not a heartbeat."""
    path = folder / FILE
    try:
        text = read_capped(path, CAP_BYTES)
        with damage_named(RefusedError(f"{path}: not a heartbeat")):
            return _parse(json.loads(text))
    except Exception:
        # whatever it is, it is no sign of life
        return None


def _parse(data: Any) -> Beat:
    """The beat in a JSON value; raises for any other shape."""
    beat = Beat(data["pid"], data["started"], data["time"], data["stage"], data["facts"])
    times = (beat.started, beat.time)
    if type(beat.pid) is not int or not 0 < beat.pid < 1 << 31:
        raise ValueError("pid")
    if not all(type(one) in (int, float) and 0 <= one < LAST_TIME for one in times):
        raise ValueError("times")
    if beat.stage not in STAGES or not isinstance(beat.facts, dict):
        raise ValueError("stage")
    return beat


def life_of(folder: Path, now: datetime | None = None) -> Life:
    """Return whether a process works on a folder at the time `now`."""
    moment = (now or datetime.now(UTC)).timestamp()
    beat = read_beat(folder)
    held = is_held(folder / LOCK)
    if beat is None:
        return Life("hung" if held else "never")
    life = Life(_state(beat, held, moment, folder), beat.pid, _utc(beat.started), _utc(beat.time))
    # what a dead one saw is not true any more, but its last words may tell why
    return Life(life.state, life.pid, life.started, life.last_beat, beat.facts)


def _state(beat: Beat, held: bool, now: float, folder: Path) -> LifeState:
    """What a beat means, and a lock."""
    if not held:
        return "stopped" if beat.stage == "stopped" else "died"
    last = beat.time
    try:
        # on a full disk the beat is the file's time alone
        last = max(last, (folder / FILE).stat().st_mtime)
    except OSError:
        return "hung"
    # a clock that jumped is right again with the next beat
    patience = STARTING_S if beat.stage == "starting" else SILENT_S
    if abs(now - last) > patience:
        return "hung"
    return "running" if beat.stage == "running" else "starting"


def _utc(seconds: float) -> datetime:
    """A time of the file."""
    return datetime.fromtimestamp(seconds, UTC)


def spell_time(moment: datetime | None) -> str:
    """Return a time as people here read it: local, with its zone."""
    if moment is None:
        return "an unknown time"
    return moment.astimezone().isoformat(sep=" ", timespec="seconds")


def spell_json(moment: datetime | None) -> str | None:
    """Return a time as ISO 8601 in UTC."""
    return None if moment is None else moment.astimezone(UTC).isoformat(timespec="seconds")
