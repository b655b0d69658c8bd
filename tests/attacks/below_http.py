"""A hostile server below HTTP against the site's client: it is back as soon as the server is.

In: a script of raw_server.py. Out: a row, held or not.
Held means: while the script lasts the client gives the connection up by itself and asks again;
afterwards it is connected; it sent the eight calls alone.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from server.operator.certificates import create_authority, issue_server_certificate
from tests.attacks.raw_server import SCRIPTS, RawServer
from tests.attacks.rows import Row
from tests.client.fleet.running import Running
from tests.fleet_server import FleetServer

TIMEOUT_S = 0.5  # of one read of the client; four of them are an answer's whole time
MOST_S = 20.0
NAMES = tuple(SCRIPTS)


@contextmanager
def client_of_raw_server(folder: Path) -> Iterator[tuple[RawServer, Running]]:
    """Yield a server and a client that is connected to it."""
    files = issue_server_certificate(create_authority(folder / "ca"), folder / "tls")
    honest = FleetServer(files)
    server = RawServer(honest, files)
    # all that the client needs of a server is its address
    client = Running(server, files, folder / "client", timeout_s=TIMEOUT_S)  # type: ignore[arg-type]
    try:
        assert until_true(lambda: client.code() == "CONNECTED")
        yield server, client
    finally:
        server.script = None
        client.end()
        server.close()
        honest.close()


def until_true(condition: object) -> bool:
    """Whether a condition becomes true in time."""
    deadline = time.monotonic() + MOST_S
    while time.monotonic() < deadline:
        if condition():  # type: ignore[operator]
            return True
        time.sleep(0.01)
    return False


def play(name: str, server: RawServer, client: Running) -> Row:
    """Play one script for two connections, then be honest."""
    server.served = 0
    server.script = SCRIPTS[name]
    again = until_true(lambda: server.served >= 2)
    state = client.code()
    server.script = None
    back = until_true(lambda: client.code() == "CONNECTED")
    faults = []
    if not again:
        faults.append("the client does not give up")
    if not back or not client.thread.is_alive():
        faults.append(f"afterwards it is {client.code()}")
    return Row("a hostile server", name, "below HTTP", "; ".join(faults) or state, not faults)


def rows(names: Sequence[str] = NAMES) -> Iterator[Row]:
    """Play scripts one after the other."""
    with (
        tempfile.TemporaryDirectory(prefix="kohort-raw-") as folder,
        client_of_raw_server(Path(folder)) as (server, client),
    ):
        for name in names:
            yield play(name, server, client)
