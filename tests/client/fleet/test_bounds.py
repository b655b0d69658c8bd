"""What a server can make a site store: at most two instructions, each signed by its operator."""

from __future__ import annotations

import errno
import importlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict

from client.fleet import client as fleet_client
from client.fleet.client import MOST_INSTRUCTIONS, MOST_MESSAGES
from client.fleet.inbox import Inbox
from common.errors import EnvironmentFault
from common.wire import signing
from common.wire.messages import Sealed
from server.operator.certificates import ServerFiles
from tests.client.fleet.running import Running, error_of
from tests.fleet_server import FleetServer, instruction
from tests.sites import Hospital, make_hospital
from tests.transport import until

MIB = 1 << 20


@pytest.fixture
def hospital(tmp_path: Path) -> Hospital:
    return make_hospital(tmp_path / "hospital")


def signed(sealed: Sealed, **more: Any) -> Message:
    """A sealed message as a ServerApp would send it."""
    payload = np.frombuffer(sealed.payload, np.uint8)
    return instruction(payload, header=sealed.header, signature=sealed.signature, **more)


class Busy(Running):
    """A client that admits as the hospital's daemon does; its handler waits for `release`."""

    def __init__(
        self, server: FleetServer, files: ServerFiles, folder: Path, hospital: Hospital, **more: Any
    ) -> None:
        self.release = threading.Event()
        self.at_work = threading.Event()
        super().__init__(server, files, folder, self._wait, hospital.site().admit, **more)

    def _wait(self, message: Message, context: Context) -> Message:
        self.at_work.set()
        self.release.wait(20)
        return self.echo(message, context)

    def end(self) -> None:
        self.release.set()
        super().end()


@pytest.fixture
def busy(
    server: FleetServer, files: ServerFiles, tmp_path: Path, hospital: Hospital
) -> Iterator[Busy]:
    """A site with one instruction at work."""
    site = Busy(server, files, tmp_path, hospital)
    server.queue(signed(hospital.ask("train")))
    assert site.at_work.wait(20)
    yield site
    site.end()


def refusals(server: FleetServer) -> list[tuple[int, str]]:
    """The codes that the server got."""
    return [(one.error.code, one.error.reason) for one in server.replies() if one.HasField("error")]


def pulled_bytes(server: FleetServer) -> int:
    """How many bytes of objects were pulled."""
    asked = [request.object_id for name, request, _ in server.calls if name == "pull-object"]
    return sum(len(server._objects[one]) for one in asked)


def test_of_unsigned_instructions_nothing_is_stored(
    server: FleetServer, busy: Busy, hospital: Hospital
) -> None:
    stored = busy.waiting()
    before = pulled_bytes(server)
    for number in range(60):
        payload = np.full(2 * MIB, number, np.uint8)
        server.queue(instruction(payload, header=b"{}", signature=b"none"))
    until(lambda: len(refusals(server)) == 60)
    assert set(refusals(server)) == {(2, "E-REFUSED")}
    assert busy.waiting() == stored
    assert pulled_bytes(server) - before < MIB
    assert busy.code("message") == "INSTRUCTION-REFUSED"


def test_what_another_operator_signed_is_refused(
    server: FleetServer, busy: Busy, hospital: Hospital
) -> None:
    stored = busy.waiting()
    server.queue(signed(hospital.ask("train", key=signing.new_key())))
    until(lambda: refusals(server) == [(2, "E-REFUSED")])
    assert busy.waiting() == stored


def test_a_signature_of_another_header_is_refused(
    server: FleetServer, busy: Busy, hospital: Hospital
) -> None:
    first, second = hospital.ask("train"), hospital.ask("train", model="glow")
    stored = busy.waiting()
    server.queue(signed(first._replace(signature=second.signature)))
    until(lambda: refusals(server) == [(2, "E-REFUSED")])
    assert busy.waiting() == stored


def test_of_a_thousand_old_instructions_two_are_stored(
    server: FleetServer, busy: Busy, hospital: Hospital
) -> None:
    old = hospital.ask("train")
    for _ in range(1000):
        server.queue(signed(old))
    until(lambda: len(busy.waiting()) == MOST_INSTRUCTIONS)
    # the loop turns many times more, and pulls nothing
    asked = server.names().count("pull-messages")
    assert not busy.stop.wait(0.5)
    assert server.names().count("pull-messages") == asked
    assert len(busy.waiting()) == MOST_INSTRUCTIONS
    assert len(server._queue) == 999


def test_what_waits_at_the_server_is_answered_once_there_is_room(
    server: FleetServer, busy: Busy, hospital: Hospital
) -> None:
    # an honest server asks again, and another study asks as well
    ids = [server.queue(signed(hospital.ask("train")))[0] for _ in range(5)]
    ids.append(server.queue(signed(hospital.ask("train", model="glow")))[0])
    until(lambda: len(busy.waiting()) == MOST_INSTRUCTIONS)
    busy.release.set()
    until(lambda: len(server.replies()) == 7 and not busy.waiting())
    answered = [reply.metadata.reply_to_message_id for reply in server.replies()]
    assert answered[1:] == ids
    assert refusals(server) == []


