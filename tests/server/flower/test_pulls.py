"""A reply that is too large is refused before it is assembled, in Flower's own grid."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import Context, RecordDict
from flwr.common.serde import context_to_proto
from flwr.proto.message_pb2 import PullObjectResponse
from flwr.proto.run_pb2 import Run
from flwr.proto.runtime_pb2 import PullAppMessagesResponse, PullTaskInputResponse

from server.app import BoundedGrid
from server.flower import wire
from server.flower.pulls import REPLY_CAP_BYTES, BoundedPulls
from server.front import rules
from server.front.sockets import SocketFolder
from server.rounds.faults import TOO_LARGE, Oversized, code_of


class Hostile:
    """A SuperLink with one reply of so many objects, each of so many bytes."""

    def __init__(self, objects: int, size: int) -> None:
        self._size = size
        self.pulled = 0
        self.confirmed: list[str] = []
        self.root = hashlib.sha256(b"root").hexdigest()
        self.answer = PullAppMessagesResponse()
        self.answer.messages_list.add().metadata.message_id = self.root
        tree = self.answer.message_object_trees.add(object_id=self.root)
        for number in range(objects - 1):
            tree.children.add(object_id=hashlib.sha256(b"%d" % number).hexdigest())

    def PullMessages(self, request: Any) -> PullAppMessagesResponse:
        return self.answer

    def PullObject(self, request: Any) -> PullObjectResponse:
        self.pulled += 1
        content = b"x" * self._size
        return PullObjectResponse(object_found=True, object_available=True, object_content=content)

    def ConfirmMessageReceived(self, request: Any) -> None:
        self.confirmed.append(request.message_object_id)

    def close(self) -> None:
        pass


def test_objects_are_counted_before_one_is_fetched() -> None:
    pulls = BoundedPulls(Hostile(rules.REPLY_OBJECTS + 1, 1))
    with pytest.raises(Oversized):
        pulls.PullMessages(None)
    BoundedPulls(Hostile(rules.REPLY_OBJECTS, 1)).PullMessages(None)


def test_bytes_are_counted_over_all_objects() -> None:
    pulls = BoundedPulls(Hostile(3, 40), cap=100)
    pulls.PullObject(None)
    pulls.PullObject(None)
    with pytest.raises(Oversized):
        pulls.PullObject(None)


def test_flowers_grid_assembles_no_reply_above_the_cap_and_lets_its_objects_go(
    tmp_path: Path,
) -> None:
    context = Context(1, 1, {}, RecordDict(), {})
    answer = PullTaskInputResponse(context=context_to_proto(context), run=Run(run_id=7))
    grid, _ = wire.grid_of(SocketFolder(tmp_path / "s"), "token", answer)
    superlink = Hostile(100, 1000)
    grid.close()  # type: ignore[attr-defined]
    grid._client = superlink  # type: ignore[attr-defined]
    assert isinstance(grid, BoundedGrid)
    assert grid.reply_cap_bytes == REPLY_CAP_BYTES
    grid.reply_cap_bytes = 20_000
    with pytest.raises(Oversized):
        list(grid.pull_messages([superlink.root]))
    assert superlink.pulled < 30
    assert superlink.confirmed == [superlink.root]
    # the client of the other calls is the plain one again
    assert grid._runtime_client is superlink  # type: ignore[attr-defined]


def test_the_site_goes_into_quarantine_under_a_code_of_its_own() -> None:
    error = SimpleNamespace(__cause__=Oversized("x"))
    assert code_of(error) == TOO_LARGE  # type: ignore[arg-type]
    assert code_of(ValueError("x")) == "E-INTAKE-BUG"
