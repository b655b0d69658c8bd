"""A Fleet client in a thread of a test, with what its handler saw."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, Context, Message, RecordDict

from client.fleet.client import FleetClient
from client.fleet.connection import FleetSettings, create_node_key
from client.fleet.health import Health
from server.operator.certificates import (
    ServerFiles,
)
from tests.fleet_server import PIN, FleetServer
from tests.transport import until

MARKER = "PATIENT-MUELLER"


def admit_all(header: bytes, signature: bytes, size_bytes: int) -> None:
    """Take every header."""


class Running:
    """A client in a thread, with what its handler saw."""

    def __init__(
        self,
        server: FleetServer,
        files: ServerFiles,
        folder: Path,
        handle: Any = None,
        admit: Any = None,
        **more: Any,
    ) -> None:
        self.folder, self.seen, self.health = folder, [], Health()
        if not (folder / "node.key").exists():
            create_node_key(folder / "node.key", folder / "node.pub", "site")
        fast: dict[str, Any] = {
            "poll_s": 0.02,
            "retry_first_s": 0.05,
            "retry_cap_s": 0.1,
            "refused_retry_s": 0.2,
        }
        self.settings = FleetSettings(
            **{
                "url": server.url,
                "ca_file": files.ca,
                "node_key_file": folder / "node.key",
                "state_dir": folder / "fleet",
            }
            | fast
            | more
        )
        self._handle = handle or self.echo
        self._admit = admit or admit_all
        self.pins = {PIN}
        self.stop = threading.Event()
        self.client = FleetClient(
            self.settings, lambda: self.pins, self._watched, self.health, admit=self._admit
        )
        self.thread = threading.Thread(target=self.client.run, args=(self.stop,), daemon=True)
        self.thread.start()

    @staticmethod
    def echo(message: Message, context: Context) -> Message:
        """The payload, backwards."""
        array = next(iter(message.content.array_records["payload"].values())).numpy()
        return Message(RecordDict({"payload": ArrayRecord([array[::-1].copy()])}), reply_to=message)

    def _watched(self, message: Message, context: Context) -> Message | None:
        self.seen.append((message, context))
        reply: Message | None = self._handle(message, context)
        return reply

    def end(self) -> None:
        self.stop.set()
        self.thread.join(15)
        assert not self.thread.is_alive()

    def code(self, subject: str = "connection") -> str:
        active = self.health.get(subject)
        return active.state.code if active else ""

    def waiting(self) -> list[Path]:
        return sorted((self.folder / "fleet" / "inbox").glob("*"))


def error_of(server: FleetServer) -> tuple[int, str]:
    """The first reply must be an error: its code and reason."""
    reply = until(lambda: server.replies())[0]
    assert reply.HasField("error")
    return reply.error.code, reply.error.reason
