"""Serves Flower's SuperLink on two unix sockets.

`python -m server.flower.link_process FOLDER INBOX_GIB`
In: the SuperLink's state folder with its secret; the most that its database holds.
Out: the sockets `operator.sock` and `fleet.sock`, until SIGTERM.
Guarantees: no port is opened; `fleet.sock` answers the calls of a site and nothing else, so a hole
in a front meets no operator's call.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import uvicorn
from anyio.to_thread import current_default_thread_limiter

from common.process import keep_private
from common.storage.files import read_capped
from server.flower.announcements import (
    REFUSED,
    App,
    Receive,
    Scope,
    Send,
    is_one_reply,
    read_body,
    replay,
)
from server.flower.database import Room, tidy
from server.flower.wire import superlink_app, without_control
from server.front.rules import FLEET_CALLS, PUSH_MESSAGES, PUSH_OBJECT, UNKNOWN_PATH
from server.front.sockets import FLEET, OPERATOR, SOCKETS, SocketFolder

SECRET_FILE = "executor.secret"
SECRET_CAP_BYTES = 1024
DATABASE = "state.db"
STOP_S = 3
CALLS_AT_ONCE = 4  # threads that answer; more of them only wait for one another
CONTROL = "/v1/control/"
# of a site; what the operator's processes send is no larger
LARGEST_BODY = max(FLEET_CALLS.values())
NO_ROOM = 507


class _Server(uvicorn.Server):
    """uvicorn without its own signal handlers: two of them share one process."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def fleet_only(
    app: Any, has_room: Callable[[], bool] = lambda: True
) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    """Return the application reduced to the calls that a site needs; anything else is 404."""

    async def reduced(scope: Scope, receive: Receive, send: Send) -> None:
        raw = bytes(scope.get("raw_path") or b"").decode("latin-1")
        known = scope["type"] == "http" and scope["method"] == "POST" and raw in FLEET_CALLS
        if not known or scope["query_string"]:
            await _refuse(scope, send, UNKNOWN_PATH)
            return
        if raw in (PUSH_MESSAGES, PUSH_OBJECT) and not has_room():
            await _refuse(scope, send, NO_ROOM)
            return
        body = await read_body(receive, FLEET_CALLS[raw])
        if body is None or (raw == PUSH_MESSAGES and not is_one_reply(body)):
            await _refuse(scope, send, REFUSED)
            return
        await app(scope, replay(body, receive), send)

    return reduced


def operator_calls(app: App, lean: App) -> App:
    """Return the application of the operator's socket: `lean` where no call of Control is made."""

    async def either(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        body = await read_body(receive, LARGEST_BODY)
        if body is None:
            await _refuse(scope, send, REFUSED)
            return
        chosen = app if str(scope["path"]).startswith(CONTROL) else lean
        await chosen(scope, replay(body, receive), send)

    return either


async def _refuse(scope: Scope, send: Send, status: int) -> None:
    """Answer a call that the SuperLink does not see."""
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b""})


def _server(app: Any, lifespan: str) -> _Server:
    """A server of one application, quiet about single requests."""
    config = uvicorn.Config(
        app,
        lifespan=lifespan,  # type: ignore[arg-type]
        access_log=False,
        ws="none",
        log_level="warning",
        timeout_graceful_shutdown=STOP_S,
    )
    return _Server(config)


async def serve(folder: Path, inbox_bytes: int) -> None:
    """Serve both sockets until SIGTERM or SIGINT."""
    sockets = SocketFolder(folder / SOCKETS)
    secret = read_capped(folder / SECRET_FILE, SECRET_CAP_BYTES).strip()
    app = superlink_app(str(folder / DATABASE), secret)
    room = Room(folder / DATABASE, inbox_bytes)
    lean = without_control(app)
    servers = (
        _server(operator_calls(app, lean), "on"),
        _server(fleet_only(lean, room.is_left), "off"),
    )

    def stop() -> None:
        for server in servers:
            server.should_exit = True

    current_default_thread_limiter().total_tokens = CALLS_AT_ONCE
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    listeners = (sockets.listen(OPERATOR), sockets.listen(FLEET))

    async def run(server: _Server, listener: socket.socket) -> None:
        # one without the other is no SuperLink
        try:
            await server.serve(sockets=[listener])
        finally:
            stop()

    pairs = zip(servers, listeners, strict=True)
    await asyncio.gather(*(run(server, listener) for server, listener in pairs))


def main() -> None:
    """Serve the folder that the command line names."""
    keep_private()
    # a line for every call of a site would fill the disk
    logging.getLogger("flwr").setLevel(logging.WARNING)
    tidy(Path(sys.argv[1]) / DATABASE)
    asyncio.run(serve(Path(sys.argv[1]), int(sys.argv[2]) << 30))


if __name__ == "__main__":
    main()
