"""Accepts connections: TLS 1.3 with a client certificate, half-open ones evicted, all bounded.

In: a listening socket, the certificate files, the application. Out: its answers.
Guarantees: the peer's certificate reaches the application; no TLS object exists before a peer has
sent its whole first record; the oldest half-open connection gives way, not the newest.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections import Counter
from typing import ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from common import passphrase
from server.front import rules
from server.front.proxy import CERTIFICATE, Proxy
from server.front.web import web_server
from server.operator.certificates import ServerFiles

RECORD_HEAD = 5  # bytes of a TLS record's head: type, version, length
HANDSHAKE = 22  # TLS record type
RECORD_CAP = 16_384 + RECORD_HEAD
PEEK_S = 0.02
log = logging.getLogger("kohort.front")


def tls_context(files: ServerFiles) -> ssl.SSLContext:
    """Return TLS 1.3 alone, with the consortium's authorities for the peers' certificates.

    Raises ssl.SSLError for files that do not belong together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # a missing certificate gets an answer that names it: 400
    context.verify_mode = ssl.CERT_OPTIONAL
    context.load_verify_locations(files.ca)
    _load_certificate(context, files)
    context.num_tickets = 0
    return context


def _load_certificate(context: ssl.SSLContext, files: ServerFiles) -> None:
    """Read the server's certificate and key.

    Raises ssl.SSLError for files that do not belong together.
    """
    # without a password OpenSSL would ask a terminal
    secret = passphrase.current() or b""
    context.load_cert_chain(files.certificate, files.key, password=secret)


class Connection(HttpToolsProtocol):
    """uvicorn's protocol with the peer's certificate, a capped header and a time for it."""

    open_of: ClassVar[Counter[bytes]] = Counter()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Note the certificate; close one connection too many of the same."""
        peer = transport.get_extra_info("ssl_object").getpeercert(True) or b""
        self._peer = peer
        self._head_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self.app_state = {**self.app_state, CERTIFICATE: peer}
        Connection.open_of[peer] += 1
        super().connection_made(transport)  # type: ignore[arg-type]
        most = rules.CONNECTIONS_EACH if peer else rules.CONNECTIONS_NAMELESS
        if Connection.open_of[peer] > most:
            self.transport.close()
            return
        self._await_header()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        Connection.open_of[self._peer] -= 1
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count the bytes of a header; a longer one ends the connection."""
        if self._timer is not None or self._idle():
            self._head_bytes += len(data)
        super().data_received(data)
        waiting = self._timer is not None
        if waiting and self._head_bytes > rules.HEADER_CAP_BYTES:
            self.transport.abort()

    def _idle(self) -> bool:
        """Whether nothing is being asked or answered."""
        return self.cycle is None or bool(self.cycle.response_complete)

    def on_message_begin(self) -> None:
        """A header begins, be it behind a request that is not answered yet: its time runs."""
        if not self._idle():
            # what came with it belongs to the request before it
            self._head_bytes = 0
        if self._timer is None:
            self._await_header()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The header is whole: its time is over. Only so many requests wait in one connection."""
        self._stop_timer()
        self._head_bytes = 0
        super().on_headers_complete()
        if len(self.pipeline) > rules.PIPELINED:
            self.transport.abort()

    def on_message_complete(self) -> None:
        """Read no further request before this one is answered."""
        super().on_message_complete()
        if not self.cycle.response_complete:
            self.flow.pause_reading()

    def _await_header(self) -> None:
        """Start the time that a header may take."""
        self._timer = self.loop.call_later(rules.HEADER_S, self._header_late)

    def _header_late(self) -> None:
        """End a connection whose header never came."""
        if not self.transport.is_closing():
            self.transport.abort()

    def _stop_timer(self) -> None:
        """Stop the time of a header."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Listener:
    """Accepts connections until it is closed."""

    def __init__(self, listener: socket.socket, context: ssl.SSLContext, proxy: Proxy) -> None:
        self._listener = listener
        self.context = context
        self.server = web_server(proxy)
        self._half_open: dict[asyncio.Task[None], None] = {}
        self._handshakes: dict[asyncio.Task[None], None] = {}

    async def serve(self) -> None:
        """Accept until the server is told to exit."""
        await self.server.startup(sockets=[])
        accepting = asyncio.create_task(self._accept())
        try:
            await self.server.main_loop()
        finally:
            accepting.cancel()
            # the next server may have the port at once
            self._listener.close()
            await self.server.shutdown(sockets=[])

    async def _accept(self) -> None:
        """Take every connection at once; what is half open gives way to the newest."""
        loop = asyncio.get_running_loop()
        self._listener.setblocking(False)
        while True:
            try:
                peer, _ = await loop.sock_accept(self._listener)
            except OSError:
                # no descriptor is left: make room
                _evict(self._half_open, 0)
                await asyncio.sleep(PEEK_S)
                continue
            task = asyncio.create_task(self._open(peer))
            self._half_open[task] = None
            task.add_done_callback(self._forget)
            _evict(self._half_open, rules.HALF_OPEN)

    def _forget(self, task: asyncio.Task[None]) -> None:
        """A task has ended; nobody waits for what it says."""
        self._half_open.pop(task, None)
        self._handshakes.pop(task, None)
        if not task.cancelled():
            task.exception()

    async def _open(self, peer: socket.socket) -> None:
        """The way of one connection: its first record, the handshake, uvicorn."""
        task = asyncio.current_task()
        assert task is not None
        try:
            peer.setblocking(False)
            async with asyncio.timeout(rules.HELLO_S):
                await _first_record(peer)
            # the TLS object, which costs memory
            self._half_open.pop(task, None)
            self._handshakes[task] = None
            _evict(self._handshakes, rules.HANDSHAKES)
            if len(self.server.server_state.connections) >= rules.CONNECTIONS_ALL:
                peer.close()
                return
            await asyncio.get_running_loop().connect_accepted_socket(
                self._protocol,
                peer,
                ssl=self.context,
                ssl_handshake_timeout=rules.HANDSHAKE_S,
                ssl_shutdown_timeout=1.0,
            )
        except (OSError, TimeoutError, asyncio.CancelledError):
            peer.close()

    def _protocol(self) -> Connection:
        """A new protocol of uvicorn's."""
        return Connection(
            config=self.server.config,
            server_state=self.server.server_state,
            app_state={},
        )


def _evict(tasks: dict[asyncio.Task[None], None], most: int) -> None:
    """Cancel the oldest tasks until at most so many are left."""
    while len(tasks) > most:
        oldest = next(iter(tasks))
        del tasks[oldest]
        oldest.cancel()


async def _first_record(peer: socket.socket) -> None:
    """Wait for the whole first TLS record without taking it; raises OSError for anything else."""
    readable = asyncio.Event()
    loop = asyncio.get_running_loop()
    number = peer.fileno()
    loop.add_reader(number, readable.set)
    try:
        await readable.wait()
    finally:
        # a byte that is not taken would wake the loop again and again
        with contextlib.suppress(OSError, ValueError):
            loop.remove_reader(number)
    while not _has_record(peer):
        await asyncio.sleep(PEEK_S)


def _has_record(peer: socket.socket) -> bool:
    """Whether the first record is there; raises OSError for anything else."""
    seen = peer.recv(RECORD_CAP, socket.MSG_PEEK)
    if not seen or seen[0] != HANDSHAKE:
        raise OSError("no TLS")
    if len(seen) < RECORD_HEAD:
        return False
    whole = RECORD_HEAD + int.from_bytes(seen[3:RECORD_HEAD], "big")
    if whole > RECORD_CAP:
        raise OSError("no TLS")
    return len(seen) >= whole
