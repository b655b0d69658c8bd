"""What a hostile server does below the instruction: objects, runs, HTTP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, RecordDict
from flwr.proto import fleet_pb2, message_pb2, run_pb2

from tests.attacks.clinic import QUIET_S, Act, Case, Clinic
from tests.fleet_server import NODE_ID, PIN, PROTOBUF, RUN_ID, Answer

OBJECTS = "Flower's objects"
RUNS = "Flower's runs"
HTTP = "HTTP"
CORRUPT = ("E-MESSAGE-CORRUPT",)
TOO_LARGE = ("E-MESSAGE-TOO-LARGE",)
MANY = 5_000
HUGE = 3 << 20


# --- objects ------------------------------------------------------------------------------------


def tampered(change: Callable[[dict[str, bytes]], None]) -> Act:
    """Deliver round 1 with other objects than it names."""
    return lambda clinic: clinic.deliver(clinic.message(clinic.ask()), tamper=change)


def flip(objects: dict[str, bytes]) -> None:
    """One bit of the first object is another one."""
    name = next(iter(objects))
    objects[name] = objects[name][:-1] + bytes([objects[name][-1] ^ 1])


def swap(objects: dict[str, bytes]) -> None:
    """An object stands under another's name."""
    first, second, *_ = objects
    objects[first] = objects[second]


def empty(objects: dict[str, bytes]) -> None:
    """Every object is empty."""
    for name in objects:
        objects[name] = b""


def announced(change: Callable[[Any], None]) -> Act:
    """Deliver round 1 with another shell or tree."""

    def act(clinic: Clinic) -> str:
        message_id, _ = clinic.server.queue(clinic.message(clinic.ask()))
        clinic.server.instead["pull-object"] = lambda request: missing(clinic, request)
        change(clinic.server._queue[-1])
        return clinic.answer_to(message_id)

    return act


def missing(clinic: Clinic, request: Any) -> Answer | None:
    """An object that is not there."""
    if request.object_id in clinic.server._objects:
        return None
    return 200, PROTOBUF, message_pb2.PullObjectResponse(object_found=False).SerializeToString()


def more_objects(response: Any) -> None:
    """The tree names thousands of objects."""
    tree = response.message_object_trees[0]
    for number in range(MANY):
        tree.children.add(object_id=f"{number:064x}")


def deeper(response: Any) -> None:
    """The tree is a chain of fifty objects that are not there."""
    tree = response.message_object_trees[0]
    for number in range(50):
        tree = tree.children.add(object_id=f"{number:064x}")


def strange_names(response: Any) -> None:
    """An object is named like a file."""
    response.message_object_trees[0].children.add(object_id="../../keys/node.key")


def huge(clinic: Clinic) -> str:
    """A payload above the site's cap."""
    record = clinic.message(clinic.ask()).content
    array = Array(np.zeros(HUGE, np.uint8))
    content = {"sealed": record["sealed"], "payload": ArrayRecord({"payload": array})}
    return clinic.deliver(clinic.message(RecordDict(content)))


def object_answers(**fields: Any) -> Act:
    """Every question for an object gets this answer."""

    def act(clinic: Clinic) -> str:
        answer = message_pb2.PullObjectResponse(**fields).SerializeToString()
        clinic.server.instead["pull-object"] = lambda request: (200, PROTOBUF, answer)
        return clinic.deliver(clinic.message(clinic.ask()))

    return act


def metadata(**changes: Any) -> Act:
    """Deliver round 1 with other metadata."""
    return lambda clinic: clinic.deliver(clinic.message(clinic.ask(), **changes), wait_s=QUIET_S)


def twice(clinic: Clinic) -> str:
    """One message is delivered twice."""
    message = clinic.message(clinic.honest or clinic.ask(round=0))
    first, _ = clinic.server.queue(message)
    clinic.answer_to(first)
    second, _ = clinic.server.queue(message)
    before = len(clinic.server.replies())
    told = clinic.answer_to(second)
    return f"{told}, {len(clinic.server.replies()) - before} times more"


# --- runs ---------------------------------------------------------------------------------------


def run(**fields: Any) -> Act:
    """The run is said to be this one."""

    def act(clinic: Clinic) -> str:
        found = run_pb2.GetRunResponse(run=run_pb2.Run(**fields)).SerializeToString()
        clinic.server.instead["get-run"] = lambda request: (200, PROTOBUF, found)
        return clinic.deliver(clinic.message(clinic.ask(round=0)))

    return act


def configured(clinic: Clinic) -> str:
    """A run with settings of its own: none of them reaches the site's code."""
    made = run_pb2.Run(run_id=RUN_ID, fab_hash=PIN, fab_id="evil/evil", fab_version="9")
    made.override_config["import"].string = "os"
    found = run_pb2.GetRunResponse(run=made).SerializeToString()
    clinic.server.instead["get-run"] = lambda request: (200, PROTOBUF, found)
    told = clinic.deliver(clinic.message(clinic.ask(round=0)))
    _, context = clinic.client.seen[-1]
    return f"{told}, settings {dict(context.run_config)}"


# --- HTTP ---------------------------------------------------------------------------------------


