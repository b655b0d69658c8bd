"""The keys `metrics` and `health` of site.yaml and server.yaml: both are off unless named.

Guarantees: nothing listens but on this machine's loopback interface, or on a socket in a folder.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from pydantic import Field, field_validator

from common.config import FrozenModel

LOOPBACK = re.compile(r"(127\.0\.0\.1|\[::1\]):([0-9]{1,5})")
UNIX = "unix:"
SOCKET_BYTES = 100  # the kernel takes 107, with the bytes that a library adds
LAST_PORT = 65_535


class Address(NamedTuple):
    """A host of this machine alone, and a port."""

    host: str
    port: int


def loopback(text: str) -> Address:
    """Return the address in `127.0.0.1:PORT` or `[::1]:PORT`; raises ValueError for any other."""
    found = LOOPBACK.fullmatch(text)
    if found is None or not 0 < int(found[2]) <= LAST_PORT:
        raise ValueError(f"expected 127.0.0.1:PORT or [::1]:PORT, this machine alone, got {text!r}")
    return Address(found[1].strip("[]"), int(found[2]))


class MetricsSettings(FrozenModel):
    """Where Prometheus finds the metrics. They are off unless one of the two is named."""

    listen: str | None = Field(
        default=None,
        description="127.0.0.1:PORT or [::1]:PORT on which http://…/metrics answers; null: off",
    )
    textfile: str | None = Field(
        default=None,
        pattern=r"^/.*\.prom$",
        max_length=4096,
        description="path that ends in .prom, for node_exporter's textfile collector, written "
        "every 15 seconds and readable for everybody on this machine; null: off",
    )

    @field_validator("listen")
    @classmethod
    def _stay_here(cls, text: str | None) -> str | None:
        if text is not None:
            loopback(text)
        return text

    @property
    def is_on(self) -> bool:
        """Whether one of the two is named."""
        return self.listen is not None or self.textfile is not None


class HealthSettings(FrozenModel):
    """Where the standard gRPC health service (grpc.health.v1) answers. It is off unless named."""

    listen: str | None = Field(
        default=None,
        description="unix:/PATH of a socket, or 127.0.0.1:PORT or [::1]:PORT, for the probes of "
        "containers and for `probe`; null: off",
    )

    @field_validator("listen")
    @classmethod
    def _stay_here(cls, text: str | None) -> str | None:
        if text is None:
            return None
        path = text.removeprefix(UNIX)
        if path == text:
            loopback(text)
        elif not path.startswith("/") or len(path.encode()) > SOCKET_BYTES or "\0" in path:
            raise ValueError(
                f"expected unix:/PATH of at most {SOCKET_BYTES} bytes, got {text[:200]!r}"
            )
        return text
