"""The web application of the operator's page: one address, which is read and never written.

In: a function that reads the `Overview`, the host names that may be asked for. Out: an ASGI app.
Guarantees, in order:
  1. another host name than the known ones is refused, so that no foreign site can read the page
     through the browser of somebody on this machine;
  2. only GET and HEAD;
  3. every answer, a refusal too, has the same strict headers;
  4. what is on disk is read at most every few seconds, however often it is asked for.
Not covered: who may read it. It listens on this machine alone, behind the operator's own login.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Awaitable, Callable, Collection

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, PlainTextResponse, Response

from common.errors import KohortError
from server.page.overview import Overview
from server.page.render import policy, render_fault, render_page

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
METHODS = ("GET", "HEAD")
KEPT_S = 5.0
HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

Read = Callable[[], Overview]
Next = Callable[[Request], Awaitable[Response]]


class Kept:
    """The overview of a moment ago, read again when it is older than a few seconds."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._lock = threading.Lock()
        self._found: Overview | None = None
        self._time = 0.0

    def get(self) -> Overview:
        """Return the overview; raises KohortError where the folder cannot be read."""
        with self._lock:
            if self._found is None or time.monotonic() - self._time > KEPT_S:
                self._found = self._read()
                self._time = time.monotonic()
            return self._found


def build_app(read: Read, names: Collection[str] = ()) -> FastAPI:
    """Return the application; `names`: host names of a proxy, beside those of this machine."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    known = {*LOOPBACK, *(name.lower() for name in names)}
    headers = HEADERS | {"Content-Security-Policy": policy()}
    kept = Kept(read)

    @app.middleware("http")
    async def guard(request: Request, call_next: Next) -> Response:
        response: Response
        # (1) the host
        if host_of(request.headers.get("host", "")) not in known:
            response = PlainTextResponse("this page has another name\n", 421)
        else:
            response = await call_next(request)
        # (3) the headers
        response.headers.update(headers)
        return response

    # (2) the methods
    @app.api_route("/", methods=list(METHODS))
    def page(still: bool = False) -> Response:
        # (4) what is on disk
        try:
            return HTMLResponse(render_page(kept.get(), refresh=not still))
        except KohortError as error:
            return HTMLResponse(render_fault(error.code, str(error), error.hint), 503)

    return app


def host_of(header: str) -> str:
    """Return the host in a Host header, without its port, in lower case."""
    host, colon, port = header.strip().lower().rpartition(":")
    return host if colon and port.isdigit() else header.strip().lower()
