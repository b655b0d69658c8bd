"""The SuperLink's application behind its two sockets: whole bodies, and no layer too many."""

from __future__ import annotations

import asyncio
import warnings
from pathlib import Path
from typing import Any

import httpx
import pytest
from flwr.superlink.routers.fleet.node_auth import NodeAuthMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from server.flower.announcements import REFUSED
from server.flower.link_process import LARGEST_BODY, fleet_only, operator_calls
from server.flower.wire import CONTROL_LAYERS, superlink_app, without_control
from server.front import rules

PIECE = 64 << 10
PUSH_OBJECT = "/v1/runtime/push-object"


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Flower's application."""
    with warnings.catch_warnings():
        # of a library of Flower's
        warnings.simplefilter("ignore", DeprecationWarning)
        folder: Path = tmp_path_factory.mktemp("link")
        return superlink_app(str(folder / "state.db"), b"s" * 48)


def ask(application: Any, path: str, **named: Any) -> httpx.Response:
    """One call of an application, in this process."""

    async def call() -> httpx.Response:
        transport = httpx.ASGITransport(app=application)
        async with httpx.AsyncClient(transport=transport, base_url="http://superlink") as client:
            return await client.post(path, **named)

    return asyncio.run(call())


def bodies_of(call: Any, pieces: int) -> tuple[int, list[int]]:
    """The status of a call whose body comes in pieces, and how the application received it."""
    received: list[int] = []
    sent: list[dict[str, Any]] = []
    left = [b"x" * PIECE] * pieces

    async def superlink(scope: Any, receive: Any, send: Any) -> None:
        more = True
        while more:
            message = await receive()
            received.append(len(message["body"]))
            more = message["more_body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive() -> dict[str, Any]:
        body = left.pop()
        return {"type": "http.request", "body": body, "more_body": bool(left)}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(call(superlink, receive, send))
    return int(sent[0]["status"]), received


def scope_of(path: str) -> dict[str, Any]:
    """The head of a call."""
    head = {"type": "http", "method": "POST", "path": path, "query_string": b""}
    return {**head, "raw_path": path.encode()}


async def from_a_site(superlink: Any, receive: Any, send: Any) -> None:
    """An object over the fleet's socket."""
    await fleet_only(superlink)(scope_of(rules.PUSH_OBJECT), receive, send)


async def from_the_operator(superlink: Any, receive: Any, send: Any) -> None:
    """An object over the operator's socket."""
    await operator_calls(superlink, superlink)(scope_of(PUSH_OBJECT), receive, send)


@pytest.mark.parametrize("call", [from_a_site, from_the_operator])
def test_flower_gets_a_body_whole_and_none_above_the_cap(call: Any) -> None:
    assert bodies_of(call, 80) == (200, [80 * PIECE])
    assert bodies_of(call, LARGEST_BODY // PIECE + 1) == (REFUSED, [])


def test_calls_of_control_alone_pass_its_layers() -> None:
    seen: list[str] = []

    def named(name: str) -> Any:
        async def application(scope: Any, receive: Any, send: Any) -> None:
            seen.append(name)
            await PlainTextResponse("")(scope, receive, send)

        return application

    application = operator_calls(named("all"), named("lean"))
    for path in ("/v1/control/start-run", PUSH_OBJECT, "/v1/%63ontrol/start-run", "/health"):
        ask(application, path)
    assert seen == ["all", "lean", "all", "lean"]


def test_only_layers_of_control_are_left_out(app: Any) -> None:
    lean = without_control(app)
    left_out = [layer for layer in app.user_middleware if layer not in lean.user_middleware]
    assert len(left_out) == 4
    assert {layer.cls.__module__ for layer in left_out} == {CONTROL_LAYERS}
    assert NodeAuthMiddleware in [layer.cls for layer in lean.user_middleware]
    assert app.middleware_stack is None or app.middleware_stack is not lean.middleware_stack
    # what they share stays shared
    assert lean.state is app.state and lean.router is app.router


@pytest.mark.parametrize("path", [*rules.FLEET_CALLS, PUSH_OBJECT])
def test_what_is_left_out_changes_no_other_call(app: Any, path: str) -> None:
    lean = without_control(app)
    answer = PlainTextResponse("as it is", 299, {"x-own": "1"})

    async def call_next(request: Request) -> Response:
        return answer

    async def through(layer: Any) -> Response:
        request = Request({**scope_of(path), "headers": [], "app": app, "server": ("s", 1)})
        found: Response = await layer.cls(app, **layer.kwargs).dispatch(request, call_next)
        return found

    before = list(answer.raw_headers)
    for layer in app.user_middleware:
        if layer not in lean.user_middleware:
            assert asyncio.run(through(layer)) is answer
    assert answer.raw_headers == before


@pytest.mark.parametrize("path", [rules.PULL_MESSAGES, rules.PUSH_OBJECT, PUSH_OBJECT])
def test_nobody_is_served_without_a_name(app: Any, path: str) -> None:
    headers = {"content-type": "application/protobuf"}
    for application in (app, without_control(app)):
        assert ask(application, path, headers=headers, content=b"").status_code == 401
