"""Passes Flower's calls of enrolled sites on to the SuperLink; the application of the front.

One call it answers itself: a site renews its certificate (server/operator/renewals.py).

In: requests with the peer's certificate in their state. Out: the SuperLink's answers.
Guarantees: no byte of a refused request reaches the SuperLink; a body is whole before it is passed
on; answers are held back until there is room for them, so memory does not grow with the number of
sites; one line a request is logged, without its content.
Not covered: connections, TLS and its certificates (listener.py).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import httpx

from common.errors import KohortError
from common.wire import renewal
from server.front import rules
from server.front.limits import Bodies, Pushed, Rate
from server.front.refusals import Refusals
from server.front.requests import judge
from server.front.sites import Sites, Visitor
from server.operator.renewals import Mailbox

CERTIFICATE = "certificate"
UPSTREAM_S = 60.0
UPSTREAM_CONNECTIONS = 64
REFUSALS_LOGGED_PER_S = 10
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
log = logging.getLogger("kohort.front")


class Disconnected(Exception):
    """The peer went away before its body was whole."""


class Proxy:
    """The application: one request in, one answer out."""

    def __init__(
        self,
        sites: Sites,
        socket_path: str,
        pushed_bytes: int = rules.PUSHED_BYTES,
        mailbox: Mailbox | None = None,
        *,
        between: bool = False,
    ) -> None:
        """`between`: no SuperLink runs, and the calls of a study are told so."""
        transport = httpx.AsyncHTTPTransport(
            uds=socket_path, limits=httpx.Limits(max_connections=UPSTREAM_CONNECTIONS)
        )
        self._client = httpx.AsyncClient(
            transport=transport, timeout=UPSTREAM_S, trust_env=False, follow_redirects=False
        )
        self._sites = sites
        self.refusals = Refusals()
        self._rate = Rate()
        self._bodies = Bodies()
        self._answers = Bodies(rules.ANSWERS_BYTES, rules.ANSWERS_EACH_BYTES)
        self._pushed = Pushed(pushed_bytes)
        self._mailbox = mailbox
        self._between = between
        self._renewals = Rate(per_s=rules.RENEWALS_PER_S, burst=rules.RENEWALS_BURST)
        self._renewing = asyncio.Semaphore(rules.RENEWALS_AT_ONCE)
        self._second = 0
        self._refused = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        try:
            async with asyncio.timeout(rules.REQUEST_S) as limit:
                await self._answer(scope, receive, send, limit)
        except (TimeoutError, Disconnected):
            # the answer never began: ending without one closes the connection
            self._note("-", scope, 0, 0)
            self.refusals.note(rules.TOO_LATE)
            await _close(send)

    async def close(self) -> None:
        """End the connections to the SuperLink."""
        await self._client.aclose()

    async def _answer(
        self, scope: Scope, receive: Receive, send: Send, limit: asyncio.Timeout
    ) -> None:
        """Judge the head, read the body, pass it on. `limit`: the time of the request."""
        visitor = self._visitor(scope)
        if isinstance(visitor, int):
            await self._refuse("-", scope, receive, send, visitor)
            return
        status, size = judge(
            scope["method"],
            scope["raw_path"],
            scope["query_string"],
            scope["headers"],
            visitor.key,
        )
        code = ""
        path = scope["raw_path"].decode("latin-1")
        if not status and not self._is_allowed(visitor.name, path):
            status = rules.TOO_MANY
        if not status and self._between and path != rules.RENEW:
            status = rules.BETWEEN
        if not status and not self._pushed.take(visitor.name, path, size):
            status = rules.TOO_MANY
            code = rules.OVER_QUOTA
        if status:
            await self._refuse(visitor.name, scope, receive, send, status, code)
            return
        if path == rules.RENEW:
            answer = await self._renew(visitor.name, size, scope, receive)
            self._note(visitor.name, scope, answer.status_code, size)
            await _send(send, answer)
            return
        largest = rules.CHUNK_ANSWER_BYTES if path == rules.PULL_OBJECT else 0
        async with self._answers.share(visitor.name, largest):
            answer = await self._pass_on(visitor.name, path, size, scope, receive)
            self._note(visitor.name, scope, answer.status_code, size)
            limit.reschedule(asyncio.get_running_loop().time() + rules.ANSWER_S)
            await _send(send, answer)

    def _is_allowed(self, name: str, path: str) -> bool:
        """Whether a site may ask once more now."""
        if path == rules.RENEW and not self._renewals.allow(name):
            return False
        return self._rate.allow(name)

    async def _renew(self, name: str, size: int, scope: Scope, receive: Receive) -> httpx.Response:
        """Read the request and ask the mailbox, which reads and writes files."""
        async with self._bodies.share(name, size):
            body = await _read(receive, size)
        if self._mailbox is None:
            self.refusals.note(rules.UNKNOWN_PATH)
            return httpx.Response(rules.UNKNOWN_PATH)
        der = scope["state"][CERTIFICATE]
        async with self._renewing:
            try:
                sign_key = self._sites.sign_key(name)
                found = await asyncio.to_thread(self._mailbox.answer, name, der, body, sign_key)
            except KohortError as error:
                # this machine's fault, such as a full disk
                log.warning("renewal: %s", error.code)
                self.refusals.note(rules.UPSTREAM)
                return httpx.Response(rules.UPSTREAM)
        status, content = found
        self.refusals.note(status)
        headers = {"content-type": renewal.MEDIA_TYPE} if content else {}
        return httpx.Response(status, content=content, headers=headers)

    async def _pass_on(
        self, name: str, path: str, size: int, scope: Scope, receive: Receive
    ) -> httpx.Response:
        """Read the body and pass it on; a site pays for what the SuperLink took alone."""
        taken = False
        try:
            async with self._bodies.share(name, size):
                body = await _read(receive, size)
                answer = await self._ask(scope, body)
            taken = answer.status_code == rules.TAKEN
        finally:
            if not taken:
                self._pushed.give_back(name, path, size)
        # an empty answer to a pull holds no instruction
        if taken and path == rules.PULL_MESSAGES and answer.content:
            self._pushed.grant(name)
        return answer

    def _visitor(self, scope: Scope) -> Visitor | int:
        """The site behind a request, or the status of the refusal."""
        der = scope["state"].get(CERTIFICATE)
        if not der:
            return rules.NO_CERTIFICATE
        return self._sites.visitor(der) or rules.NOT_ENROLLED

    async def _ask(self, scope: Scope, body: bytes) -> httpx.Response:
        """The SuperLink's answer; 502 while it does not answer."""
        headers = [pair for pair in scope["headers"] if pair[0] in rules.REQUEST_HEADERS]
        url = "http://superlink" + scope["raw_path"].decode("latin-1")
        try:
            return await self._client.post(url, content=body, headers=headers)
        except httpx.HTTPError:
            self.refusals.note(rules.UPSTREAM)
            return httpx.Response(rules.UPSTREAM)

    async def _refuse(
        self, name: str, scope: Scope, receive: Receive, send: Send, status: int, code: str = ""
    ) -> None:
        """Send a refusal, then read on for a moment, so that the peer sees it."""
        self._note(name, scope, status, 0, code)
        self.refusals.note(status)
        headers = [(b"content-length", b"0"), (b"connection", b"close")]
        if status == rules.BETWEEN:
            headers.append(rules.BETWEEN_HEADER)
        await send({"type": "http.response.start", "status": status, "headers": headers})
        # a body without a length may have an end without end: it is not read
        if not any(header == b"transfer-encoding" for header, _ in scope["headers"]):
            await _linger(receive)
        await send({"type": "http.response.body", "body": b""})

    def _note(self, name: str, scope: Scope, status: int, size: int, error: str = "") -> None:
        """Log one request; of very many refusals only some."""
        call = scope["raw_path"].decode("latin-1") if name != "-" else "-"
        if call not in rules.CALLS:
            call = "-"
        if status >= rules.BAD_REQUEST and not self._may_log():
            return
        line = f"{name} {call.rpartition('/')[2]} {status} {size} {error}"
        log.info("%s", line.rstrip())

    def _may_log(self) -> bool:
        """Whether one more refusal is logged in this second."""
        second = int(time.monotonic())
        if second != self._second:
            hidden = self._refused - REFUSALS_LOGGED_PER_S
            if hidden > 0:
                log.info("%d more refusals in one second", hidden)
            self._second = second
            self._refused = 0
        self._refused += 1
        return self._refused <= REFUSALS_LOGGED_PER_S


