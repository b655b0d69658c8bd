"""The Fleet client under faults: its real loops, inbox and daemon, before a server in this process.

In: a `Network`, which may be cut, slow, or deliver twice and out of order, in simulated seconds.
Out: scenarios for the points of the inbox, and one for each fault of the network.
Guarantees: the client's code is the product's, but for the wire itself (client/fleet/wire.py).
Not covered: TLS; certificates are in tests/faults/certificates.py.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from flwr.app import Message, Metadata, RecordDict
from flwr.app.message.message import make_message, remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto import fleet_pb2, message_pb2
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)

from client.fleet import health as states
from client.fleet.app import build_app, record_of, sealed_of
from client.fleet.client import FleetClient
from client.fleet.connection import create_node_key
from client.fleet.failures import CallFailed
from client.fleet.health import Health
from client.fleet.settings import fleet_settings
from client.fleet.wire import PulledMessage, Reply, inflate_object
from common.wire.messages import Header, Sealed
from server.operator.certificates import create_authority, issue_site_certificate
from tests.faults import clocks
from tests.faults.hospital import Hospital, Life, approve
from tests.faults.lives import Folders, Log
from tests.faults.runs import Outcome, Stage
from tests.sequences.numerics import Numerics
from tests.sites import SITE

NODE_ID, RUN_ID = 77, 5
REASK_S = 900.0  # after which a silent site is asked again
ASKED = (("train", "gan", 0), ("train", "gan", 1), ("train", "glow", 0))
LIMIT_S = 60.0  # of real time for a whole life


class Stop(threading.Event):
    """A stop whose waits pass in simulated time."""

    def wait(self, timeout: float | None = None) -> bool:
        """Let the seconds pass at once, and other threads work."""
        if timeout and not self.is_set():
            with LOCK:
                clocks.now.monotonic_s += timeout
        return super().wait(0.001)


LOCK = threading.Lock()


@dataclass(frozen=True)
class Weather:
    """What the network does: cut for some seconds at a call; slow; twice; out of order."""

    name: str = "good"
    cut_s: float = 0.0
    at_call: int = -1
    slow_tries: int = 0
    twice: bool = False
    stale: bool = False


@dataclass
class Network:
    """The server's side: the questions in order, each until its answer is whole."""

    life: Life
    weather: Weather
    stop: Stop
    pin: str
    calls: int = 0
    _cut_until: float = -1.0
    _queue: list[Any] = field(default_factory=list)
    _objects: dict[str, bytes] = field(default_factory=dict)
    _pushed: dict[str, bytes] = field(default_factory=dict)
    _shells: dict[str, Any] = field(default_factory=dict)
    _tries: dict[str, int] = field(default_factory=dict)
    _asked_s: float = -REASK_S
    _old: list[Any] = field(default_factory=list)

    def call(self) -> None:
        """One request: it fails while the connection is cut."""
        self.calls += 1
        if self.calls == self.weather.at_call:
            self._cut_until = time.monotonic() + self.weather.cut_s
        if time.monotonic() < self._cut_until:
            raise CallFailed(states.NOTHING_LISTENS)

    # --- the questions ----------------------------------------------------------------------------

    def left(self) -> list[tuple[str, str, int]]:
        """The questions without an answer."""
        answered = {entry["key"] for entry in self.life.log.read("answered")}
        return [one for one in ASKED if "/".join(map(str, one)) not in answered]

    def ask(self) -> None:
        """Queue the first open question, again where its site was silent for long."""
        if time.monotonic() - self._asked_s < REASK_S:
            return
        self._asked_s = time.monotonic()
        sealed = self.life.instruct(*self.left()[0])
        self._deliver(sealed)
        if self.weather.twice:
            self._queue.append(self._queue[-1])
        if self.weather.stale and self._old:
            self._queue.insert(0, self._old[0])
        self._old.append(self._queue[-1])

    def _deliver(self, sealed: Sealed) -> None:
        """Queue one instruction."""
        metadata = Metadata(
            run_id=RUN_ID, message_id="", src_node_id=1, dst_node_id=NODE_ID,
            reply_to_message_id="", group_id="", created_at=time.time(), ttl=3600.0,
            message_type="train" if b'"train"' in sealed.header else "query.synthesize",
        )  # fmt: skip
        message = make_message(metadata=metadata, content=record_of(sealed))
        with no_object_id_recompute():
            for object_id, nested in get_all_nested_objects(message).items():
                self._objects[object_id] = nested.deflate()
            tree = get_object_tree(message)
        shell = message_to_proto(remove_content_from_message(message))
        shell.metadata.message_id = tree.object_id
        self._queue.append(
            fleet_pb2.PullMessagesResponse(messages_list=[shell], message_object_trees=[tree])
        )

    # --- the eight calls --------------------------------------------------------------------------

    def pull_message(self) -> PulledMessage | None:
        """The next message; a new one is asked when there is none."""
        if not self.left():
            self.stop.set()
            return None
        self.ask()
        return PulledMessage(self._queue.pop(0)) if self._queue else None

    def pull_object(self, object_id: str) -> Any:
        """An object; a slow server has it only after some tries."""
        self._tries[object_id] = self._tries.get(object_id, 0) + 1
        there = self._tries[object_id] > self.weather.slow_tries
        return message_pb2.PullObjectResponse(
            object_found=True,
            object_available=there,
            object_content=self._objects[object_id] if there else b"",
        )

    def push_reply(self, reply: Reply) -> Any:
        """The shell of a reply."""
        request = reply.request
        tree = request.message_object_trees[0]
        self._shells[tree.object_id] = request.messages_list[0]
        ids = list(ids_of(tree))
        self._finish(tree.object_id, ids)
        missing = [one for one in ids if one not in self._pushed]
        return fleet_pb2.PushMessagesResponse(objects_to_push=missing, session_id="s")

    def push_object(self, object_id: str, content: bytes) -> bool:
        """An object of a reply; a slow server's window closes once."""
        if self.weather.slow_tries and self._tries.setdefault(f"push {object_id}", 0) == 0:
            self._tries[f"push {object_id}"] = 1
            return False
        self._pushed[object_id] = content
        for root, (ids, _) in list(self._open.items()):
            self._finish(root, ids)
        return True

    @property
    def _open(self) -> dict[str, tuple[list[str], Any]]:
        """The replies whose objects are not all here."""
        return self.__dict__.setdefault("_opened", {})

    def _finish(self, root: str, ids: list[str]) -> None:
        """Take a reply whose objects are all here."""
        shell = self._shells[root]
        if shell.HasField("error"):
            self.life.log.note("error", code=shell.error.reason)
            return
        self._open[root] = (ids, shell)
        if set(ids) - set(self._pushed):
            return
        del self._open[root]
        message: Any = inflate_object(root, {one: self._pushed[one] for one in ids})
        content = message.content if isinstance(message, Message) else message
        assert isinstance(content, RecordDict)
        sealed = sealed_of(content)
        header = Header.model_validate_json(sealed.header)
        self.life.receive(sealed)
        key = f"{header.phase}/{header.model}/{header.round}"
        if key not in {entry["key"] for entry in self.life.log.read("answered")}:
            self.life.log.note("answered", key=key)
            self._asked_s = -REASK_S + time.monotonic()


