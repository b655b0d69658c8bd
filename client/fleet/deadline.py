"""Bounds a whole answer in time: httpx bounds each read alone.

In: a time limit that starts anew with each request. Out: a network backend for httpx.
Guarantees: a server that sends a byte now and then, or interim answers without end, is cut when
the time is over, in the head of its answer too.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterable
from typing import Any

import httpcore


class Deadline:
    """The moment when the present answer must be whole."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._ends = time.monotonic() + limit_s

    def restart(self) -> None:
        """Begin anew, with a request."""
        self._ends = time.monotonic() + self._limit_s

    def within(self, timeout_s: float | None) -> float:
        """Return how long one read may take; raises httpcore.ReadTimeout when the time is over."""
        left_s = self._ends - time.monotonic()
        if left_s <= 0:
            raise httpcore.ReadTimeout("the answer takes too long")
        return left_s if timeout_s is None else min(timeout_s, left_s)


class BoundedBackend(httpcore.SyncBackend):
    """httpcore's own backend, whose connections end with the deadline."""

    def __init__(self, deadline: Deadline) -> None:
        self._deadline = deadline

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """Return a bounded connection."""
        stream = super().connect_tcp(host, port, timeout, local_address, socket_options)
        return BoundedStream(stream, self._deadline)


class BoundedStream(httpcore.NetworkStream):
    """One connection."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: Deadline) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Return what comes before the deadline."""
        return self._stream.read(max_bytes, self._deadline.within(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send; each write has its own time."""
        self._stream.write(buffer, timeout)

    def close(self) -> None:
        """Close the connection."""
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        """Return the same connection with TLS."""
        secured = self._stream.start_tls(ssl_context, server_hostname, timeout)
        return BoundedStream(secured, self._deadline)

    def get_extra_info(self, info: str) -> Any:
        """Return what the connection below knows."""
        return self._stream.get_extra_info(info)
