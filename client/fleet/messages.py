"""The rules that a pulled message must satisfy, and what of an error may leave. No I/O.

The step numbers are those of client.py and of the threat model.
"""

from __future__ import annotations

import json
import re
import time
from hashlib import sha256
from typing import Any

from flwr.app import Error, Message

from client.fleet import health as states
from client.fleet.health import State
from client.fleet.inbox import MESSAGE_ID
from client.fleet.wire import (
    PulledMessage,
    check_object_form,
    inflate_object,
    set_message_id,
    split_object,
)
from common.errors import KohortError

ERROR_CODE = re.compile(r"E-[A-Z0-9-]{1,40}")
APP_REFUSED = 7
CONTENT_REFUSED = 2
OBJECT_LOST = 3


class MessageRefused(Exception):
    """A message is not acceptable: `state` and `facts` for the site, `error` for the server."""

    def __init__(self, state: State, error: Error, facts: str = "") -> None:
        super().__init__(state.code)
        self.state = state
        self.error = error
        self.facts = facts


def too_large(facts: str) -> MessageRefused:
    """Return the refusal of a message with too many objects or bytes."""
    error = Error(CONTENT_REFUSED, "E-MESSAGE-TOO-LARGE")
    return MessageRefused(states.MESSAGE_TOO_LARGE, error, facts)


def corrupt(facts: str) -> MessageRefused:
    """Return the refusal of a message that does not match its identifiers."""
    error = Error(CONTENT_REFUSED, "E-MESSAGE-CORRUPT")
    return MessageRefused(states.MESSAGE_CORRUPT, error, facts)


def check_app(app_hash: str, pins: set[str]) -> None:
    """Raise MessageRefused unless the app belongs to an approved plan (step 2)."""
    if app_hash not in pins:
        raise MessageRefused(states.APP_UNPINNED, Error(APP_REFUSED, "E-APP-UNPINNED"))


def object_ids(pulled: PulledMessage, max_objects: int) -> list[str]:
    """Return the distinct object ids of a message (step 3).

    Raises MessageRefused if they are too many or malformed.
    """
    # A dict keeps the order and drops what the tree names twice.
    ids: dict[str, None] = {}
    try:
        for object_id in pulled.object_ids():
            ids[object_id] = None
            if len(ids) > max_objects:
                raise too_large(f"over {max_objects} objects")
    except RecursionError:
        raise corrupt("object identifiers") from None
    if not all(MESSAGE_ID.fullmatch(object_id) for object_id in ids):
        raise corrupt("object identifiers")
    return list(ids)


def check_object(object_id: str, content: bytes) -> None:
    """Raise MessageRefused unless the content hashes to its identifier and is well formed (step 4).

    Flower checks neither.
    """
    if sha256(content).hexdigest() != object_id:
        raise corrupt("object content")
    try:
        check_object_form(content)
    except Exception as error:
        raise corrupt("object content") from error


def count_inflated_bytes(objects: dict[str, bytes]) -> int:
    """Return the size of all arrays once inflated: an array may name the same chunk many times."""
    total = 0
    for content in objects.values():
        kind, children, body = split_object(content)
        if kind != "Array":
            continue
        for index in json.loads(body)["arraychunk_ids"]:
            total += len(objects[children[index]])
    return total


def inflate(
    pulled: PulledMessage, objects: dict[str, bytes], node_id: int, max_bytes: int
) -> Message:
    """Return the message of these checked objects (step 7).

    Raises MessageRefused unless it is the announced one.
    """
    try:
        if count_inflated_bytes(objects) > max_bytes:
            raise too_large("arrays")
        message = inflate_object(pulled.message_id, objects)
    except (MessageRefused, MemoryError):
        raise
    except Exception as error:  # Flower checks nothing, and raises anything
        raise corrupt("structure") from error
    if not isinstance(message, Message) or not message.has_content():
        raise corrupt("not an instruction")
    # The content must say the same as the shell that was announced.
    found = message.metadata
    expected = (pulled.metadata.run_id, node_id, "")
    if (found.run_id, found.dst_node_id, found.reply_to_message_id) != expected:
        raise corrupt("run or node")
    set_message_id(message, pulled.message_id)
    return message


def error_code(error: BaseException) -> str:
    """Return the code of an error: the only part of it that may leave."""
    if isinstance(error, KohortError) and ERROR_CODE.fullmatch(error.code):
        return error.code
    return "E-BUG"


def is_expired(metadata: Any) -> bool:
    """Return whether the time to live of a message or reply is over."""
    return bool(metadata.created_at + metadata.ttl < time.time())
