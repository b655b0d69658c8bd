"""Each phase has its time, and the most memory of whatever runs below this process."""

from __future__ import annotations

import os
import subprocess
import sys

from client.rehearsal.meter import Meter, Phase, duration, memory_below

HOLD = "data = bytearray(64 << 20); data[::4096] = b'x' * len(data[::4096]); input()"


def test_memory_is_that_of_the_processes_below_and_of_theirs() -> None:
    nested = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {HOLD!r}])"
    own = memory_below(os.getpid())
    with subprocess.Popen([sys.executable, "-c", nested], stdin=subprocess.PIPE) as child:
        most = 0
        for _ in range(2000):
            most = max(most, memory_below(os.getpid()))
            if most > own + (64 << 20):
                break
        assert child.stdin is not None
        child.stdin.write(b"\n")
        child.stdin.close()
    assert most > own + (64 << 20)
    assert memory_below(1 << 30) == 0


def test_phases_follow_one_another_and_none_counts_twice() -> None:
    told: list[Phase] = []
    meter = Meter(told.append)
    for name in ("gan round 1 of 1", "gan round 1 of 1", "audit"):
        meter.look(name)
    meter.end()
    meter.end()
    assert (
        [phase.name for phase in told]
        == ["gan round 1 of 1", "audit"]
        == [phase.name for phase in meter.phases]
    )
    assert meter.total.seconds == sum(phase.seconds for phase in told)
    assert Meter(told.append).total == Phase("all phases", 0, 0)


def test_a_phase_is_a_line_for_a_person() -> None:
    assert Phase("audit", 3.2, 3 << 29).line() == "audit: 3 s, 1.5 GiB"
    assert Phase("group", 0.0, 0).line() == "group: 0 s"
    assert (duration(600), duration(7200)) == ("10 min", "2.0 h")
