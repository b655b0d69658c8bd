"""The front's application on a unix socket behind nginx, which has done TLS.

In: requests with the client certificate in a header that nginx sets. Out: as the proxy answers.
Not covered: who may connect to the socket: its folder is its owner's alone.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import MutableMapping
from typing import Any
from urllib.parse import unquote

from server.front.nginx import CERTIFICATE_HEADER
from server.front.proxy import CERTIFICATE, Proxy, Receive, Send
from server.front.web import web_server

PEM_CAP = 16_384


def certificate_in(headers: list[tuple[bytes, bytes]]) -> bytes:
    """Return the certificate (DER) that nginx put into the header; empty for anything else."""
    found = [value for name, value in headers if name == CERTIFICATE_HEADER.encode()]
    if len(found) != 1 or len(found[0]) > PEM_CAP:
        return b""
    try:
        return ssl.PEM_cert_to_DER_cert(unquote(found[0].decode("ascii")))
    except ValueError:
        return b""


class BehindNginx:
    """Serves one application on one unix socket."""

    def __init__(self, listener: socket.socket, proxy: Proxy) -> None:
        self._listener = listener
        self._proxy = proxy
        self.server = web_server(self._answer)

    async def serve(self) -> None:
        """Serve until the server is told to exit."""
        await self.server.startup(sockets=[self._listener])
        try:
            await self.server.main_loop()
        finally:
            await self.server.shutdown(sockets=[self._listener])

    async def _answer(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Hand the certificate on as TLS would have done."""
        if scope["type"] == "http":
            scope["state"] = {CERTIFICATE: certificate_in(scope["headers"])}
        await self._proxy(scope, receive, send)