def test_a_site_without_room_still_learns_that_the_server_is_gone(
    server: FleetServer, busy: Busy, hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_client, "IDLE_POLL_S", 0.05)
    server.queue(signed(hospital.ask("train")))
    until(lambda: len(busy.waiting()) == MOST_INSTRUCTIONS)
    server.instead["send-node-heartbeat"] = lambda request: (503, {}, b"")
    until(lambda: busy.code() == "SERVER-BUSY")
    server.instead.clear()
    until(lambda: busy.code() == "CONNECTED")


def test_a_message_that_comes_twice_is_pulled_and_handled_once(
    server: FleetServer, files: ServerFiles, tmp_path: Path, hospital: Hospital
) -> None:
    site = Busy(server, files, tmp_path, hospital)
    message = signed(hospital.ask("train"))
    server.queue(message)
    assert site.at_work.wait(20)
    pulled = server.names().count("pull-object")
    server.queue(message)
    until(lambda: server.names().count("confirm-message-received") == 2)
    assert server.names().count("pull-object") == pulled
    # a third one, which would be handled after it
    site.release.set()
    server.queue(signed(hospital.ask("train", model="glow")))
    until(lambda: len(server.replies()) == 2 and not site.waiting())
    site.end()
    assert len(site.seen) == 2


def test_replies_that_cannot_be_sent_stop_the_pulling(
    server: FleetServer, files: ServerFiles, tmp_path: Path
) -> None:
    server.instead["push-messages"] = lambda request: (503, {}, b"")
    site = Running(server, files, tmp_path)
    for _ in range(8):
        server.queue(instruction())
    until(lambda: len(site.seen) == MOST_MESSAGES)
    assert not site.stop.wait(0.5)
    assert len(site.waiting()) == MOST_MESSAGES
    assert len(server._queue) == 8 - MOST_MESSAGES
    server.instead.clear()
    until(lambda: len(site.seen) == 8 and not site.waiting())
    site.end()


def test_what_was_asked_goes_when_the_reply_is_stored(
    server: FleetServer, files: ServerFiles, tmp_path: Path
) -> None:
    server.instead["push-messages"] = lambda request: (503, {}, b"")
    site = Running(server, files, tmp_path)
    server.queue(instruction())
    until(lambda: "push-messages" in server.names())
    assert {path.name for path in site.waiting()[0].iterdir()} == {
        "message",
        "reply",
        "reply.objects",
    }
    site.end()


@pytest.mark.parametrize("what", ["an instruction", "a reply"])
def test_the_quota_of_the_inbox_holds(
    what: str, server: FleetServer, files: ServerFiles, tmp_path: Path
) -> None:
    def answer(message: Message, context: Context) -> Message:
        large = np.zeros(300_000, np.uint8)
        return Message(RecordDict({"payload": ArrayRecord([large])}), reply_to=message)

    site = Running(server, files, tmp_path, answer, inbox_bytes=200_000)
    size_bytes = 200_000 if what == "an instruction" else 10
    server.queue(instruction(np.arange(size_bytes, dtype=np.uint32).view(np.uint8)[:size_bytes]))
    if what == "an instruction":
        assert error_of(server) == (2, "E-INBOX-FULL")
    until(lambda: site.code("message") == "INBOX-FULL" and not site.waiting())
    assert len(site.seen) == (what == "a reply")
    site.end()


# --- odd messages ---------------------------------------------------------------------------------


def without_header() -> Message:
    message = instruction()
    message.content = RecordDict({"payload": message.content["payload"]})
    return message


def with_more(name: str) -> Message:
    message = instruction()
    message.content[name] = ConfigRecord({"header": b"h"})
    return message


def with_header(value: Any) -> Message:
    message = instruction()
    message.content["sealed"] = ConfigRecord({"header": value, "signature": b"s"})
    return message


def with_array(array: Array, name: str = "payload") -> Message:
    message = instruction()
    message.content["payload"] = ArrayRecord({name: array})
    return message


def lying(shape: tuple[int, ...], dtype: str = "uint8", size_bytes: int = 3 * MIB) -> Array:
    """An array that declares another size than its chunks have."""
    return Array(dtype=dtype, shape=shape, stype="numpy.ndarray", data=bytes(range(256)) * 12288)


