"""The unix sockets on which the SuperLink answers; it listens on no port.

`operator.sock` takes every call: for the executor and the coordinator, which run as this user.
`fleet.sock` knows the calls of a site alone: for the front.
Guarantees: the folder can be entered by its owner alone.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

from common.errors import disk_faults_named

SOCKETS = "sockets"  # the folder, in the SuperLink's own
OPERATOR = "operator.sock"
FLEET = "fleet.sock"
FRONT = "front.sock"  # of the front's own process, behind nginx
LONGEST_PATH = 100  # bytes; the kernel takes 107
BACKLOG = 512
MODE = 0o600


class SocketFolder:
    """A folder of sockets, open for as long as this object lives.

    The kernel takes short paths alone, so a long folder is named by an open descriptor.
    """

    def __init__(self, folder: Path) -> None:
        with disk_faults_named("create", folder):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            folder.chmod(0o700)
            self._descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        self.folder = folder.resolve()

    def path(self, name: str) -> str:
        """Return a path of the socket that the kernel takes, in this process."""
        whole = str(self.folder / name)
        if len(whole.encode()) <= LONGEST_PATH:
            return whole
        return f"/proc/self/fd/{self._descriptor}/{name}"

    def listen(self, name: str) -> socket.socket:
        """Return a listening socket; one that an earlier process left behind is replaced."""
        (self.folder / name).unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(self.path(name))
        (self.folder / name).chmod(MODE)
        listener.listen(BACKLOG)
        listener.setblocking(False)
        return listener

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self._descriptor)
