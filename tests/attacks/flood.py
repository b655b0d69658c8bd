"""What one laptop can send at a server, as programs: `python -m tests.attacks.flood KIND ...`.

Runs outside the process of the honest sites, so that it does not slow them down itself. Prints how
much it sent as JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.attacks.knocks import PULL, request

PUSH = "/v1/fleet/push-object"
GIB = 1 << 30
BLOCK = bytes(1 << 20)
MOST_SENT = 64 << 20  # of one body that is never refused
HELLO = b"\x16\x03\x01\x02\x00"  # the head of a TLS record of 512 bytes, without them
DESCRIPTORS_SPARE = 200


class Sender:
    """One laptop: the CA file, perhaps a certificate, and counters."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.port: int = options.port
        self.key: str = options.header
        self.until = time.monotonic() + options.seconds
        self.count: int = options.count
        self.seen: Counter[str] = Counter()
        self.context = ssl.create_default_context(cafile=options.ca)
        if options.certificate:
            self.context.load_cert_chain(options.certificate, options.private)

    def connect(self) -> ssl.SSLSocket:
        """One connection."""
        plain = socket.create_connection(("127.0.0.1", self.port), 20)
        return self.context.wrap_socket(plain, server_hostname="127.0.0.1")

    def send_bodies(self) -> None:
        """Send bodies of a gibibyte, with a length and in chunks, until each is refused."""
        for number in range(self.count):
            with contextlib.suppress(OSError):
                self._send_body(chunked=number % 2 == 1)

    def _send_body(self, *, chunked: bool) -> None:
        """One body of a gibibyte."""
        line = "transfer-encoding: chunked" if chunked else f"content-length: {GIB}"
        with self.connect() as peer:
            peer.sendall(request(PUSH, self.key, line, length=False, body=b""))
            sent = 0
            while sent < MOST_SENT:
                try:
                    if chunked:
                        peer.sendall(b"100000\r\n")
                    peer.sendall(BLOCK)
                except OSError:
                    break
                sent += len(BLOCK)
            self.seen["mebibytes"] += sent >> 20
            self.seen[_status(peer)] += 1

    def hold_half_open(self) -> None:
        """Hold connections that say nothing, half a TLS record, or half a header."""
        held: list[socket.socket] = []
        for number in range(self.count):
            with contextlib.suppress(OSError):
                held.append(self._half_open(number))
        self.seen["opened"] = len(held)
        while time.monotonic() < self.until:
            time.sleep(0.2)
        for one in held:
            one.close()

    def _half_open(self, number: int) -> socket.socket:
        """One of them; every fiftieth got through the handshake and stops in its header."""
        if number % 50 == 0:
            secured = self.connect()
            secured.sendall(request(PULL, self.key)[:40])
            return secured
        plain = socket.create_connection(("127.0.0.1", self.port), 20)
        if number % 2:
            plain.sendall(HELLO)
        return plain

    def send_refused(self) -> None:
        """Send requests that are refused, as fast as they are answered."""
        data = request("/v1/control/list-runs", self.key)
        while time.monotonic() < self.until:
            with contextlib.suppress(OSError), self.connect() as peer:
                # on one connection for as long as the front keeps it
                while time.monotonic() < self.until:
                    peer.sendall(data)
                    status = _status(peer)
                    self.seen[status] += 1
                    if status == "closed":
                        break


def _status(peer: ssl.SSLSocket) -> str:
    """The status of the next answer."""
    peer.settimeout(20)
    try:
        words = peer.recv(4096).split()
    except OSError:
        return "closed"
    return words[1].decode() if len(words) > 1 else "closed"


def main() -> None:
    """Send as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tests.attacks.flood")
    parser.add_argument("kind", choices=("bodies", "half-open", "refused"))
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--ca", type=Path, required=True)
    parser.add_argument("--certificate", type=Path)
    parser.add_argument("--private", type=Path)
    parser.add_argument("--header", default="")
    parser.add_argument("--count", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.0)
    options = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    sender = Sender(options)
    works: dict[str, Callable[[], None]] = {
        "bodies": sender.send_bodies,
        "half-open": sender.hold_half_open,
        "refused": sender.send_refused,
    }
    threads = [threading.Thread(target=works[options.kind]) for _ in range(options.threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps(dict(sender.seen)))


if __name__ == "__main__":
    main()
