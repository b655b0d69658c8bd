"""Where the desk listens: loopback, or a socket file in a folder of one's own.

In: an address, or the path of a socket file. Out: a bound socket; the desk, served on it.
Guarantees: nothing but this machine reaches it; a socket file lies in a folder that is closed to
other users.
Not covered: other users of this machine, who reach loopback: the link's secret keeps them out.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import stat
from contextlib import closing, suppress
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from common.errors import ConfigurationError, EnvironmentFault, disk_faults_named

IDLE_S = 30
MOST_AT_ONCE = 64
BACKLOG = 64
LONGEST_PATH_BYTES = 100  # of a socket file, on every system


def bind_loopback(host: str, port: int) -> socket.socket:
    """Return a socket on a loopback address; port 0 takes a free one.

    Raises ConfigurationError (E-DESK-ADDRESS) for any other address, EnvironmentFault for a port
    that is taken.
    """
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        raise _not_here(host) from None
    if not address.is_loopback:
        raise _not_here(host)
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((str(address), port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise EnvironmentFault(
            f"{host}:{port}: the desk cannot listen there: {error.strerror}",
            hint="another program may use the port; without --port a free one is taken",
        ) from error
    return listener


def bind_file(path: Path) -> socket.socket:
    """Return a socket on a file, for this account alone.

    Raises ConfigurationError (E-DESK-SOCKET) unless its folder is this account's own and closed.
    """
    if len(os.fsencode(path)) > LONGEST_PATH_BYTES:
        raise _no_socket(path, f"longer than {LONGEST_PATH_BYTES} bytes", "choose a shorter path")
    with disk_faults_named("cannot make the socket", path):
        path.parent.mkdir(mode=0o700, exist_ok=True)
        facts = path.parent.stat()
        if facts.st_uid != os.getuid() or stat.S_IMODE(facts.st_mode) & 0o077:
            hint = f"chmod 700 {path.parent}, or name a folder that is not there yet"
            raise _no_socket(path, "its folder is open to other users", hint)
        if path.is_socket() and not _answers(path):
            path.unlink()
        if path.exists():
            raise _no_socket(path, "something lies there", "stop the other desk, or name another")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(BACKLOG)
    return listener


def serve(app: ASGIApp, listener: socket.socket) -> None:
    """Serve until the process is asked to stop, as by Ctrl-C."""
    with closing(listener), suppress(KeyboardInterrupt):
        make_server(app).run(sockets=[listener])


def make_server(app: ASGIApp) -> uvicorn.Server:
    """Return a server that logs no line of a request."""
    config = uvicorn.Config(
        app,
        interface="asgi3",
        lifespan="off",
        ws="none",
        access_log=False,
        log_config=None,
        log_level="critical",
        timeout_keep_alive=IDLE_S,
        limit_concurrency=MOST_AT_ONCE,
        server_header=False,
        proxy_headers=False,
    )
    return uvicorn.Server(config)


def _answers(path: Path) -> bool:
    """Whether a program listens on a socket file."""
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return False
    return True


def _not_here(host: str) -> ConfigurationError:
    """The refusal of an address that others reach."""
    return ConfigurationError(
        f"--host {host}: expected a loopback address; the desk shows patients' images",
        hint="127.0.0.1 or ::1; from another machine: ssh -L 8437:127.0.0.1:PORT",
        code="E-DESK-ADDRESS",
    )


def _no_socket(path: Path, what: str, hint: str) -> ConfigurationError:
    """The refusal of a socket file."""
    return ConfigurationError(f"--socket {path}: {what}", hint=hint, code="E-DESK-SOCKET")
