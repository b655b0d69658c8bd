"""A hospital's real daemon and Fleet client, connected over TLS to a server that is hostile.

In: a folder. Out: a `Clinic`: what the server can send, and what the hospital has spent and told.
The child processes are scripted (tests/sites.py): they count how often anything was computed.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message, Metadata, RecordDict
from flwr.app.message.message import make_message

from client.daemon.site import Site
from client.fleet.app import build_app, record_of
from common.wire import signing
from common.wire.messages import Sealed, canonical, digest_of
from server.operator.certificates import create_authority, issue_server_certificate
from tests.client.fleet.running import Running
from tests.fleet_server import NODE_ID, RUN_ID, FleetServer
from tests.leaks import leaked
from tests.path_weights import START, keep_fixed
from tests.sites import Children, Hospital, make_hospital, pseudonym, scripted

ROUNDS = 4
BOUND = 10.0  # the plan's max_update_norm
PATIENTS = 16
WAIT_S = 60.0
QUIET_S = 1.0
KIND = {"train": "train", "synthesize": "query.synthesize"}
CALLS = {
    "activate-node",
    "send-node-heartbeat",
    "pull-messages",
    "push-messages",
    "get-run",
    "pull-object",
    "push-object",
    "confirm-message-received",
}


@dataclass
class Clinic:
    """One hospital and its server. `told`: what the server has heard before an attack began."""

    hospital: Hospital
    children: Children
    server: FleetServer
    site: Site
    client: Running
    honest: Sealed | None = None
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    # --- what a server can send

    def ask(self, kind: str = "train", **fields: Any) -> Sealed:
        """An instruction that the operator signed; of round 1 unless it is said."""
        defaults: dict[str, Any] = {"round": 1} if kind == "train" else {"trained": False}
        if kind == "train" and "weights" not in fields:
            defaults["weights"] = START[fields.get("model", "gan")]
        return self.hospital.ask(kind, **{**defaults, **fields})

    def sign(self, sealed: Sealed, **changes: Any) -> Sealed:
        """The same with header fields that no program of ours would write, signed all the same."""
        text = canonical(json.loads(sealed.header) | changes)
        return self.sign_text(text, sealed.payload)

    def sign_text(self, text: bytes, payload: bytes) -> Sealed:
        """Any bytes as a header, signed by the operator."""
        key = self.hospital.operator
        return Sealed(text, payload, signing.sign(key, signing.MESSAGE, text))

    def with_payload(self, payload: bytes) -> Sealed:
        """An instruction with this payload."""
        asked = self.ask()
        text = canonical(json.loads(asked.header) | {"digest": digest_of(payload)})
        return self.sign_text(text, payload)

    def message(self, content: RecordDict | Sealed, kind: str = "train", **more: Any) -> Message:
        """A Flower message of this content; each is another one."""
        record = record_of(content) if isinstance(content, Sealed) else content
        values: dict[str, Any] = {
            "run_id": RUN_ID,
            "message_id": "",
            "src_node_id": 1,
            "dst_node_id": NODE_ID,
            "reply_to_message_id": "",
            # two messages with one content are one message to Flower
            "group_id": str(next(self.numbers)),
            "created_at": time.time(),
            "ttl": 600.0,
            "message_type": kind,
        }
        return make_message(Metadata(**(values | more)), record)

    def deliver(self, message: Message, tamper: Any = None, wait_s: float = WAIT_S) -> str:
        """Send a message; return the code of its answer, `answered`, or `silence`."""
        message_id, _ = self.server.queue(message, tamper=tamper)
        return self.answer_to(message_id, wait_s)

    def answer_to(self, message_id: str, wait_s: float = WAIT_S) -> str:
        """What the hospital answers to a message within a time."""
        deadline = time.monotonic() + wait_s
        while time.monotonic() < deadline:
            for reply in self.server.replies():
                if reply.metadata.reply_to_message_id == message_id:
                    return str(reply.error.reason) if reply.HasField("error") else "answered"
            time.sleep(0.02)
        return "silence"

    def reaches(self, code: str) -> str:
        """Wait for a state of the connection; return it, or the one that it is in."""
        deadline = time.monotonic() + WAIT_S
        while self.client.code() != code and time.monotonic() < deadline:
            time.sleep(0.01)
        return self.client.code()

    # --- what the hospital has done

    def spent(self) -> tuple[int, int, tuple[tuple[str, bytes], ...]]:
        """Children that ran, lines of the ledger, and the outbox byte for byte."""
        boxes = [p for p in self.site.state.outbox.rglob("*") if p.is_file()]
        content = tuple((path.name, path.read_bytes()) for path in sorted(boxes))
        return self.children.runs, len(self.site.ledger().rows()), content

    def heard(self) -> bytes:
        """Every byte of content that the server has heard."""
        return b"\n".join(
            [*(data for _, _, data in self.server.calls), *self.server.pushed.values()]
        )

    def secrets(self) -> list[str]:
        """What must not leave: pseudonyms, and where things lie."""
        names = [pseudonym(patient) for patient in range(PATIENTS)]
        return [*names, str(self.hospital.root), "index.sqlite"]

    def asked_honestly(self) -> str:
        """What an honest question gets: its stored answer."""
        assert self.honest is not None
        return self.deliver(self.message(self.honest))

    def leaks(self) -> list[str]:
        """What left that must not, and calls that the client must never make."""
        strange = sorted(set(self.server.names()) - CALLS)
        return leaked(self.secrets(), self.heard()) + strange


@contextmanager
def clinic(folder: Path, **settings: Any) -> Iterator[Clinic]:
    """Yield a hospital that has answered rounds 0 and 2 of its first model."""
    with pytest.MonkeyPatch.context() as patch:
        hospital = make_hospital(
            folder / "hospital",
            weights=START,
            models__gan__rounds=ROUNDS,
            models__gan__trainable=["critic.a"],
            models__glow__rounds=ROUNDS,
        )
        children = scripted(patch, hospital.study)
        children.change = keep_fixed
        files = issue_server_certificate(create_authority(folder / "ca"), folder / "tls")
        server = FleetServer(files)
        site = hospital.site(review="not_required")
        small = {"max_message_bytes": 1 << 20, "max_objects": 64, "timeout_s": 1.0, **settings}
        handle = build_app(site.answer)
        client = Running(server, files, folder / "client", handle, site.admit, **small)
        found = Clinic(hospital, children, server, site, client)
        try:
            found.honest = found.ask(round=0)
            assert found.deliver(found.message(found.honest)) == "answered"
            assert found.deliver(found.message(found.ask(round=2))) == "answered"
            yield found
        finally:
            client.end()
            server.close()


Act = Callable[[Clinic], str]
ANSWERED = "answered"


@dataclass(frozen=True)
class Case:
    """One attack of a server: what it does, and the outcomes that are in order.

    `after`: what an honest question gets afterwards.
    """

    attack: str
    act: Act
    expected: tuple[str, ...]
    door: str
    after: str = ANSWERED
