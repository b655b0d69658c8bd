"""The embedded front as a process: `python -m server.front.process STATE DESCRIPTOR`.

In: the operator's state folder, the descriptor of a listening socket. Out: serves until SIGTERM.
SIGHUP reads the server's certificate again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import socket
import sys
from logging.handlers import RotatingFileHandler
from pathlib import Path

from server.front.listener import Listener, tls_context
from server.front.proxy import Proxy
from server.front.sites import Sites
from server.front.sockets import FLEET, SOCKETS, SocketFolder
from server.operator.certificates import ServerFiles
from server.operator.state import ServerState

LOG_BYTES = 8 << 20
LOGS_KEPT = 3


async def serve(state: ServerState, listener: socket.socket) -> None:
    """Serve until SIGTERM or SIGINT."""
    files = ServerFiles(state.tls / "server.crt", state.tls / "server.key", state.tls / "ca.crt")
    context = tls_context(files)
    sockets = SocketFolder(state.superlink / SOCKETS)
    sites = Sites(state.sites)
    proxy = Proxy(sites, sockets.path(FLEET))
    front = Listener(listener, context, proxy)

    def stop() -> None:
        front.server.should_exit = True

    def reload() -> None:
        context.load_cert_chain(files.certificate, files.key)
        logging.getLogger("kohort.front").info("certificate read again")

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop)
    loop.add_signal_handler(signal.SIGINT, stop)
    loop.add_signal_handler(signal.SIGHUP, reload)
    try:
        await front.serve()
    finally:
        await proxy.close()
        sites.close()


def main() -> None:
    """Serve as the command line says."""
    os.umask(0o077)
    state = ServerState(Path(sys.argv[1]))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    handler = RotatingFileHandler(
        state.root / "front.log", maxBytes=LOG_BYTES, backupCount=LOGS_KEPT
    )
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", handlers=[handler])
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("httpcore").setLevel(logging.WARNING)
    asyncio.run(serve(state, socket.socket(fileno=int(sys.argv[2]))))


if __name__ == "__main__":
    main()
