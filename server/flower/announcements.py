"""What a site announces before it pushes: one reply, and the tree of that reply's objects alone.

Flower takes any tree beside a message it knows, as often as it comes: objects of no message would
stay until the run ends.
In: the body of a push-messages call. Out: whether the SuperLink may see it.
Not covered: sizes of objects and of bodies (server/front).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from server.flower.wire import DecodeError, fleet_pb2
from server.front import rules

REFUSED = 413
DEPTH = 8  # message, record, arrays, array, chunk
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def is_one_reply(body: bytes) -> bool:
    """Return whether a body announces one message and the tree of exactly this message."""
    request = fleet_pb2.PushMessagesRequest()
    try:
        request.ParseFromString(body)
    except DecodeError:
        return False
    if len(request.messages_list) != 1 or len(request.message_object_trees) != 1:
        return False
    tree = request.message_object_trees[0]
    if tree.object_id != request.messages_list[0].metadata.message_id:
        return False
    return _count(tree, DEPTH) <= rules.REPLY_OBJECTS


def _count(tree: Any, depth: int) -> int:
    """The objects of a tree; more than any reply has for a tree that is too deep."""
    if not depth:
        return rules.REPLY_OBJECTS + 1
    return 1 + sum(_count(child, depth - 1) for child in tree.children)


async def read_body(receive: Receive, most_bytes: int) -> bytes | None:
    """Return the whole body of a call; None for one that is cut or too large.

    Flower's application takes a body piece by piece through nine layers, at 64 KiB a piece; whole,
    it costs a fraction.
    """
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        body += message.get("body", b"")
        if len(body) > most_bytes:
            return None
        if not message.get("more_body", False):
            return bytes(body)


def replay(body: bytes, receive: Receive) -> Receive:
    """Return what an application receives: the body that was read, then what comes after it."""
    given = False

    async def again() -> Any:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
