"""A real SuperLink behind the embedded front, with a toy ServerApp that obeys a script.

A copy of the toy app (`tests/toy_serverapp.py`) lies on the ServerApp's PYTHONPATH: the submitted
bundle carries no code, as in production. A `Consortium` is one certificate authority, one SuperLink
and one front; a `Site` is one key and one client thread.
"""

from __future__ import annotations

import contextlib
import json
import shutil
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
from common.wire import signing
from common.wire.app_bundle import write_app
from server.flower.superlink import SuperLink
from server.front.port import FrontDoor, open_port
from server.operator.certificates import (
    create_authority,
    issue_server_certificate,
    issue_site_certificate,
    load_authority,
)
from server.operator.requests import Request
from server.operator.sites import Registry
from server.operator.state import ServerState

STUDY = b"study: {name: toy}\n"
TOY = {"server_app": "toy_serverapp:app", "client_app": "toy_serverapp:nothing"}


def until(condition: Callable[[], Any], timeout_s: float = 240.0, every_s: float = 0.02) -> Any:
    """Return the first true value of `condition`, asked every `every_s`; fail after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(every_s)
    raise AssertionError(f"not within {timeout_s} s: {condition}")


@dataclass
class Consortium:
    """One CA, one SuperLink, and the folder through which the toy ServerApp is told what to do."""

    folder: Path
    link: SuperLink
    url: str
    ca: Path
    orders: Path
    state: ServerState
    count: int = 0

    def site(
        self, name: str, handle: Callable[[Message, Context], Message | None], **settings: Any
    ) -> Site:
        """A registered site with a running client."""
        site = Site.create(self, name, handle, **settings)
        self.enrol(site)
        return site.start()

    def enrol(self, site: Site) -> None:
        """Admit a site as the operator does: registry, certificate, Flower's node."""
        public = (site.folder / "node.pub").read_text()
        sign_key = signing.public_text(signing.new_key().public_key())
        registry = Registry(self.state.sites)
        registry.enrol(
            Request(
                format="kohort-request/1",
                site=site.folder.name,
                node_key=public,
                sign_key=sign_key,
                signature="",
            )
        )
        registry.close()
        certificate = site.folder / "node.crt"
        issue_site_certificate(
            load_authority(self.state.authority), site.folder.name, public, certificate
        )
        site.settings = replace(site.settings, client_certificate=certificate)
        site.node_id = self.link.calls.register(site.folder / "node.pub", site.folder.name)

    def revoke(self, name: str) -> None:
        """Revoke a site in the registry, as `kohort-server sites revoke` does."""
        registry = Registry(self.state.sites)
        registry.revoke(name)
        registry.close()

    def reload_front(self) -> None:
        """Let the front read its certificate again."""
        self.link.reload_front()

    def ask(
        self, node_ids: list[int], payload: bytes, timeout_s: float = 240.0
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

    def submit(self) -> tuple[int, str]:
        """Start a run of the toy app; its id and the hash that a site would pin."""
        app = self.folder / "bundle"
        pin = write_app(app, STUDY, **TOY)
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

    def admit(self, header: bytes, signature: bytes, size_bytes: int) -> None:
        """Take every header: the toy signs nothing."""

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
        client = FleetClient(
            self.settings, lambda: self.pins, self.handle, self.health, admit=self.admit
        )
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
    """A running SuperLink behind the embedded front."""
    state = ServerState(folder / "server")
    authority = create_authority(state.authority)
    files = issue_server_certificate(authority, state.tls)
    Registry(state.sites).close()
    orders = folder / "orders"
    orders.mkdir()
    toy = folder / "toy"
    toy.mkdir()
    shutil.copy(Path(__file__).parent / "toy_serverapp.py", toy)
    environment = {"PYTHONPATH": str(toy), "TOY_ORDERS": str(orders), "OMP_NUM_THREADS": "1"}
    pin = write_app(folder / "bundle", STUDY, **TOY)
    with open_port("127.0.0.1", 0) as listener:
        link = SuperLink(
            state.superlink,
            pin,
            app=TOY["server_app"],
            front=FrontDoor(state.root, listener),
            environment=environment,
        )
        with link:
            url = f"https://127.0.0.1:{listener.getsockname()[1]}"
            yield Consortium(folder, link, url, files.ca, orders, state)
