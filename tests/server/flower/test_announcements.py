"""What a site may announce: one reply and its own objects; anything else never reaches Flower."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import pytest

from server.flower.announcements import DEPTH, REFUSED, is_one_reply
from server.flower.link_process import NO_ROOM, fleet_only
from server.flower.wire import fleet_pb2
from server.front import rules

ROOT = hashlib.sha256(b"root").hexdigest()


def announced(objects: int = 3, root: str = ROOT, messages: int = 1, trees: int = 1) -> bytes:
    """The body of a call; each tree has a root and leaves below it."""
    request = fleet_pb2.PushMessagesRequest()
    for _ in range(messages):
        request.messages_list.add().metadata.message_id = ROOT
    for _ in range(trees):
        tree = request.message_object_trees.add(object_id=root)
        for number in range(objects - 1):
            tree.children.add(object_id=hashlib.sha256(b"%d" % number).hexdigest())
    return bytes(request.SerializeToString())


def deep(levels: int) -> bytes:
    """A tree in which each object has one child."""
    request = fleet_pb2.PushMessagesRequest()
    request.messages_list.add().metadata.message_id = ROOT
    tree = request.message_object_trees.add(object_id=ROOT)
    for _ in range(levels - 1):
        tree = tree.children.add(object_id=ROOT)
    return bytes(request.SerializeToString())


def test_one_reply_with_as_many_objects_as_the_largest_has_passes() -> None:
    body = announced(rules.REPLY_OBJECTS)
    assert is_one_reply(body)
    assert len(body) + 4 * rules.KIB < rules.FLEET_CALLS[rules.PUSH_MESSAGES]
    assert is_one_reply(deep(DEPTH))


REFUSALS = {
    "no message": announced(messages=0),
    "two messages": announced(messages=2, trees=2),
    "a second tree": announced(trees=2),
    "no tree": announced(trees=0),
    "the tree of another message": announced(root="0" * 64),
    "one object too many": announced(rules.REPLY_OBJECTS + 1),
    "a deep tree": deep(DEPTH + 1),
    "a tree deeper than a parser goes": deep(90),
    "no protobuf": b"\xff" * 40,
    "nothing": b"",
}


@pytest.mark.parametrize("sentence", REFUSALS)
def test_refused_is(sentence: str) -> None:
    assert not is_one_reply(REFUSALS[sentence])


def push(*pieces: bytes) -> tuple[int, list[bytes]]:
    """The status of a call whose body comes in pieces, and what the SuperLink saw of it."""
    seen: list[bytes] = []
    sent: list[dict[str, Any]] = []
    waiting = list(pieces)

    async def superlink(scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        seen.append(message["body"])
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive() -> dict[str, Any]:
        if not waiting:
            return {"type": "http.disconnect"}
        body = waiting.pop(0)
        return {"type": "http.request", "body": body, "more_body": bool(waiting)}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "raw_path": rules.PUSH_MESSAGES.encode(),
        "query_string": b"",
    }
    asyncio.run(fleet_only(superlink)(scope, receive, send))
    return int(sent[0]["status"]), seen


def test_the_socket_of_the_fleet_hands_on_one_reply_whole() -> None:
    body = announced()
    assert push(body[:10], body[10:]) == (200, [body])


def test_the_socket_of_the_fleet_keeps_everything_else_from_the_superlink() -> None:
    assert push(REFUSALS["a second tree"]) == (REFUSED, [])
    assert push(b"x" * (rules.FLEET_CALLS[rules.PUSH_MESSAGES] + 1)) == (REFUSED, [])
    assert push() == (REFUSED, [])


def test_without_room_pushes_wait_and_everything_else_goes_on() -> None:
    async def superlink(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": announced(), "more_body": False}

    def ask(path: str, has_room: bool) -> int:
        sent: list[dict[str, Any]] = []

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "raw_path": path.encode(), "query_string": b""}
        asyncio.run(fleet_only(superlink, lambda: has_room)(scope, receive, send))
        return int(sent[0]["status"])

    full = {path for path in rules.FLEET_CALLS if ask(path, has_room=False) == NO_ROOM}
    assert full == {rules.PUSH_MESSAGES, rules.PUSH_OBJECT}
    assert {ask(path, has_room=True) for path in rules.FLEET_CALLS} == {200}
