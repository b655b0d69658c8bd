"""A hostile server below HTTP: it answers one call with any bytes, and all others honestly.

In: the scripted server (tests/fleet_server.py) whose honest answers it gives, its certificate.
Out: an address; `script` is what the next connections that pull a message get, while it is set.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any

from server.operator.certificates import ServerFiles
from tests.fleet_server import REQUESTS, FleetServer

Script = Callable[[ssl.SSLSocket, "RawServer"], None]
CHUNKED = b"transfer-encoding: chunked\r\n\r\n"
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/protobuf\r\n"
PULL = "pull-messages"
TIMEOUT_S = 20.0


class RawServer:
    """Serves at `url`, a thread a connection. `served`: how often the script was played."""

    def __init__(self, honest: FleetServer, files: ServerFiles) -> None:
        self.honest = honest
        self.script: Script | None = None
        self.served = 0
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(files.certificate, files.key)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"https://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                plain, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(plain,), daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        """Answer the requests of one connection."""
        plain.settimeout(TIMEOUT_S)
        with (
            contextlib.suppress(OSError),
            self._context.wrap_socket(plain, server_side=True) as peer,
        ):
            file = peer.makefile("rb")
            while line := file.readline():
                self._answer(peer, file, line.split()[1].decode().rpartition("/")[2])

    def _answer(self, peer: ssl.SSLSocket, file: Any, name: str) -> None:
        """Read one request and answer it."""
        length = 0
        while (line := file.readline()).strip():
            field, _, value = line.partition(b":")
            if field.lower() == b"content-length":
                length = int(value)
        request = REQUESTS[name].FromString(file.read(length))
        if name == PULL and self.script is not None:
            self.served += 1
            self.script(peer, self)
            raise ConnectionError
        body = self.honest.answer(name, request)
        peer.sendall(HEAD + f"content-length: {len(body)}\r\n\r\n".encode() + body)


def dripped(head: bytes, block: bytes, pause_s: float = 0.1) -> Script:
    """A head, then a few bytes now and then, for as long as the attack lasts."""

    def script(peer: ssl.SSLSocket, server: RawServer) -> None:
        peer.sendall(head)
        ends = time.monotonic() + TIMEOUT_S
        while server.script is not None and time.monotonic() < ends:
            peer.sendall(block)
            time.sleep(pause_s)

    return script


def said(data: bytes) -> Script:
    """These bytes, and then nothing more."""
    return lambda peer, server: peer.sendall(data)


OTHER = b"HTTP/1.1 302 Found\r\nlocation: https://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n"
SCRIPTS: dict[str, Script] = {
    "a body of a byte now and then": dripped(HEAD + b"content-length: 1000000\r\n\r\n", b"x"),
    "a head of a byte now and then": dripped(HEAD + b"x: ", b"y"),
    "interim answers without end": dripped(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 10),
    "a head without end": dripped(HEAD, b"x: " + b"y" * 8_000 + b"\r\n", 0.01),
    "two answers to one question": said(HEAD + b"content-length: 0\r\n\r\n" + OTHER),
    "two lengths": said(HEAD + b"content-length: 1\r\ncontent-length: 9\r\n\r\nxxxxxxxxx"),
    "a length and chunks": said(HEAD + b"content-length: 3\r\n" + CHUNKED + b"0\r\n\r\n"),
    "a chunk of 2^70 bytes": said(HEAD + CHUNKED + b"f" * 18 + b"\r\nx"),
    "a switch to another protocol": said(b"HTTP/1.1 101 Switching\r\nupgrade: h2c\r\n\r\n"),
    "bytes that are no HTTP": said(b"\x00\x00\x12\x04\x00" * 200),
    "a status of 999999": said(b"HTTP/1.1 999999 X\r\n\r\n"),
    "no answer at all": said(b""),
}