async def _read(receive: Receive, size: int) -> bytes:
    """The whole body, of exactly the size that the head named."""
    body = bytearray()
    while True:
        async with asyncio.timeout(rules.STALL_S):
            message = await receive()
        if message["type"] != "http.request":
            raise Disconnected
        body += message.get("body", b"")
        if len(body) > size:
            raise Disconnected
        if not message.get("more_body", False):
            return bytes(body)


async def _linger(receive: Receive) -> None:
    """Read on for a moment, so that the peer sees its refusal instead of a broken pipe."""
    try:
        async with asyncio.timeout(rules.LINGER_S):
            await _drain(receive)
    except TimeoutError:
        pass


async def _drain(receive: Receive) -> None:
    """Read and forget what a refused peer still sends, up to a limit."""
    seen = 0
    while seen < rules.LINGER_BYTES:
        message = await receive()
        seen += len(message.get("body", b""))
        if message["type"] != "http.request" or not message.get("more_body", False):
            return


async def _send(send: Send, answer: httpx.Response) -> None:
    """An answer of the SuperLink: its status, its media type, its bytes."""
    body = answer.content
    headers = [(b"content-length", str(len(body)).encode())]
    for name, value in answer.headers.raw:
        if name.lower() in rules.ANSWER_HEADERS:
            headers.append((name.lower(), value))
    await send({"type": "http.response.start", "status": answer.status_code, "headers": headers})
    # piece by piece: the next one waits until the peer has taken most of those before
    for start in range(0, len(body), rules.PIECE_BYTES):
        piece = body[start : start + rules.PIECE_BYTES]
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def _close(send: Send) -> None:
    """End a request that cannot be answered: 408, and the connection is closed."""
    headers = [(b"content-length", b"0"), (b"connection", b"close")]
    try:
        await send({"type": "http.response.start", "status": rules.TOO_LATE, "headers": headers})
        await send({"type": "http.response.body", "body": b""})
    except RuntimeError:
        # the answer had begun
        pass
