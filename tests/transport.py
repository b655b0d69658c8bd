"""A real SuperLink on free loopback ports over TLS, with a toy ServerApp that obeys a script.

The toy app (`tests/toy_serverapp.py`) lies on the ServerApp's PYTHONPATH: the submitted bundle
carries no code, as in production. A `Consortium` is one certificate authority and one SuperLink; a
`Site` is one key and one client thread.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from flwr.app import Context, Message

from client.fleet.client import FleetClient
from client.fleet.connection import FleetSettings, create_node_key
from client.fleet.health import Health
from common.process import free_port
from common.wire.app_bundle import write_app
from server.flower.superlink import SuperLink
from server.operator.certificates import ServerFiles, create_authority, issue_server_certificate

TOY = {"server_app": "toy_serverapp:app", "client_app": "toy_serverapp:nothing"}


def until(condition: Callable[[], Any], timeout_s: float = 240.0) -> Any:
    """Return the first true value of `condition`, asked every 20 ms; fail after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"not within {timeout_s} s: {condition}")


@dataclass
class Consortium:
    """One CA, one SuperLink, and the folder through which the toy ServerApp is told what to do."""

    folder: Path
    link: SuperLink
    url: str
    ca: Path
    orders: Path
    count: int = 0

    def site(
        self, name: str, handle: Callable[[Message, Context], Message | None], **settings: Any
    ) -> Site:
        """A registered site with a running client."""
        site = Site.create(self, name, handle, **settings)
        site.node_id = self.link.calls.register(site.folder / "node.pub", name)
        return site.start()

    def ask(
        self, node_ids: list[int], payload: bytes, timeout_s: float = 60.0
    ) -> list[dict[str, Any]]:
        """Let the running toy ServerApp send `payload` to the nodes; return what each replied."""
        self.count += 1
        order = {"nodes": node_ids, "payload": payload.hex(), "timeout_s": timeout_s}
        part = self.orders / "part"
        part.write_text(json.dumps(order))
        part.rename(self.orders / f"order-{self.count}.json")
        answer = self.orders / f"answer-{self.count}.json"
        until(answer.exists, timeout_s + 60.0)
        replies: list[dict[str, Any]] = json.loads(answer.read_text())
        return replies

    def submit(self, study: bytes = b"study: {name: toy}\n") -> tuple[int, str]:
        """Start a run of the toy app for this plan; its id and the hash that a site would pin."""
        app = self.folder / "bundle"
        shutil.rmtree(app, ignore_errors=True)
        pin = write_app(app, study, **TOY)
        run_id = self.link.calls.submit(app, **TOY)
        until((self.orders / "running").exists)
        return run_id, pin


@dataclass
class Site:
    """One site: its folder, its settings and, while started, its client."""

    folder: Path
    settings: FleetSettings
    handle: Callable[[Message, Context], Message | None]
    pins: set[str] = field(default_factory=set)
    health: Health = field(default_factory=Health)
    node_id: int = 0
    seen: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None

    @classmethod
    def create(
        cls,
        consortium: Consortium,
        name: str,
        handle: Callable[[Message, Context], Message | None],
        **settings: Any,
    ) -> Site:
        """A site with a fresh key, not registered and not started."""
        folder = consortium.folder / "sites" / name
        create_node_key(folder / "node.key", folder / "node.pub", name)
        base = FleetSettings(
            consortium.url,
            consortium.ca,
            folder / "node.key",
            folder / "fleet",
            poll_s=0.05,
            retry_first_s=0.1,
            retry_cap_s=0.5,
            refused_retry_s=0.5,
        )
        return cls(folder, replace(base, **settings), handle)

    def start(self) -> Site:
        """Run the client in a thread."""
        self.stop = threading.Event()
        client = FleetClient(self.settings, lambda: self.pins, self.handle, self.health)
        self.thread = threading.Thread(target=client.run, args=(self.stop,), daemon=True)
        self.thread.start()
        return self

    def end(self) -> None:
        """Stop the client."""
        self.stop.set()
        if self.thread is not None:
            self.thread.join(15.0)
            assert not self.thread.is_alive()

    def state(self) -> str:
        """The code of the connection's state."""
        active = self.health.get("connection")
        return active.state.code if active else ""

    def wait_state(self, code: str, timeout_s: float = 240.0) -> None:
        """Wait for a state of the connection."""
        until(lambda: self.state() == code, timeout_s)


@contextlib.contextmanager
def consortium(folder: Path) -> Iterator[Consortium]:
    """A running SuperLink."""
    authority = create_authority(folder / "ca")
    files = issue_server_certificate(authority, folder / "tls")
    orders = folder / "orders"
    orders.mkdir()
    environment = {
        "PYTHONPATH": str(Path(__file__).parent),
        "TOY_ORDERS": str(orders),
        "OMP_NUM_THREADS": "1",
    }
    port = free_port()
    with SuperLink(folder / "superlink", port, files, environment=environment) as link:
        yield Consortium(folder, link, f"https://127.0.0.1:{port}", files.ca, orders)


class Front:
    """Terminates TLS before the SuperLink, as nginx does in production.

    Its certificate can expire and be renewed.
    """

    def __init__(self, backend: str, ca: Path) -> None:
        self._backend = backend.removeprefix("https://").rsplit(":", 1)
        self._ca = ca
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"https://127.0.0.1:{self._listener.getsockname()[1]}"
        self._pairs: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def use(self, files: ServerFiles, *, wants_client: bool = False) -> None:
        """Serve with this certificate from now on; open connections are cut."""
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(files.certificate, files.key)
        if wants_client:
            self._context.verify_mode = ssl.CERT_REQUIRED
            self._context.load_verify_locations(files.ca)
        self.cut()

    def cut(self) -> None:
        """Cut every connection."""
        pairs, self._pairs = self._pairs, []
        for one in pairs:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Stop."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                raw, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(raw,), daemon=True).start()

    def _serve(self, raw: socket.socket) -> None:
        """Pass bytes both ways until one side ends."""
        outward = ssl.create_default_context(cafile=str(self._ca))
        with (
            contextlib.suppress(OSError),
            raw,
            self._context.wrap_socket(raw, server_side=True) as near,
        ):
            plain = socket.create_connection((self._backend[0], int(self._backend[1])))
            with plain, outward.wrap_socket(plain, server_hostname="localhost") as far:
                self._pairs += [near, far]
                other = threading.Thread(target=_copy, args=(far, near), daemon=True)
                other.start()
                _copy(near, far)
                other.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    """Bytes from one to the other; when one ends, both do."""
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    for one in (source, target):
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
