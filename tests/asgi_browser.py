"""A browser for an ASGI application in this process: httpx, without a port."""

from __future__ import annotations

import asyncio

import httpx
from starlette.types import ASGIApp


class Transport(httpx.BaseTransport):
    """Hands each request to the application."""

    def __init__(self, app: ASGIApp) -> None:
        self._inner = httpx.ASGITransport(app)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return asyncio.run(self._answer(request))

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        answer = await self._inner.handle_async_request(request)
        body = await answer.aread()
        return httpx.Response(answer.status_code, headers=answer.headers.raw, content=body)


def browse(app: ASGIApp, origin: str) -> httpx.Client:
    """Return a browser at an origin, which follows no redirect by itself."""
    return httpx.Client(transport=Transport(app), base_url=origin, follow_redirects=False)
