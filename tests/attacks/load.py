"""Memory of the server, and honest rounds, while one laptop sends what it can.

In: a running server whose study has many rounds. Out: figures, and a row for each kind of load.
Held means: the SuperLink stays within 100 MB of its idle memory, and rounds of three honest sites
go on closing.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.attacks.certificates import Caller
from tests.attacks.rows import Row
from tests.attacks.server import Target, running_server

GROWTH_MB = 100.0
SAMPLE_S = 0.1
SUPERLINK = "server.flower.link_process"
FRONT = "server.front.process"
NGINX = "nginx"
PLAN = {"models__gan__rounds": 400, "models__gan__noise_multiplier": 200.0}
WARM_ROUNDS = 5
WAIT_S = 300.0


@dataclass(frozen=True)
class Size:
    """How much is sent."""

    bodies: int
    half_open: int
    half_open_s: float
    refused_s: float
    threads: int = 4


LONG = Size(bodies=12, half_open=5_000, half_open_s=30.0, refused_s=60.0)
SHORT = Size(bodies=2, half_open=300, half_open_s=2.0, refused_s=2.0, threads=2)


@dataclass
class Figures:
    """What one kind of load did. Memory in MB: idle, and the largest during the load."""

    front: str
    load: str
    superlink_idle_mb: float
    superlink_peak_mb: float
    front_idle_mb: float
    front_peak_mb: float
    rounds_closed: int
    longest_round_s: float
    seconds: float
    answers: dict[str, int] = field(default_factory=dict)

    @property
    def held(self) -> bool:
        """Whether memory stayed within its bound, and honest rounds closed."""
        grown = self.superlink_peak_mb - self.superlink_idle_mb
        return grown <= GROWTH_MB and self.rounds_closed > 0

    def row(self) -> Row:
        """The row of the table."""
        outcome = (
            f"SuperLink {self.superlink_idle_mb:.0f} → {self.superlink_peak_mb:.0f} MB, front "
            f"{self.front_idle_mb:.0f} → {self.front_peak_mb:.0f} MB; {self.rounds_closed} rounds "
            f"closed, the longest took {self.longest_round_s:.1f} s"
        )
        count = sum(value for name, value in self.answers.items() if name != "mebibytes")
        return Row("one laptop", self.load, self.front, outcome, self.held, max(1, count))


class Watch:
    """Samples memory and the closing of rounds while it is open."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self.peaks = {SUPERLINK: 0.0, FRONT: 0.0}
        self.closed_at: list[float] = []

    def __enter__(self) -> Watch:
        self._done = self._target.rounds()
        self.began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.ended = time.monotonic()

    def _sample(self) -> None:
        """Look until stopped."""
        while not self._stop.wait(SAMPLE_S):
            for name, value in memory(self._target).items():
                self.peaks[name] = max(self.peaks[name], value)
            done = self._target.rounds()
            self.closed_at += [time.monotonic()] * (done - self._done)
            self._done = done

    def longest_s(self) -> float:
        """The longest time between two rounds, ends included."""
        times = [self.began, *self.closed_at, self.ended]
        return max(later - earlier for earlier, later in itertools.pairwise(times))


def memory(target: Target) -> dict[str, float]:
    """Resident memory of the SuperLink and of the front, which may be nginx and the process."""
    front = target.memory_mb(FRONT)
    if target.front == NGINX:
        front += target.memory_mb("nginx: ")
    return {SUPERLINK: target.memory_mb(SUPERLINK), FRONT: front}


def loads(target: Target, size: Size) -> Iterator[tuple[str, list[list[str]]]]:
    """Yield each kind of load: its name, and the commands that make it together."""
    # what is measured here has to be compared with nothing
    yield (
        "nothing",
        [[sys.executable, "-c", f"import time; time.sleep({size.half_open_s}); print({{}})"]],
    )
    member = next(caller for caller in target.callers if caller.member)
    nobody = next(caller for caller in target.callers if caller.name == "the CA file")
    revoked = next(caller for caller in target.callers if caller.name == "a revoked certificate")
    for caller in (nobody, member):
        count = ("--count", str(size.bodies), "--threads", "2")
        yield (
            f"{2 * size.bodies} bodies of 1 GiB with {caller.name}",
            [flood(target, caller, "bodies", *count)],
        )
    few = ("--count", str(size.half_open), "--seconds", str(size.half_open_s))
    yield (
        f"{size.half_open} half-open connections",
        [flood(target, member, "half-open", *few)],
    )
    for caller in (nobody, revoked, member):
        all_out = ("--threads", str(size.threads), "--seconds", str(size.refused_s))
        yield (
            f"refused requests of {size.threads} threads for {size.refused_s:g} s with "
            f"{caller.name}",
            [flood(target, caller, "refused", *all_out)],
        )


def flood(target: Target, caller: Caller, kind: str, *more: str) -> list[str]:
    """The command of one laptop."""
    command = [sys.executable, "-m", "tests.attacks.flood", kind, "--port", str(target.port)]
    command += ["--ca", str(target.ca), *more]
    if caller.certificate is not None:
        command += ["--certificate", str(caller.certificate), "--private", str(caller.key)]
    return [*command, "--header", caller.header]


def measure(target: Target, name: str, commands: list[list[str]]) -> Figures:
    """Send one kind of load and return what it did."""
    idle = memory(target)
    began = time.monotonic()
    with Watch(target) as watch:
        senders = [
            subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands
        ]
        answers: Counter[str] = Counter()
        for sender in senders:
            answers.update(json.loads(sender.communicate()[0]))
        # a load that was over in no time has to leave time for a round
        target.wait(lambda: watch.closed_at, WAIT_S)
    return Figures(
        front=target.front,
        load=name,
        superlink_idle_mb=round(idle[SUPERLINK], 1),
        superlink_peak_mb=round(watch.peaks[SUPERLINK], 1),
        front_idle_mb=round(idle[FRONT], 1),
        front_peak_mb=round(watch.peaks[FRONT], 1),
        rounds_closed=len(watch.closed_at),
        longest_round_s=round(watch.longest_s(), 2),
        seconds=round(time.monotonic() - began, 1),
        answers=dict(answers),
    )


def run(front: str, size: Size) -> list[Figures]:
    """Start a server, let it get going, and send everything; returns the figures."""
    with running_server(front, round_deadline_s=3600.0, **PLAN) as target:
        target.gate.set()
        target.wait(lambda: target.rounds() >= WARM_ROUNDS)
        return [measure(target, name, commands) for name, commands in loads(target, size)]