def ids_of(tree: Any) -> list[str]:
    """Return the ids of an object tree."""
    found = [tree.object_id]
    for child in tree.children:
        found += ids_of(child)
    return found


@dataclass
class PeerWire:
    """Stands for client/fleet/wire.py: the same calls, into a `Network`."""

    network: Network

    def activate(self) -> int:
        self.network.call()
        return NODE_ID

    def send_heartbeat(self, node_id: int) -> bool:
        self.network.call()
        return True

    def pull_message(self, node_id: int) -> PulledMessage | None:
        self.network.call()
        return self.network.pull_message()

    def app_hash(self, node_id: int, run_id: int) -> str:
        self.network.call()
        return self.network.pin

    def pull_object(self, node_id: int, run_id: int, object_id: str) -> Any:
        self.network.call()
        return self.network.pull_object(object_id)

    def confirm(self, node_id: int, run_id: int, message_id: str) -> None:
        self.network.call()

    def push_reply(self, node_id: int, reply: Reply) -> Any:
        self.network.call()
        return self.network.push_reply(reply)

    def push_object(
        self, node_id: int, run_id: int, object_id: str, session_id: str, content: bytes
    ) -> bool:
        self.network.call()
        return self.network.push_object(object_id, content)

    def close(self) -> None:
        """Nothing is open."""