def answers(path: str, answer: Answer, state: str) -> tuple[Act, tuple[str, ...]]:
    """Answer one path so, until the client is in a state; it comes back by itself."""

    def act(clinic: Clinic) -> str:
        clinic.server.instead[path] = lambda request: answer
        return clinic.reaches(state)

    return act, (state,)


def page(path: str, body: bytes, **headers: str) -> Answer:
    """An answer of success."""
    return (
        200,
        {**PROTOBUF, **{name.replace("_", "-"): text for name, text in headers.items()}},
        body,
    )


def http(attack: str, path: str, answer: Answer, state: str) -> Case:
    """One case of an answer below Flower."""
    act, expected = answers(path, answer, state)
    return Case(attack, act, expected, HTTP)


def pulled(**fields: Any) -> bytes:
    """The bytes of an answer to pull-messages."""
    return bytes(fleet_pb2.PullMessagesResponse(**fields).SerializeToString())


def reply_refused(clinic: Clinic) -> str:
    """The server never takes an object of the reply, and asks for thousands that there are not."""
    names = [f"{number:064x}" for number in range(MANY)]
    wanted = fleet_pb2.PushMessagesResponse(objects_to_push=names, session_id="s")
    body = wanted.SerializeToString()
    clinic.server.instead["push-messages"] = lambda request: (200, PROTOBUF, body)
    return clinic.deliver(clinic.message(clinic.ask(round=0)))


def another_node(clinic: Clinic) -> str:
    """The server forgets the node and gives it the largest number as its name."""
    beaten = b""
    clinic.server.instead["send-node-heartbeat"] = lambda request: (200, PROTOBUF, beaten)
    return clinic.reaches("CONNECTED")


PULL = "pull-messages"
ELSEWHERE = {"location": "https://127.0.0.1:1/v1/fleet/pull-messages"}
EXIT = b'{"code": 1001, "detail": "exit now", "extra": "exit now"}'
TWO = b"\x12\x00\x12\x00\x1a\x00\x1a\x00"
NESTED = b'{"code": ' + b"[" * 200_000
WIRE = [
    Case("an object with one bit changed", tampered(flip), CORRUPT, OBJECTS),
    Case("an object under another's name", tampered(swap), CORRUPT, OBJECTS),
    Case("empty objects", tampered(empty), CORRUPT, OBJECTS),
    Case("thousands of objects", announced(more_objects), TOO_LARGE, OBJECTS),
    Case(
        "a chain of objects that are not there",
        announced(deeper),
        ("E-MESSAGE-LOST", "E-GATE-17"),
        OBJECTS,
    ),
    Case("an object named like a file", announced(strange_names), CORRUPT, OBJECTS),
    Case("a payload above the cap", huge, TOO_LARGE, OBJECTS),
    Case(
        "objects that are not there",
        object_answers(object_found=False),
        ("E-MESSAGE-LOST",),
        OBJECTS,
    ),
    Case("one message twice", twice, ("answered, 0 times more",), OBJECTS),
    Case("a message for another node", metadata(dst_node_id=NODE_ID + 1), CORRUPT, OBJECTS),
    Case(
        "a reply in place of an instruction",
        metadata(reply_to_message_id="a" * 64),
        CORRUPT,
        OBJECTS,
    ),
    Case("a message that has expired", metadata(ttl=-1.0), ("silence",), OBJECTS),
    Case("a message of the year 1970", metadata(created_at=1.0, ttl=1.0), ("silence",), OBJECTS),
    Case(
        "another app than the plan's",
        run(run_id=RUN_ID, fab_hash="cd" * 32),
        ("E-APP-UNPINNED",),
        RUNS,
    ),
    Case("a run without an app", run(run_id=RUN_ID), ("E-APP-UNPINNED",), RUNS),
    Case("a run with settings and a bundle", configured, ("answered, settings {}",), RUNS),
    Case("a reply of which 5,000 objects are wanted", reply_refused, ("answered",), RUNS),
    http("a redirect", PULL, (307, ELSEWHERE, b""), "REDIRECTED"),
    http(
        "an endless answer", PULL, page(PULL, b"", transfer_encoding="chunked"), "ANSWER-TOO-LARGE"
    ),
    http("a page of HTML", PULL, (200, {"content-type": "text/html"}, b"<html>"), "NOT-THE-SERVER"),
    http("bytes that are no message", PULL, page(PULL, b"\xff\xff\xff"), "NOT-THE-SERVER"),
    http("a gzip bomb", PULL, page(PULL, b"\x1f\x8b", content_encoding="gzip"), "NOT-THE-SERVER"),
    http("two messages at once", PULL, page(PULL, TWO), "NOT-THE-SERVER"),
    http(
        "a message without an identifier", PULL, page(PULL, b"\x12\x00\x1a\x00"), "NOT-THE-SERVER"
    ),
    http("an order to end the process", PULL, (412, {}, EXIT), "NOT-THE-SERVER"),
    http("an error that nests 200,000 lists", PULL, (401, {}, NESTED), "KEY-UNKNOWN"),
    http("a key that is unknown", PULL, (401, {}, b""), "KEY-UNKNOWN"),
    http("an error 403", PULL, (403, {}, b""), "FORBIDDEN"),
    http("an error 503", PULL, (503, {}, b"x" * 100_000), "SERVER-BUSY"),
    Case("no word of a heartbeat", another_node, ("CONNECTED",), HTTP),
]
CASES = WIRE
