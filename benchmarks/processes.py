"""What the processes below this one take: memory, time, and bytes over a connection.

In: a function that names a process by its command line. Out: `Use` by name.
Not covered: a process that starts and ends between two looks; machines without /proc.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

LOOK_S = 0.1
BLOCK_BYTES = 1 << 16
TICKS = os.sysconf("SC_CLK_TCK")
PROC = Path("/proc")

Name = Callable[[list[str]], str]  # of a command line; "" for a process that does not count


@dataclass
class Use:
    """Peak resident memory of one process, process time of all, and how many there were."""

    mib: float = 0.0
    cpu_s: float = 0.0
    count: int = 0


class Watch:
    """Looks at every process below this one while its block lasts."""

    def __init__(self, name: Name) -> None:
        self.uses: dict[str, Use] = {}
        self._name = name
        self._seen: dict[int, float] = {}  # process time at the last look
        self._counted: set[tuple[int, str]] = set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look_on, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _look_on(self) -> None:
        while not self._ended.wait(LOOK_S):
            for process in below(os.getpid()):
                try:
                    self._look(process)
                except (OSError, ValueError, IndexError):
                    continue  # it ended meanwhile

    def _look(self, process: int) -> None:
        """Add what one process took since the last look to its name's use."""
        place = PROC / str(process)
        words = (place / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")
        name = self._name(words)
        if not name:
            return
        mib = resident_mib((place / "status").read_text())
        fields = (place / "stat").read_text().rpartition(")")[2].split()
        cpu_s = (int(fields[11]) + int(fields[12])) / TICKS
        use = self.uses.setdefault(name, Use())
        use.mib = max(use.mib, mib)
        use.cpu_s += cpu_s - self._seen.get(process, 0.0)
        self._seen[process] = cpu_s
        if (process, name) not in self._counted:
            self._counted.add((process, name))
            use.count += 1


def resident_mib(status: str) -> float:
    """Return the resident memory of a process, of its status file; 0 where it has ended."""
    return _read_mib(status, "VmRSS:")


def peak_mib(status: str) -> float:
    """Return the most resident memory that its program had, of its status file."""
    return _read_mib(status, "VmHWM:")


def _read_mib(status: str, name: str) -> float:
    """A field of a status file, in MiB."""
    for line in status.splitlines():
        if line.startswith(name):
            return int(line.split()[1]) / 1024
    return 0.0


def below(parent: int) -> list[int]:
    """Return the processes that this one started, and theirs."""
    children: dict[int, list[int]] = {}
    for place in PROC.iterdir():
        if not place.name.isdigit():
            continue
        try:
            fields = (place / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(place.name))
    found: list[int] = []
    waiting = [parent]
    while waiting:
        own = children.get(waiting.pop(), [])
        found += own
        waiting += own
    return found


class Relay:
    """Passes connections of one port of this machine on to another, and counts their bytes."""

    def __init__(self, port: int, upstream: int) -> None:
        self.sent = 0  # by those who connect
        self.received = 0
        self._port, self._upstream = port, upstream
        self._loop = asyncio.new_event_loop()
        self._open, self._ended = threading.Event(), asyncio.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Relay:
        self._thread.start()
        self._open.wait()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._connect, "127.0.0.1", self._port)
        self._open.set()
        async with server:
            await self._ended.wait()

    async def _connect(self, inward: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        try:
            outward, on = await asyncio.open_connection("127.0.0.1", self._upstream)
        except OSError:
            back.close()
            return
        await asyncio.gather(self._pass(inward, on, up=True), self._pass(outward, back, up=False))

    async def _pass(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, *, up: bool
    ) -> None:
        """One direction of a connection, to its end."""
        try:
            while data := await source.read(BLOCK_BYTES):
                if up:
                    self.sent += len(data)
                else:
                    self.received += len(data)
                target.write(data)
                await target.drain()
        except OSError:
            pass
        target.close()
