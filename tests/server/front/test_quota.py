"""What a site may push until its next instruction, in the front's application and without a net."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from common.privacy import boundary
from common.wire.messages import HEADER_CAP_BYTES
from server.front import limits, rules
from server.front.limits import Pushed
from server.front.proxy import CERTIFICATE, Proxy
from server.front.sites import Visitor

SIZE = 3 * rules.MIB
VISITOR = Visitor("clinic-a", b"key", datetime.now(UTC) + timedelta(days=1))


class OneSite:
    """A registry that knows one site."""

    def visitor(self, der: bytes) -> Visitor:
        return VISITOR


class Front:
    """The application before a stand-in for the SuperLink."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, budget: int) -> None:
        self.answer = httpx.Response(rules.TAKEN, content=b"")
        self.seen: list[tuple[str, int]] = []
        monkeypatch.setattr(limits.rules, "LINGER_S", 0.01)
        self.proxy = Proxy(OneSite(), "/nowhere", budget)  # type: ignore[arg-type]
        self.proxy._client = httpx.AsyncClient(transport=httpx.MockTransport(self._answer))

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.seen.append((request.url.path, len(request.content)))
        return self.answer

    def ask(self, path: str, size: int = 1) -> int:
        """The status of one request with a body of this size."""
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"x" * size, "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [
            (b"content-type", rules.MEDIA_TYPE),
            (rules.KEY_HEADER, b"key"),
            (b"content-length", str(size).encode()),
        ]
        scope = {
            "type": "http",
            "method": "POST",
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": headers,
            "state": {CERTIFICATE: b"der"},
        }
        asyncio.run(self.proxy(scope, receive, send))
        return int(sent[0]["status"])


@pytest.fixture
def front(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Front]:
    return lambda budget: Front(monkeypatch, budget)


def test_a_site_pushes_its_budget_and_not_a_byte_more_until_its_next_instruction(
    front: Callable[[int], Front], caplog: pytest.LogCaptureFixture
) -> None:
    one = front(2 * SIZE)
    with caplog.at_level(logging.INFO, "kohort.front"):
        assert [one.ask(rules.PUSH_OBJECT, SIZE) for _ in range(3)] == [200, 200, 429]
    assert "clinic-a push-object 429 0 E-FRONT-QUOTA" in caplog.text
    assert len(one.seen) == 2
    # an empty answer to a pull is no instruction
    assert one.ask(rules.PULL_MESSAGES) == 200
    assert one.ask(rules.PUSH_OBJECT, SIZE) == 429
    # an instruction is
    one.answer = httpx.Response(rules.TAKEN, content=b"an instruction")
    assert one.ask(rules.PULL_MESSAGES) == 200
    assert [one.ask(rules.PUSH_OBJECT, SIZE) for _ in range(3)] == [200, 200, 429]


def test_what_the_superlink_did_not_take_costs_nothing(front: Callable[[int], Front]) -> None:
    one = front(SIZE)
    one.answer = httpx.Response(503)
    assert [one.ask(rules.PUSH_OBJECT, SIZE) for _ in range(5)] == [503] * 5
    one.answer = httpx.Response(rules.TAKEN)
    assert [one.ask(rules.PUSH_OBJECT, SIZE) for _ in range(2)] == [200, 429]


def test_announcements_without_end_are_bounded_too(front: Callable[[int], Front]) -> None:
    cap = rules.FLEET_CALLS[rules.PUSH_MESSAGES]
    one = front(5 * rules.ANNOUNCED_FACTOR * cap)
    assert [one.ask(rules.PUSH_MESSAGES, cap) for _ in range(7)] == [200] * 5 + [429] * 2


def test_other_calls_cost_nothing(front: Callable[[int], Front]) -> None:
    one = front(0)
    others = set(rules.FLEET_CALLS) - {rules.PUSH_MESSAGES, rules.PUSH_OBJECT}
    assert {one.ask(path) for path in others} == {200}


