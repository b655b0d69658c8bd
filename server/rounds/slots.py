"""A few places in memory for messages on their way, which a stalled sender cannot keep from others.

In: threads that hold one place each while they have a message. Out: they wait for one another.
Guarantees: at most `places` messages are in memory, beside those of senders that stall; a place
that was held longest is given to another thread when none becomes free for `patience_s`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

PATIENCE_S = 60.0


class Slots:
    """So many places; `hold` is a context."""

    def __init__(self, places: int, patience_s: float = PATIENCE_S) -> None:
        self._places = places
        self._patience_s = patience_s
        self._holders: list[object] = []  # in the order in which they came
        self._freed_at = time.monotonic()
        self._freed = threading.Condition()

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Hold a place."""
        holder = object()
        self._take(holder)
        try:
            yield
        finally:
            self._give_back(holder)

    def _take(self, holder: object) -> None:
        """Wait for a place; where none becomes free for too long, the oldest holder loses its."""
        began = time.monotonic()
        with self._freed:
            while len(self._holders) >= self._places:
                # while places become free, this thread's turn comes
                left = max(began, self._freed_at) + self._patience_s - time.monotonic()
                if left <= 0:
                    self._free(self._holders[0])
                    break
                self._freed.wait(left)
            self._holders.append(holder)

    def _give_back(self, holder: object) -> None:
        """Free a place, unless another thread has it by now."""
        with self._freed:
            if holder in self._holders:
                self._free(holder)

    def _free(self, holder: object) -> None:
        """Take a holder out; the next thread's patience begins anew."""
        self._holders.remove(holder)
        self._freed_at = time.monotonic()
        self._freed.notify()
