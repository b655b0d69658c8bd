"""What a pulled message must satisfy, as values and against the scripted server."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import PullMessagesResponse
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree

from client.fleet import health as states
from client.fleet.messages import MessageRefused, count_inflated_bytes, inflate
from client.fleet.wire import PulledMessage, split_object
from common.errors import RefusedError
from server.operator.certificates import (
    ServerFiles,
)
from tests.client.fleet.running import Running, error_of
from tests.fleet_server import NODE_ID, FleetServer, instruction


def test_an_unpinned_app_is_refused_and_nothing_of_it_is_pulled(
    server: FleetServer, site: Running
) -> None:
    site.pins.clear()
    server.queue(instruction())
    assert error_of(server) == (7, "E-APP-UNPINNED")
    assert "pull-object" not in server.names()
    assert site.seen == []
    assert site.code("message") == "APP-UNPINNED"


@pytest.mark.parametrize("which", ["payload bytes", "message bytes", "another valid object"])
def test_content_that_does_not_hash_to_its_identifier_is_refused(
    which: str, server: FleetServer, site: Running
) -> None:
    def tamper(objects: dict[str, bytes]) -> None:
        ids = list(objects)
        if which == "another valid object":
            objects[ids[0]] = objects[ids[1]]
        else:
            index = ids[0] if which == "payload bytes" else ids[-1]
            objects[index] = objects[index][:-1] + bytes([objects[index][-1] ^ 1])

    server.queue(instruction(), tamper=tamper)
    assert error_of(server) == (2, "E-MESSAGE-CORRUPT")
    assert site.seen == []


def test_too_many_objects_are_refused_before_any_is_pulled(
    server: FleetServer, files: ServerFiles, tmp_path: Path
) -> None:
    site = Running(server, files, tmp_path, max_objects=3)
    server.queue(instruction())
    assert error_of(server) == (2, "E-MESSAGE-TOO-LARGE")
    assert "pull-object" not in server.names()
    site.end()


def test_too_many_bytes_are_refused_while_they_come(
    server: FleetServer, files: ServerFiles, tmp_path: Path
) -> None:
    site = Running(server, files, tmp_path, max_message_bytes=100_000)
    _, objects = server.queue(instruction(np.zeros(200_000, np.uint8)))
    assert error_of(server) == (2, "E-MESSAGE-TOO-LARGE")
    assert server.names().count("pull-object") < len(objects)
    assert site.seen == []
    site.end()


def test_an_array_that_names_one_chunk_many_times_counts_each_time() -> None:
    message = instruction(np.zeros(1000, np.uint8))
    objects = {
        object_id: one.deflate() for object_id, one in get_all_nested_objects(message).items()
    }
    honest = count_inflated_bytes(objects)
    array_id = next(
        object_id for object_id, content in objects.items() if content.startswith(b"Array ")
    )
    objects[array_id] = objects[array_id].replace(
        b'"arraychunk_ids": [0]', b'"arraychunk_ids": [0, 0, 0, 0]'
    )
    head, body = objects[array_id].split(b"\x00", 1)
    objects[array_id] = b" ".join([*head.split(b" ")[:2], str(len(body)).encode()]) + b"\x00" + body
    assert count_inflated_bytes(objects) == 4 * honest
    pulled = PullMessagesResponse(
        messages_list=[message_to_proto(message)], message_object_trees=[get_object_tree(message)]
    )
    with pytest.raises(MessageRefused) as refused:
        inflate(PulledMessage(pulled), objects, NODE_ID, 2 * honest)
    assert refused.value.state is states.MESSAGE_TOO_LARGE


def test_a_message_for_another_node_is_refused(server: FleetServer, site: Running) -> None:
    server.queue(instruction(node_id=NODE_ID + 1))
    assert error_of(server) == (2, "E-MESSAGE-CORRUPT")
    assert site.seen == []


def test_objects_that_flower_cannot_unpack_are_a_corrupt_message() -> None:
    message = instruction()
    objects = {name: one.deflate() for name, one in get_all_nested_objects(message).items()}
    order = list(objects)
    response = PullMessagesResponse(
        messages_list=[message_to_proto(message)], message_object_trees=[get_object_tree(message)]
    )
    pulled = PulledMessage(response)
    for name in order:
        kind, children, _ = split_object(objects[name])
        if kind == "ArrayChunk":  # any bytes are a chunk
            continue
        for body in (b"\xff" * 9, b"[" * 50_000):
            head = f"{kind} {','.join(children)} {len(body)}".encode() + b"\0"
            with pytest.raises(MessageRefused):
                inflate(pulled, objects | {name: head + body}, NODE_ID, 1 << 20)


def test_an_announcement_that_nobody_could_reply_to_is_refused() -> None:
    response = PullMessagesResponse()
    for data in (b"", b"\xff", response.SerializeToString()):
        with pytest.raises(RefusedError):
            PulledMessage.parse(data)
    message = instruction()
    response.messages_list.append(message_to_proto(message))
    response.message_object_trees.append(get_object_tree(message))
    assert PulledMessage.parse(response.SerializeToString()).message_id
    # content and error at once: Flower itself refuses to make such a message
    response.messages_list[0].ClearField("content")
    response.messages_list[0].ClearField("error")
    with pytest.raises(RefusedError) as caught:
        PulledMessage.parse(response.SerializeToString())
    assert caught.value.code == "E-MESSAGE-CORRUPT"
