"""Counters of the front: requests of a site, bytes that it pushes, bytes being read.

Out: whether one more is allowed. They hold in one event loop; nothing here waits for long.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from server.front import rules

SITES_KEPT = 4096


class Rate:
    """Requests a second for each site, with a burst."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        per_s: float = rules.RATE_PER_S,
        burst: float = rules.BURST,
    ) -> None:
        self._clock = clock
        self._per_s = per_s
        self._burst = float(burst)
        self._left: dict[str, tuple[float, float]] = {}

    def allow(self, name: str) -> bool:
        """Return whether a site may ask once more now."""
        now = self._clock()
        left, last = self._left.get(name, (self._burst, now))
        left = min(self._burst, left + (now - last) * self._per_s)
        allowed = left >= 1
        if len(self._left) > SITES_KEPT:
            self._left.clear()
        self._left[name] = (left - 1 if allowed else left, now)
        return allowed


class Pushed:
    """The bytes that each site may still push until it gets its next instruction.

    What all sites may have stored is so bounded by the number of instructions, whatever they send.
    """

    def __init__(self, budget: int = rules.PUSHED_BYTES) -> None:
        self._budget = budget
        self._left: dict[str, int] = {}

    def grant(self, name: str) -> None:
        """A site got an instruction: it may push one reply, and once more."""
        self._left[name] = self._budget

    def take(self, name: str, path: str, size: int) -> bool:
        """Return whether a site may push a body; if so it is charged."""
        charge = charge_of(path, size)
        left = self._left.get(name, self._budget)
        if charge > left:
            return False
        self._left[name] = left - charge
        return True

    def give_back(self, name: str, path: str, size: int) -> None:
        """A body was not stored: its charge is void."""
        left = self._left.get(name, self._budget)
        self._left[name] = min(self._budget, left + charge_of(path, size))


def charge_of(path: str, size: int) -> int:
    """Return what a body costs of a site's budget; only what is stored costs anything."""
    if path == rules.PUSH_OBJECT:
        return size
    if path == rules.PUSH_MESSAGES:
        return size * rules.ANNOUNCED_FACTOR
    return 0


class Bodies:
    """A budget of bytes for all bodies that are being read, and for those of one site.

    A large body waits for its share; a small one needs none.
    """

    def __init__(
        self, total: int = rules.BODIES_BYTES, each: int = rules.BODIES_EACH_BYTES
    ) -> None:
        self._left = total
        self._each = each
        self._held: dict[str, int] = {}
        self._freed = asyncio.Condition()

    @asynccontextmanager
    async def share(self, name: str, size: int) -> AsyncIterator[None]:
        """Hold `size` bytes of the budget for a site."""
        if size <= rules.SMALL_BYTES:
            yield
            return
        async with self._freed:
            await self._freed.wait_for(lambda: self._fits(name, size))
            self._left -= size
            self._held[name] = self._held.get(name, 0) + size
        try:
            yield
        finally:
            async with self._freed:
                self._left += size
                self._held[name] -= size
                if not self._held[name]:
                    del self._held[name]
                self._freed.notify_all()

    def _fits(self, name: str, size: int) -> bool:
        """Whether a share is free, for all and for this site."""
        return self._left >= size and self._held.get(name, 0) + size <= self._each
