"""Counters of the front: requests of a site, connections of a certificate, bytes being read.

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

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._left: dict[str, tuple[float, float]] = {}

    def allow(self, name: str) -> bool:
        """Return whether a site may ask once more now."""
        now = self._clock()
        left, last = self._left.get(name, (float(rules.BURST), now))
        left = min(rules.BURST, left + (now - last) * rules.RATE_PER_S)
        allowed = left >= 1
        if len(self._left) > SITES_KEPT:
            self._left.clear()
        self._left[name] = (left - 1 if allowed else left, now)
        return allowed


class Bodies:
    """A budget of bytes for all bodies that are being read; a request waits for its share."""

    def __init__(self, total: int = rules.BODIES_BYTES) -> None:
        self._left = total
        self._freed = asyncio.Condition()

    @asynccontextmanager
    async def share(self, size: int) -> AsyncIterator[None]:
        """Hold `size` bytes of the budget."""
        async with self._freed:
            await self._freed.wait_for(lambda: self._left >= size)
            self._left -= size
        try:
            yield
        finally:
            async with self._freed:
                self._left += size
                self._freed.notify_all()
