"""Where the operator's page listens: a port of the loopback interface, or a unix socket.

Guarantees: no other machine can connect; a socket is for its owner and its owner's group.
"""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from common.errors import ConfigurationError, EnvironmentFault, disk_faults_named

SOCKET_BYTES = 100  # the longest path that every kernel takes
WAITING = 32
HEADER_BYTES = 16_384


def open_port(port: int) -> socket.socket:
    """Return a listening socket on 127.0.0.1; raises EnvironmentFault where the port is taken."""
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(("127.0.0.1", port))
    except OSError as error:
        listening.close()
        raise EnvironmentFault(
            f"port {port} of this machine: {error.strerror}",
            hint="give another --port, or --socket PATH",
        ) from error
    listening.listen(WAITING)
    return listening


def open_socket(path: Path) -> socket.socket:
    """Return a listening unix socket, mode 0660, in place of one that nobody serves any more.

    Raises ConfigurationError where the path is something else, or its server still answers.
    """
    if len(os.fsencode(path)) > SOCKET_BYTES:
        raise ConfigurationError(
            f"--socket {path}: expected a path of at most {SOCKET_BYTES} bytes",
            hint="for example /run/kohort/page.sock",
        )
    with disk_faults_named("cannot listen on", path):
        if path.exists():
            _remove_dead(path)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o117)
        try:
            listening.bind(str(path))
        except OSError:
            listening.close()
            raise
        finally:
            os.umask(before)
    listening.listen(WAITING)
    return listening


def _remove_dead(path: Path) -> None:
    """Remove a socket that a process left which is gone."""
    if not stat.S_ISSOCK(path.lstat().st_mode):
        raise ConfigurationError(
            f"--socket {path}: there is something else than a socket", hint="give another path"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        try:
            other.connect(str(path))
        except OSError:
            path.unlink()
            return
    raise ConfigurationError(
        f"--socket {path}: a page is served there already", hint="give another path"
    )


def serve(app: FastAPI, listening: socket.socket) -> None:
    """Answer until SIGTERM or ctrl-C. Nothing is logged: who looked at the page is nobody's."""
    config = uvicorn.Config(
        app,
        access_log=False,
        log_level="warning",
        server_header=False,
        lifespan="off",
        ws="none",
        limit_concurrency=WAITING,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=3,
        h11_max_incomplete_event_size=HEADER_BYTES,
    )
    with listening:
        uvicorn.Server(config).run(sockets=[listening])
