"""The front as a process: `python -m server.front.process STATE WHERE [PUSHED_BYTES [between]]`.

In: the operator's state folder; WHERE is the descriptor of a listening socket, or `nginx` for the
unix socket behind nginx; what a site may push until its next instruction; `between` where no
SuperLink runs. Out: serves until SIGTERM.
SIGHUP reads the server's certificate again.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import signal
import socket
import ssl
import sys
from logging.handlers import RotatingFileHandler
from pathlib import Path

from common.process import keep_private
from server.front import rules
from server.front.behind import BehindNginx
from server.front.listener import Listener, tls_context
from server.front.port import BETWEEN
from server.front.proxy import Proxy
from server.front.refusals import keep_written
from server.front.sites import Sites
from server.front.sockets import FLEET, FRONT, SOCKETS, SocketFolder
from server.operator.certificates import ServerFiles
from server.operator.expiry import ending_certificates
from server.operator.renewals import Mailbox
from server.operator.state import ServerState

LOG_BYTES = 8 << 20
LOGS_KEPT = 3
DAY_S = 86_400
LOOK_S = 2.0  # until a change of the authorities counts
NGINX = "nginx"
LEVELS = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
log = logging.getLogger("kohort.front")


async def serve(state: ServerState, where: str, pushed_bytes: int, between: bool) -> None:
    """Serve until SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    sockets = SocketFolder(state.superlink / SOCKETS)
    sites = Sites(state.sites)
    proxy = Proxy(sites, sockets.path(FLEET), pushed_bytes, Mailbox(state), between=between)
    watches: list[asyncio.Task[None]] = []
    front: Listener | BehindNginx
    if where == NGINX:
        front = BehindNginx(sockets.listen(FRONT), proxy)
    else:
        files = ServerFiles(
            state.tls / "server.crt", state.tls / "server.key", state.tls / "ca.crt"
        )
        front = Listener(socket.socket(fileno=int(where)), tls_context(files), proxy)
        _reload_on_hangup(front, files)
        watches.append(loop.create_task(_reload_on_change(front, files)))

    def stop() -> None:
        front.server.should_exit = True

    loop.add_signal_handler(signal.SIGTERM, stop)
    loop.add_signal_handler(signal.SIGINT, stop)
    watches.append(loop.create_task(_warn_daily(state, sites)))
    watches.append(loop.create_task(keep_written(state.root, proxy.refusals)))
    try:
        await front.serve()
    finally:
        for watch in watches:
            watch.cancel()
        await proxy.close()
        sites.close()


async def _warn_daily(state: ServerState, sites: Sites) -> None:
    """Log the certificates that end soon, once a day."""
    while True:
        for ending in ending_certificates(state, sites.all()):
            log.log(LEVELS[ending.severity], "%s", ending.line)
        await asyncio.sleep(DAY_S)


def _reload_on_hangup(front: Listener, files: ServerFiles) -> None:
    """Read the server's certificate again on SIGHUP; open connections keep the old one."""
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, _reload, front, files)


def _reload(front: Listener, files: ServerFiles) -> None:
    """Read certificate, key and authorities again, for connections from now on."""
    try:
        front.context = tls_context(files)
    except (OSError, ssl.SSLError):
        log.warning("certificate and key do not belong together: the old ones stay")
        return
    log.info("certificate read again")


async def _reload_on_change(front: Listener, files: ServerFiles) -> None:
    """Read them again when the authorities change, which a rollover does."""
    known = _stamp(files.ca)
    while True:
        await asyncio.sleep(LOOK_S)
        found = _stamp(files.ca)
        if found != known:
            known = found
            _reload(front, files)


def _stamp(path: Path) -> tuple[int, int]:
    """What changes when a file is replaced."""
    try:
        facts = path.stat()
    except OSError:
        return (0, 0)
    return (facts.st_mtime_ns, facts.st_ino)


def main() -> None:
    """Serve as the command line says."""
    keep_private()
    # until the certificate can be read again, and always behind nginx
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    state = ServerState(Path(sys.argv[1]))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    handler = RotatingFileHandler(
        state.root / "front.log", maxBytes=LOG_BYTES, backupCount=LOGS_KEPT
    )
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S%z",
        handlers=[handler],
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("httpcore").setLevel(logging.WARNING)
    pushed_bytes = int(sys.argv[3]) if sys.argv[3:] else rules.PUSHED_BYTES
    between = sys.argv[4:] == [BETWEEN]
    asyncio.run(serve(state, sys.argv[2], pushed_bytes, between))


if __name__ == "__main__":
    main()
