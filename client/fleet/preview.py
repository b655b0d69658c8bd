"""What a message announces before any of its payload is pulled.

In: the id of a message, the ids of its objects, and `fetch`, which returns one checked object.
Out: a `Preview`: header, signature, declared size, and the ids of the payload's chunks.
Guarantees: only the five small objects above the payload are fetched, each of at most 512 KiB.
Not covered: whether the header is signed and by whom; client/daemon/site.py decides that.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Set
from dataclasses import dataclass
from typing import Any

from flwr.app import ConfigRecord, Error

from client.fleet import health as states
from client.fleet.failures import CallFailed
from client.fleet.messages import CONTENT_REFUSED, MessageRefused, corrupt, too_large
from client.fleet.wire import inflate_object, split_object

SMALL_CAP_BYTES = 512 << 10
FRAME_BYTES = 1024  # what numpy and Flower write around an array
CHUNK_FRAME_BYTES = 64  # what Flower writes around a chunk

Fetch = Callable[[str], bytes]


@dataclass(frozen=True)
class Preview:
    """The signed part of a message and the size of the rest. `objects`: what was fetched."""

    header: bytes
    signature: bytes
    size_bytes: int
    chunk_ids: tuple[str, ...]
    objects: dict[str, bytes]

    @property
    def most_bytes(self) -> int:
        """The most that the chunks of a payload of the declared size may take."""
        return self.size_bytes + FRAME_BYTES + CHUNK_FRAME_BYTES * len(self.chunk_ids)


def read_preview(message_id: str, announced: Set[str], fetch: Fetch) -> Preview:
    """Return what a message announces; `announced`: the ids of its objects.

    Raises MessageRefused for anything but one sealed message.
    """
    reader = _Reader(announced, fetch)
    try:
        # from the message down to its two records
        children, _ = reader.open(message_id, "Message")
        if len(children) != 1:
            raise _unknown_record()
        records = reader.names(children[0], "RecordDict", {"sealed", "payload"})
        header, signature = reader.sealed(records["sealed"])
        # the payload's array without its chunks
        arrays = reader.names(records["payload"], "ArrayRecord", {"payload"})
        size_bytes, chunk_ids = reader.array(arrays["payload"])
    except (MessageRefused, CallFailed, MemoryError):
        raise
    except Exception as error:  # Flower checks nothing, and raises anything
        raise corrupt("structure") from error
    return Preview(header, signature, size_bytes, chunk_ids, reader.objects)


class _Reader:
    """Opens the small objects of one message; each must be announced and of the right kind."""

    def __init__(self, announced: Set[str], fetch: Fetch) -> None:
        self._announced = announced
        self._fetch = fetch
        self.objects: dict[str, bytes] = {}

    def open(self, object_id: str, kind: str) -> tuple[list[str], bytes]:
        """Return an object's children and body."""
        if object_id not in self._announced:
            raise corrupt("an object that was not announced")
        content = self._fetch(object_id)
        if len(content) > SMALL_CAP_BYTES:
            raise too_large(f"over {SMALL_CAP_BYTES} bytes before the payload")
        found, children, body = split_object(content)
        if found != kind:
            raise _unknown_record()
        self.objects[object_id] = content
        return children, body

    def names(self, object_id: str, kind: str, expected: Set[str]) -> dict[str, str]:
        """Return the ids of an object's members by name; they must have the expected names."""
        _, body = self.open(object_id, kind)
        members = json.loads(body)
        if set(members) != expected:
            raise _unknown_record()
        return dict(members)

    def sealed(self, object_id: str) -> tuple[bytes, bytes]:
        """Return header and signature."""
        self.open(object_id, "ConfigRecord")
        record = inflate_object(object_id, {object_id: self.objects[object_id]})
        if not isinstance(record, ConfigRecord) or set(record) != {"header", "signature"}:
            raise _unknown_record()
        header: Any = record["header"]
        signature: Any = record["signature"]
        if not isinstance(header, bytes) or not isinstance(signature, bytes):
            raise _unknown_record()
        return header, signature

    def array(self, object_id: str) -> tuple[int, tuple[str, ...]]:
        """Return the declared bytes of the payload and the ids of its chunks."""
        children, body = self.open(object_id, "Array")
        facts = json.loads(body)
        [size_bytes] = facts["shape"]
        if facts["dtype"] != "uint8" or type(size_bytes) is not int or size_bytes < 0:
            raise _unknown_record()
        # a chunk must be announced too; what is announced beside them is never pulled
        chunk_ids = tuple(dict.fromkeys(children))
        if not set(chunk_ids) <= self._announced:
            raise corrupt("an object that was not announced")
        return size_bytes, chunk_ids


def _unknown_record() -> MessageRefused:
    """Return the refusal of a message that is not one sealed message."""
    return MessageRefused(states.MESSAGE_CORRUPT, Error(CONTENT_REFUSED, "E-RECORD"), "record")
