"""What every request to the desk must show before a page is made.

In: an HTTP request as ASGI gives it. Out: the page's answer, or a short refusal.
Rules, in this order:
  1. the host is this machine, as the browser names it (no other name leads here: DNS rebinding)
  2. the path lies under the desk's own random place (cookies know no ports; the place is one's own)
  3. the method is GET, HEAD or POST
  4. no other site asked for it
  5. a form says its origin, is a plain form and has a declared size within `BODY_CAP_BYTES`
  6. there is a session, but for the link that opens one, the style and the icon
Guarantees: an answer is kept by no cache, runs no script and loads nothing from elsewhere.
Not covered: whose form it is (pages.py compares its secret); who may read a session's cookie.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from client.desk.sessions import Session, Sessions

BODY_CAP_BYTES = 1 << 16
COOKIE = "kohort_desk"
COOKIE_CAP_BYTES = 4096
FORM = "application/x-www-form-urlencoded"
LOCAL_HOST = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:[0-9]{1,5})?")
# paths that need no session, below the desk's place
OPEN, STYLE, ICON = "/open", "/desk.css", "/desk.svg"
FREE = (OPEN, STYLE, ICON)
HEADERS: tuple[tuple[bytes, bytes], ...] = (
    (
        b"content-security-policy",
        b"default-src 'none'; img-src 'self'; style-src 'self'; form-action 'self'; "
        b"base-uri 'none'; frame-ancestors 'none'",
    ),
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    # not no-referrer: with it a browser hides a form's own origin, which rule 5 asks for
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
)


class Refusal(Exception):
    """Why a request gets no page: status and a sentence without anything of the request."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence


@dataclass(frozen=True)
class Address:
    """Where the desk is: its random place, and its port; None behind a socket file."""

    place: str
    port: int | None

    def is_own(self, host: str) -> bool:
        """Return whether a Host header names this machine and this port."""
        found = LOCAL_HOST.fullmatch(host)
        if found is None:
            return False
        return self.port is None or found.group(2) == f":{self.port}"


class Door:
    """The rules around an application."""

    def __init__(self, app: ASGIApp, address: Address, sessions: Sessions) -> None:
        self._app = app
        self._address = address
        self._sessions = sessions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        answer = _with_headers(send)
        try:
            session = self._judge(scope)
        except Refusal as refusal:
            await _refuse(refusal, answer)
            return
        scope.setdefault("state", {})["session"] = session
        await self._app(scope, _capped(receive), answer)

    def _judge(self, scope: Scope) -> Session | None:
        """Rules 1 to 6; return the session. Raises Refusal."""
        headers = _headers(scope)
        # (1) the host is this machine
        host = _only(headers, "host")
        if not self._address.is_own(host):
            raise Refusal(421, "This desk answers on this machine's own address alone.")
        # (2) the path lies under the desk's place
        place, path = self._address.place, str(scope["path"])
        if not path.startswith(f"{place}/"):
            raise Refusal(404, "There is no such page. Open the link that the terminal shows.")
        # (3) the method
        if scope["method"] not in ("GET", "HEAD", "POST"):
            raise Refusal(405, "This desk knows pages and forms alone.")
        # (4) no other site asked
        if not set(headers.get("sec-fetch-site", ["none"])) <= {"none", "same-origin"}:
            raise Refusal(403, "Another site asked for this page.")
        # (5) a form's origin, kind and size
        if scope["method"] == "POST":
            _check_form(headers, host)
        # (6) a session
        session = self._sessions.find(_cookie(headers))
        if session is None and path.removeprefix(place) not in FREE:
            raise Refusal(401, "Nobody is signed in. Open the link that the terminal shows.")
        return session


def _check_form(headers: dict[str, list[str]], host: str) -> None:
    """Rule 5; raises Refusal."""
    if _only(headers, "origin") != f"http://{host}":
        raise Refusal(403, "Another site sent this form.")
    if _only(headers, "content-type").partition(";")[0].strip().lower() != FORM:
        raise Refusal(415, "This desk takes plain forms alone.")
    length = _only(headers, "content-length")
    if not (length.isascii() and length.isdecimal()) or "transfer-encoding" in headers:
        raise Refusal(411, "A form must say its size.")
    if len(length) > 9 or int(length) > BODY_CAP_BYTES:
        raise Refusal(413, "This form is too large.")


def _headers(scope: Scope) -> dict[str, list[str]]:
    """The headers of a request, by their names in lower case."""
    found: dict[str, list[str]] = {}
    for name, value in scope["headers"]:
        found.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
    return found


def _only(headers: dict[str, list[str]], name: str) -> str:
    """A header that is there once; otherwise ""."""
    values = headers.get(name, [])
    return values[0] if len(values) == 1 else ""


def _cookie(headers: dict[str, list[str]]) -> str:
    """The session's cookie; "" where there is none."""
    text = _only(headers, "cookie")
    if len(text) > COOKIE_CAP_BYTES:
        return ""
    try:
        found = SimpleCookie(text).get(COOKIE)
    except CookieError:
        return ""
    return "" if found is None else found.value


def _capped(receive: Receive) -> Receive:
    """The body, up to the cap: what was declared is not what must come."""
    taken = 0

    async def next_part() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > BODY_CAP_BYTES:
            raise HTTPException(413)
        return message

    return next_part


def _with_headers(send: Send) -> Send:
    """Send with the headers that every answer has."""

    async def send_on(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), *HEADERS]
        await send(message)

    return send_on


async def _refuse(refusal: Refusal, send: Send) -> None:
    """Answer with a refusal's sentence."""
    body = f"{refusal.sentence}\n".encode()
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
    ]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
