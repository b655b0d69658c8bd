"""The one port of the server, opened by the program that stays, served by the front.

In: host and port of server.yaml. Out: a listening socket, or a refusal with the fix.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from common.errors import EnvironmentFault
from server.front import rules
from server.operator.config import ServerConfig

BETWEEN = "between"  # told to a front that stands before no SuperLink
BACKLOG = 1024
WAIT_S = 6.0  # longer than a front takes to end
EVERY = "::"  # every interface, IPv4 and IPv6
PRIVILEGED = (
    "ports below 1024 need the capability CAP_NET_BIND_SERVICE: give it to the service, or forward "
    "the port to a listen.port above 1023 in server.yaml"
)


@dataclass(frozen=True)
class FrontDoor:
    """What the front needs: the operator's state folder, a listening socket, a bound.

    `pushed_bytes`: what a site may push until its next instruction.
    """

    state: Path
    listener: socket.socket | None = None  # None behind nginx
    pushed_bytes: int = rules.PUSHED_BYTES

    @property
    def where(self) -> str:
        """What the front's process is told: a descriptor, or `nginx`."""
        return "nginx" if self.listener is None else str(self.listener.fileno())

    @property
    def descriptors(self) -> tuple[int, ...]:
        """The descriptors that the front's process inherits."""
        return () if self.listener is None else (self.listener.fileno(),)


@contextlib.contextmanager
def open_door(
    state: Path, config: ServerConfig, port: int, reply_bytes: int = rules.REPLY_BYTES
) -> Iterator[FrontDoor]:
    """Yield the front that server.yaml names; nginx has a port of its own.

    `reply_bytes`: the largest reply of the plan. A site may push it, and all of it once more.
    """
    pushed_bytes = min(2 * reply_bytes, rules.PUSHED_BYTES)
    if config.listen.front == "nginx":
        yield FrontDoor(state, pushed_bytes=pushed_bytes)
        return
    with open_port(config.listen.host, port) as listener:
        yield FrontDoor(state, listener, pushed_bytes)


@contextlib.contextmanager
def open_port(host: str, port: int) -> Iterator[socket.socket]:
    """Yield a listening socket; `::` takes IPv4 as well. Raises EnvironmentFault (E-PORT)."""
    where = spell(host, port)
    try:
        listener = _listen_soon(host, port)
    except (OSError, UnicodeError) as error:
        # Python adds what it was doing in brackets
        reason = (getattr(error, "strerror", None) or "no address of this machine").split(" (")[0]
        hint = "choose a free port and an address of this machine in server.yaml (listen)"
        if isinstance(error, PermissionError):
            hint = PRIVILEGED
        raise EnvironmentFault(f"{where}: {reason}", hint=hint, code="E-PORT") from error
    with listener:
        yield listener


def spell(host: str, port: int) -> str:
    """Return an address as people and nginx write it: an IPv6 one in brackets."""
    if ":" in host:
        host = f"[{host}]"
    return f"{host}:{port}"


def wildcard(host: str) -> str:
    """Return the host to listen on: a kernel without IPv6 has `0.0.0.0` for every interface."""
    if host == EVERY and not socket.has_dualstack_ipv6():
        return "0.0.0.0"
    return host


def _listen_soon(host: str, port: int) -> socket.socket:
    """A listening socket; a front that is just ending has the port for a moment more."""
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            return _listen(host, port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                raise
            time.sleep(WAIT_S / 20)


def _listen(host: str, port: int) -> socket.socket:
    """A socket of the first address that the host has."""
    kind = socket.SOCK_STREAM
    host = wildcard(host)
    found = socket.getaddrinfo(host, port, type=kind, flags=socket.AI_PASSIVE)
    family, _, _, _, address = found[0]
    both = family == socket.AF_INET6 and host == EVERY
    return socket.create_server(address[:2], family=family, backlog=BACKLOG, dualstack_ipv6=both)
