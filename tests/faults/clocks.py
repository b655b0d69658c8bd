"""Clocks that jump: the wall clock, and the one that only counts on."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any
from unittest.mock import patch

DAY_S = 86_400.0
SUSPENDED_S = 360.0
# modules that ask for the date by name
DATED = ("server.operator.certificates", "server.operator.foreign", "server.front.sites")


@dataclass
class Shift:
    """How far the clocks are from the machine's own."""

    wall_s: float = 0.0
    monotonic_s: float = 0.0


now = Shift()
_time, _monotonic = time.time, time.monotonic


class ShiftedDate(datetime):
    """The date by the shifted clock."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Any:
        """The present time."""
        return datetime.fromtimestamp(0, tz or UTC) + timedelta(seconds=_time() + now.wall_s)


def install(stack: ExitStack) -> None:
    """Let this process see the shifted clocks."""
    stack.enter_context(patch("time.time", lambda: _time() + now.wall_s))
    nanoseconds = patch("time.time_ns", lambda: int((_time() + now.wall_s) * 1e9))
    stack.enter_context(nanoseconds)
    stack.enter_context(patch("time.monotonic", lambda: _monotonic() + now.monotonic_s))
    for module in DATED:
        stack.enter_context(patch(f"{module}.datetime", ShiftedDate))


def jump_by(seconds: float) -> Any:
    """Return what lets the wall clock jump at an event."""

    def act(event: object, when: str) -> None:
        now.wall_s = seconds

    return act


def jump_to_1970(event: object, when: str) -> None:
    """Let the wall clock begin anew."""
    now.wall_s = -_time()


JUMPS = {"a day on": jump_by(DAY_S), "a day back": jump_by(-DAY_S), "back to 1970": jump_to_1970}
