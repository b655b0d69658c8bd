"""The socket on which systemd hears what a process says of itself."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Listener:
    """The socket on which systemd listens."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.setblocking(False)

    def heard(self) -> list[str]:
        """Everything that was sent since the last time."""
        found = []
        while True:
            try:
                found.append(self.socket.recv(4096).decode())
            except BlockingIOError:
                return found

    def close(self) -> None:
        """Listen no more."""
        self.socket.close()


@contextmanager
def listening() -> Iterator[tuple[str, Listener]]:
    """Yield a path, short enough for a socket, and who listens there."""
    with tempfile.TemporaryDirectory(prefix="kn-") as folder:
        path = str(Path(folder) / "s")
        listener = Listener(path)
        try:
            yield path, listener
        finally:
            listener.close()