def test_the_largest_reply_passes_twice_in_chunks() -> None:
    """An honest update of the largest size, cut in the end and pushed once more."""
    pushed = Pushed()
    chunks = -(-boundary.UPDATE_CAP_BYTES // rules.CHUNK_BYTES)
    for _ in range(2):
        assert pushed.take("a", rules.PUSH_MESSAGES, rules.FLEET_CALLS[rules.PUSH_MESSAGES])
        for _ in range(chunks):
            assert pushed.take("a", rules.PUSH_OBJECT, rules.CHUNK_BYTES + 300)
    assert not pushed.take("a", rules.PUSH_OBJECT, rules.PUSHED_BYTES // 2)
    assert pushed.take("b", rules.PUSH_OBJECT, rules.PUSHED_BYTES // 2)


def test_the_rules_hold_what_the_boundary_lets_pass() -> None:
    assert rules.REPLY_BYTES == boundary.UPDATE_CAP_BYTES
    assert boundary.PART_CAP_BYTES <= rules.REPLY_BYTES
    assert rules.REPLY_EXTRA_BYTES >= HEADER_CAP_BYTES + rules.REPLY_OBJECTS * 1024
    assert rules.FLEET_CALLS[rules.PUSH_OBJECT] > rules.CHUNK_BYTES


def test_a_budget_never_grows_above_one_instructions(front: Callable[[int], Front]) -> None:
    pushed = Pushed(100)
    for _ in range(5):
        pushed.grant("a")
        pushed.give_back("a", rules.PUSH_OBJECT, 60)
    assert pushed.take("a", rules.PUSH_OBJECT, 100)
    assert not pushed.take("a", rules.PUSH_OBJECT, 1)


class ManySites:
    """A registry in which a certificate is its site's name."""

    def visitor(self, der: bytes) -> Visitor:
        return Visitor(der.decode(), b"key", VISITOR.ends)


class Pulling:
    """The application while many objects are pulled at once from a stand-in for the SuperLink."""

    def __init__(self) -> None:
        self.proxy = Proxy(ManySites(), "/nowhere")  # type: ignore[arg-type]
        self.proxy._client = httpx.AsyncClient(transport=httpx.MockTransport(self._answer))
        self.most: dict[str, int] = {}
        self.held: dict[str, int] = {}
        self.pieces: list[int] = []

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        self.held[path] = self.held.get(path, 0) + 1
        self.most[path] = max(self.most.get(path, 0), self.held[path])
        return httpx.Response(rules.TAKEN, content=b"x" * (rules.PIECE_BYTES + 1))

    async def ask(self, site: str, path: str) -> None:
        """One call of a site, which is slow to take its answer."""

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"x", "more_body": False}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.body":
                self.pieces.append(len(message["body"]))
                await asyncio.sleep(0.005)
                if not message.get("more_body"):
                    self.held[path] -= 1

        headers = [
            (b"content-type", rules.MEDIA_TYPE),
            (rules.KEY_HEADER, b"key"),
            (b"content-length", b"1"),
        ]
        head = {"type": "http", "method": "POST", "query_string": b"", "headers": headers}
        state = {CERTIFICATE: site.encode()}
        await self.proxy({**head, "raw_path": path.encode(), "state": state}, receive, send)

    def ask_all(self, sites: int, each: int, path: str) -> int:
        """The most answers that were in memory at once."""

        async def all_of_them() -> None:
            asked = [self.ask(f"site-{n}", path) for n in range(sites) for _ in range(each)]
            await asyncio.gather(*asked)

        asyncio.run(all_of_them())
        assert self.held[path] == 0
        return self.most[path]


def test_objects_that_sites_pull_are_held_back_until_there_is_room() -> None:
    most = rules.ANSWERS_BYTES // rules.CHUNK_ANSWER_BYTES
    assert Pulling().ask_all(3 * most, 1, rules.PULL_OBJECT) == most
    # one site gets one after the other, and other calls wait for nothing
    assert Pulling().ask_all(1, 5, rules.PULL_OBJECT) == 1
    assert Pulling().ask_all(3 * most, 1, rules.PULL_MESSAGES) == 3 * most


def test_an_answer_goes_out_in_pieces_that_the_peer_takes_one_by_one() -> None:
    pulling = Pulling()
    pulling.ask_all(1, 1, rules.PULL_OBJECT)
    assert pulling.pieces == [rules.PIECE_BYTES, 1, 0]


def test_an_answer_that_its_site_does_not_take_gives_its_room_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rules, "ANSWER_S", 0.05)
    pulling = Pulling()

    async def stalled(message: Any) -> None:
        await asyncio.sleep(60)

    async def play() -> None:
        monkeypatch.setattr("server.front.proxy._send", lambda send, answer: stalled(answer))
        await asyncio.wait_for(pulling.ask("site-0", rules.PULL_OBJECT), 20)

    asyncio.run(play())
    assert pulling.proxy._answers._left == rules.ANSWERS_BYTES
