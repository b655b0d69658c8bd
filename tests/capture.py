"""A TLS-terminating wire tap on loopback.

It forwards bytes both ways and keeps everything that the sites sent. To the server it shows the
certificate of the site that it forwards for.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
from pathlib import Path


class WireTap:
    """Listens with the server's own certificate (`tls`) and forwards to the real port.

    It records what clients send. `sites`: the folder of their state folders.
    """

    def __init__(self, port: int, upstream_port: int, tls: Path, sites: Path) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(tls / "server.crt", tls / "server.key")
        self._context.load_verify_locations(tls / "ca.crt")
        self._context.verify_mode = ssl.CERT_OPTIONAL
        self._sites = sites
        self._upstream = upstream_port
        self._sent: list[bytearray] = []
        self._stop = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", port), backlog=64)
        self._listener.settimeout(0.2)
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def sent(self) -> bytes:
        """Everything that came from the sites so far."""
        return b"\n".join(bytes(block) for block in self._sent)

    def close(self) -> None:
        """Stop listening and wait for the forwarding threads."""
        self._stop.set()
        for thread in self._threads:
            thread.join(5)
        self._listener.close()

    def _start(self, work: object, *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError):
                raw, _ = self._listener.accept()
                self._start(self._serve, raw)

    def _serve(self, raw: socket.socket) -> None:
        trusting = ssl.create_default_context()
        trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
        try:
            raw.settimeout(10)
            inner = self._context.wrap_socket(raw, server_side=True)
        except OSError:
            raw.close()
            return
        self._show_certificate(trusting, inner.getpeercert(True))
        try:
            outer = trusting.wrap_socket(socket.create_connection(("127.0.0.1", self._upstream), 5))
        except OSError:
            inner.close()
            return
        record = bytearray()
        self._sent.append(record)
        with inner, outer, contextlib.suppress(OSError):
            self._forward({inner: (outer, record), outer: (inner, bytearray())})

    def _show_certificate(self, context: ssl.SSLContext, seen: bytes | None) -> None:
        """Load the certificate and key of the site that showed this certificate."""
        for path in self._sites.glob("*/node.crt"):
            if ssl.PEM_cert_to_DER_cert(path.read_text()) == seen:
                context.load_cert_chain(path, path.parent / "keys" / "node.key")

    def _forward(self, way: dict[ssl.SSLSocket, tuple[ssl.SSLSocket, bytearray]]) -> None:
        """Forward both directions in this one thread, until one side closes.

        OpenSSL forbids two threads on one connection.
        """
        while not self._stop.is_set():
            ready = [source for source in way if source.pending()] or select.select(
                list(way), [], [], 0.2
            )[0]
            for source in ready:
                target, record = way[source]
                source.settimeout(0)
                try:
                    data = source.recv(1 << 16)
                except ssl.SSLWantReadError:
                    continue
                if not data:
                    return
                record += data
                target.settimeout(30)
                target.sendall(data)