# made when the test runs, because a message expires
ODD: dict[str, tuple[Callable[[], Message], str]] = {
    "no header object": (lambda: without_header(), "E-RECORD"),
    "one record more": (lambda: with_more("more"), "E-RECORD"),
    "a header that is text": (lambda: with_header("h"), "E-RECORD"),
    "a header of 4 MiB": (lambda: with_header(bytes(4 * MIB)), "E-MESSAGE-TOO-LARGE"),
    "a payload under another name": (
        lambda: with_array(Array(np.zeros(3, np.uint8)), "x"),
        "E-RECORD",
    ),
    "numbers for bytes": (lambda: with_array(Array(np.zeros(3, np.float32))), "E-RECORD"),
    "two dimensions": (lambda: with_array(lying((3, 3))), "E-MESSAGE-CORRUPT"),
    "less than no bytes": (lambda: with_array(lying((-1,))), "E-RECORD"),
    "more bytes than declared": (lambda: with_array(lying((10,))), "E-MESSAGE-TOO-LARGE"),
    "more declared than allowed": (lambda: with_array(lying((1 << 40,))), "E-MESSAGE-TOO-LARGE"),
}


@pytest.mark.parametrize("what", ODD)
def test_of_an_odd_message_nothing_is_stored(
    what: str, server: FleetServer, files: ServerFiles, tmp_path: Path
) -> None:
    make, code = ODD[what]
    site = Running(server, files, tmp_path, max_message_bytes=8 * MIB)
    server.queue(make())
    assert error_of(server) == (2, code)
    assert site.seen == []
    assert site.waiting() == []
    if what != "more bytes than declared":
        assert pulled_bytes(server) < 5 * MIB
        assert "confirm-message-received" not in server.names()
    site.end()


def test_the_order_of_the_objects_does_not_matter(server: FleetServer, site: Running) -> None:
    server.queue(instruction())
    tree = server._queue[0].message_object_trees[0]
    # all of them at the top, children last
    flat = [child.object_id for child in walk(tree)][::-1]
    del tree.children[:]
    for object_id in flat:
        tree.children.add(object_id=object_id)
    until(lambda: server.pushed and not site.waiting())
    assert len(site.seen) == 1


def test_an_object_that_was_not_announced_is_not_pulled(server: FleetServer, site: Running) -> None:
    server.queue(instruction())
    del server._queue[0].message_object_trees[0].children[:]
    assert error_of(server) == (2, "E-MESSAGE-CORRUPT")
    assert server.names().count("pull-object") == 1
    assert site.waiting() == []


def walk(tree: Any) -> Iterator[Any]:
    """Everything below a node."""
    for child in tree.children:
        yield child
        yield from walk(child)


def test_a_shell_without_end_is_cut_off(server: FleetServer, site: Running) -> None:
    server.queue(instruction())
    server._queue[0].messages_list[0].metadata.group_id = "x" * (2 * MIB)
    until(lambda: site.code() == "ANSWER-TOO-LARGE")
    server.queue(instruction())
    until(lambda: server.pushed and not site.waiting())
    assert len(server.replies()) == 1


def fail_at_first(monkeypatch: pytest.MonkeyPatch, where: str, times: int) -> None:
    """Let a function meet a full disk so many times."""
    left = [times]
    module, _, name = where.rpartition(".")
    target = importlib.import_module(module)
    kept = getattr(target, name)

    def full(*given: Any, **named: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise OSError(errno.ENOSPC, "full")
        return kept(*given, **named)

    monkeypatch.setattr(target, name, full)


@pytest.mark.parametrize("step", ["sync_folder", "_write_objects", "atomic_write"])
def test_what_met_a_full_disk_is_answered_when_there_is_room_again(
    step: str,
    server: FleetServer,
    files: ServerFiles,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fleet_client, "AGAIN_S", 0.05)
    site = Running(server, files, tmp_path)
    until(lambda: site.code() == "CONNECTED")
    fail_at_first(monkeypatch, f"client.fleet.inbox.{step}", MOST_INSTRUCTIONS)
    # more than may be stored at a time; each is asked again, as a server does
    for number in range(2 * MOST_MESSAGES):
        server.queue(instruction(np.full(3, number, np.uint8)))
    until(lambda: not server._queue and not site.waiting())
    site.end()


def test_a_reply_that_met_a_full_disk_is_sent_later(
    server: FleetServer, files: ServerFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_client, "AGAIN_S", 0.05)
    site = Running(server, files, tmp_path)
    until(lambda: site.code() == "CONNECTED")
    honest, left = Inbox.store_reply, [2 * MOST_INSTRUCTIONS]

    def full(self: Inbox, *given: Any) -> None:
        if left[0]:
            left[0] -= 1
            raise EnvironmentFault("full", code="E-DISK-FULL")
        honest(self, *given)

    monkeypatch.setattr(Inbox, "store_reply", full)
    for number in range(3):
        server.queue(instruction(np.full(3, number, np.uint8)))
    until(lambda: len(server.replies()) == 3 and not site.waiting())
    site.end()
