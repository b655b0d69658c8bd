"""A reply that is too large is refused before it is assembled, in Flower's own grid."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import Context, RecordDict
from flwr.common.serde import context_to_proto
from flwr.proto.message_pb2 import PullObjectResponse
from flwr.proto.run_pb2 import Run
from flwr.proto.runtime_pb2 import (
    PullAppMessagesRequest,
    PullAppMessagesResponse,
    PullTaskInputResponse,
)

from server.app import BoundedGrid
from server.flower import wire
from server.flower.pulls import (
    FORGET_S,
    LOOK_S,
    PAUSES_S,
    REPLY_CAP_BYTES,
    STALE_S,
    BoundedPulls,
    News,
)
from server.front import rules
from server.front.sockets import SocketFolder
from server.rounds.faults import TOO_LARGE, UNPACKING, Oversized, code_of


class Hostile:
    """A SuperLink with one reply of so many objects, each of so many bytes."""

    def __init__(self, objects: int, size: int) -> None:
        self._size = size
        self.pulled = 0
        self.confirmed: list[str] = []
        self.root = hashlib.sha256(b"root").hexdigest()
        self.answer = PullAppMessagesResponse()
        metadata = self.answer.messages_list.add().metadata
        metadata.message_id, metadata.reply_to_message_id = self.root, self.root
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


def pulls_of(superlink: Any, cap: int = REPLY_CAP_BYTES) -> BoundedPulls:
    """The calls of one pull."""
    return BoundedPulls(superlink, News(PullAppMessagesResponse), cap)


def test_objects_are_counted_before_one_is_fetched() -> None:
    hostile = Hostile(rules.REPLY_OBJECTS + 1, 1)
    request = PullAppMessagesRequest(message_ids=[hostile.root])
    with pytest.raises(Oversized):
        pulls_of(hostile).PullMessages(request)
    assert pulls_of(Hostile(rules.REPLY_OBJECTS, 1)).PullMessages(request).messages_list


def test_bytes_are_counted_over_all_objects() -> None:
    pulls = pulls_of(Hostile(3, 40), cap=100)
    pulls.PullObject(None)
    pulls.PullObject(None)
    with pytest.raises(Oversized):
        pulls.PullObject(None)


class Answering:
    """A SuperLink that notes what it is asked for, and has these replies."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.replies: list[str] = []

    def PullMessages(self, request: Any) -> PullAppMessagesResponse:
        self.asked.append(list(request.message_ids))
        answer = PullAppMessagesResponse()
        for name in [name for name in self.replies if name in request.message_ids]:
            self.replies.remove(name)
            answer.messages_list.add().metadata.reply_to_message_id = name
            answer.message_object_trees.add(object_id=f"reply to {name}")
        return answer


def test_many_sites_are_asked_for_in_one_call_and_each_gets_its_own_reply_once() -> None:
    now = [0.0]
    superlink = Answering()
    news = News(PullAppMessagesResponse, lambda: now[0])

    def ask(name: str) -> list[str]:
        answer = news.ask(superlink, PullAppMessagesRequest(message_ids=[name]))
        return [tree.object_id for tree in answer.message_object_trees]

    # nobody is asked about twice between two looks
    assert not ask("a") and not ask("b") and not ask("c")
    assert superlink.asked == [["a"]]
    superlink.replies = ["a", "c"]
    now[0] += LOOK_S
    assert not ask("b")
    assert superlink.asked[1:] == [["a", "b", "c"]]
    # what has come is kept until its thread asks, however late, and is not asked for again
    now[0] += 2 * STALE_S
    assert ask("c") == ["reply to c"] and ask("a") == ["reply to a"]
    assert not ask("a")
    now[0] += LOOK_S
    ask("b")
    assert superlink.asked[2:] == [["a", "b"]]


def test_replies_of_rounds_that_are_over_are_let_go() -> None:
    now = [0.0]
    superlink = Answering()
    news = News(PullAppMessagesResponse, lambda: now[0])
    for number in range(20):
        news.ask(superlink, PullAppMessagesRequest(message_ids=[f"late-{number}"]))
        # its thread is stopped before it asks again
        superlink.replies = [f"late-{number}"]
        now[0] += LOOK_S
        news.ask(superlink, PullAppMessagesRequest(message_ids=["other"]))
        now[0] += FORGET_S / 4
    assert not superlink.replies
    assert len(news._found) <= 5 and len(news._asked_at) <= 5


class Breaking(Answering):
    """A SuperLink whose answers about these replies cannot be read."""

    def __init__(self, *broken: str) -> None:
        super().__init__()
        self.broken = set(broken)

    def PullMessages(self, request: Any) -> PullAppMessagesResponse:
        if self.broken & set(request.message_ids):
            raise ValueError("not protobuf")
        return super().PullMessages(request)


def test_a_reply_that_cannot_be_read_is_its_own_sites_fault_and_nobody_elses() -> None:
    now = [0.0]
    superlink = Breaking("b")
    news = News(PullAppMessagesResponse, lambda: now[0])

    def ask(name: str) -> Any:
        return news.ask(superlink, PullAppMessagesRequest(message_ids=[name]))

    ask("a")
    for name in ("b", "c"):
        ask(name)
    superlink.replies = ["a", "c"]
    now[0] += LOOK_S
    assert len(ask("a").messages_list) == 1 and len(ask("c").messages_list) == 1
    with pytest.raises(ValueError, match="not protobuf"):
        ask("b")
    # it is told once; nobody waits for it any more
    now[0] += LOOK_S
    ask("a")
    assert superlink.asked[-1] == ["a"]
    # alone it is its site's fault too
    with pytest.raises(ValueError, match="not protobuf"):
        News(PullAppMessagesResponse).ask(superlink, PullAppMessagesRequest(message_ids=["b"]))


def test_where_no_answer_can_be_read_it_is_the_superlinks_fault() -> None:
    now = [0.0]
    news = News(PullAppMessagesResponse, lambda: now[0])
    for name in ("a", "b"):
        news.ask(Answering(), PullAppMessagesRequest(message_ids=[name]))
    now[0] += LOOK_S
    with pytest.raises(ConnectionError) as caught:
        news.ask(Breaking("a", "b"), PullAppMessagesRequest(message_ids=["a"]))
    assert not isinstance(caught.value, UNPACKING)


class Late(Hostile):
    """A SuperLink that is told of a reply a few calls before its object comes."""

    def __init__(self, calls: int) -> None:
        super().__init__(1, 10)
        self.calls = calls

    def PullObject(self, request: Any) -> PullObjectResponse:
        if self.pulled < self.calls:
            self.pulled += 1
            return PullObjectResponse(object_found=True, object_available=False)
        return super().PullObject(request)


def test_an_object_that_comes_an_instant_later_is_asked_for_again_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paused: list[float] = []
    monkeypatch.setattr(time, "sleep", paused.append)
    assert pulls_of(Late(2)).PullObject(None).object_available
    assert paused == list(PAUSES_S[:2])
    # a sender that stalls is left to Flower's own pauses
    assert not pulls_of(Late(100)).PullObject(None).object_available
    # and what is gone is gone
    paused.clear()
    gone = SimpleNamespace(PullObject=lambda request: PullObjectResponse(object_found=False))
    assert not pulls_of(gone).PullObject(None).object_found
    assert not paused


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
