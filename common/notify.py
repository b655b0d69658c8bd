"""Tells systemd that this process is ready, alive, or ending: the protocol of sd_notify(3).

In: $NOTIFY_SOCKET, which systemd sets for a unit of `Type=notify`. Without it nothing is sent.
Guarantees: a loop that stands still sends nothing, because only the loop itself calls `feed`; a
socket that is gone ends no work.
"""

from __future__ import annotations

import os
import socket
import time

VARIABLE = "NOTIFY_SOCKET"
READY = "READY=1"
ALIVE = "WATCHDOG=1"
STOPPING = "STOPPING=1"
EVERY_S = 5.0  # the units' WatchdogSec is many times longer
STANDS_S = 120.0  # a loop beside the caller's that has not turned for so long stands still


def notify(state: str) -> bool:
    """Send one state; return whether somebody listens."""
    path = os.environ.get(VARIABLE, "")
    if not path:
        return False
    address = "\0" + path[1:] if path.startswith("@") else path
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as end:
            end.connect(address)
            end.send(state.encode())
    except OSError:
        return False  # systemd ends a process that it does not hear
    return True


class Watchdog:
    """Feeds systemd's watchdog from a process's loops.

    Of two loops, one calls `turn`, the other `feed`: nothing is sent unless both go round. A loop
    that is alone calls `beat`.
    """

    def __init__(self) -> None:
        self._fed = -EVERY_S
        self._turned = time.monotonic()

    def turn(self) -> None:
        """Note that the other loop turned."""
        self._turned = time.monotonic()

    def feed(self) -> None:
        """Say that the process is alive, at most every `EVERY_S`, unless the other loop stands."""
        now = time.monotonic()
        if now - self._fed >= EVERY_S and not self.stands():
            self._fed = now
            notify(ALIVE)

    def stands(self) -> bool:
        """Return whether the other loop stands still."""
        return time.monotonic() - self._turned >= STANDS_S

    def beat(self) -> None:
        """Turn and feed, for a process with one loop."""
        self.turn()
        self.feed()