@dataclass
class Inbox(Hospital):
    """One scenario: questions through the Fleet client, in some weather."""

    weather: Weather = field(default_factory=Weather)
    heals_after: int = 5
    watched: Sequence[str] = ("state/fleet",)
    faults_met: Sequence[str] = ("kill -9", "power cut", "disk", "network")

    def prepare(self, folders: Folders) -> None:
        """Make the hospital, and its files for TLS."""
        super().prepare(folders)
        state = folders.home / "state"
        authority = create_authority(folders.home / "ca")
        create_node_key(state / "keys" / "node.key", state / "keys" / "node.pub", SITE)
        line = (state / "keys" / "node.pub").read_text()
        issue_site_certificate(authority, SITE, line, state / "node.crt")
        (state / "ca.crt").write_bytes((folders.home / "ca" / "ca.crt").read_bytes())
        (state / "fleet").mkdir()

    def play(self, home: Path, log: Log) -> None:
        """One life of the Fleet client."""
        numerics = Numerics(self.world, self.account(log))
        with ExitStack() as stack:
            self._install(stack, numerics, log)
            clocks.install(stack)
            site = self._start(home / "state")
            stop = Stop()
            (pin,) = site.plans.pins()
            network = Network(Life(self, site, home, log), self.weather, stop, pin)
            wire = patch("client.fleet.session.Wire", lambda *_: PeerWire(network))
            stack.enter_context(wire)
            settings = fleet_settings(site.state, site.config, site.membership)
            client = FleetClient(
                settings, site.plans.pins, build_app(site.answer), Health(), admit=site.admit
            )
            threading.Thread(target=end_late, args=(stop,), daemon=True).start()
            client.run(stop)
            left = network.left()
            assert not left, f"unanswered: {left}"

    def faults(self, folders: Folders) -> list[str]:
        """The same as for a hospital, and every question has its answer."""
        left = list((folders.home / "state" / "fleet" / "inbox").glob(".part-*"))
        found = super().faults(folders)
        return [*found, f"half a message: {left}"] if left else found


def end_late(stop: Stop) -> None:
    """End a life that does not come to its end."""
    threading.Event().wait(LIMIT_S)
    stop.set()


def weathers() -> list[Weather]:
    """Return every fault of the network, cut at calls of every kind."""
    found = []
    for cut, seconds in (("5 s", 5.0), ("90 s", 90.0), ("6 min", 360.0)):
        for call in (1, 3, 5, 9, 14, 17, 19, 22, 30):
            found.append(Weather(f"cut for {cut}", seconds, call))
    found += [Weather("slow peer", slow_tries=tries) for tries in (1, 3)]
    found += [Weather("delivered twice", twice=True), Weather("an old one again", stale=True)]
    return found


def scenarios() -> list[Inbox]:
    """Return the scenario whose points are met with every fault of a disk."""
    return [inbox(Weather())]


def inbox(weather: Weather) -> Inbox:
    """Return the questions in some weather."""
    return Inbox("inbox", "random", (), before=(approve,), weather=weather)


def storms(stage: Stage, stride: int = 1, first: int = 0) -> Iterator[Outcome]:
    """Answer every question in every weather."""
    good = stage.scenario.weather
    for weather in weathers()[first::stride]:
        stage.scenario.weather = weather
        life = stage.run()
        stage.scenario.weather = good
        wrong = "" if life.end == "complete" else f"{life.end} {life.code}"
        wrong = wrong or "; ".join(stage.scenario.faults(stage.folders))
        point = f"call {weather.at_call}" if weather.cut_s else f"{weather.slow_tries or ''}"
        yield Outcome(weather.name, stage.scenario.name, point, wrong or "complete", wrong)
