"""A DICOMweb server of a few lines, on loopback: well-behaved, unless a test says otherwise."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

BOUNDARY = "edge-of-a-part"
MULTIPART = f'multipart/related; type="application/dicom"; boundary="{BOUNDARY}"'
JSON = "application/dicom+json"


@dataclass
class Answer:
    """What the server says once."""

    status: int = 200
    kind: str = JSON
    body: bytes | Iterable[bytes] = b"[]"
    headers: Mapping[str, str] = field(default_factory=dict)


def part(data: bytes, kind: str = "application/dicom") -> bytes:
    """Return one image as a multipart body."""
    head = f"--{BOUNDARY}\r\nContent-Type: {kind}\r\nContent-Length: {len(data)}\r\n\r\n"
    return head.encode() + data + f"\r\n--{BOUNDARY}--\r\n".encode()


def facts(**values: str) -> dict[str, Any]:
    """Return one entry of an answer to a query; the tags begin with a letter here."""
    return {tag[1:]: {"vr": "UI", "Value": [value]} for tag, value in values.items()}


@dataclass
class Server:
    """Studies -> series -> images -> bytes; `modality`, `body_part`: of a series."""

    images: dict[tuple[str, str, str], bytes] = field(default_factory=dict)
    modality: dict[str, str] = field(default_factory=dict)
    body_part: dict[str, str] = field(default_factory=dict)
    page: int = 500
    ignores_offset: bool = False
    asked: list[str] = field(default_factory=list)
    credentials: list[str | None] = field(default_factory=list)
    other: Callable[[str], Answer | None] = lambda path: None
    url: str = ""

    def answer(self, path: str, keys: Mapping[str, list[str]]) -> Answer:
        """Answer as the standard says."""
        names = path.strip("/").split("/")
        place = tuple(names[1::2])
        if len(place) == 3:
            data = self.images.get(place)  # type: ignore[call-overload]
            return Answer(404, body=b"") if data is None else Answer(200, MULTIPART, part(data))
        found = sorted({one[: len(place) + 1] for one in self.images if one[: len(place)] == place})
        modalities = keys.get("ModalitiesInStudy")
        if modalities and not place:
            studies = {s for s, series, _ in self.images if self.modality[series] in modalities}
            found = [one for one in found if one[0] in studies]
        start = 0 if self.ignores_offset else int(keys["offset"][0])
        shown = found[start : start + min(self.page, int(keys["limit"][0]))]
        return Answer(body=json.dumps([self._facts(one) for one in shown]).encode())

    def _facts(self, place: tuple[str, ...]) -> dict[str, Any]:
        told = dict(zip(("_0020000D", "_0020000E", "_00080018"), place, strict=False))
        if len(place) == 2:
            told["_00080060"] = self.modality[place[1]]
            if place[1] in self.body_part:
                told["_00180015"] = self.body_part[place[1]]
        return facts(**told)


@contextmanager
def serving(server: Server, tls: ssl.SSLContext | None = None) -> Iterator[Server]:
    """Yield the server with its address, while it answers."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            path = parts.path.removeprefix("/dicom-web")
            server.asked.append(path)
            server.credentials.append(self.headers.get("authorization"))
            answer = server.other(path) or server.answer(path, parse_qs(parts.query))
            try:
                self.send_response(answer.status)
                self.send_header("Content-Type", answer.kind)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                blocks = [answer.body] if isinstance(answer.body, bytes) else answer.body
                self.end_headers()
                for block in blocks:
                    self.wfile.write(block)
            except OSError:
                # the other side had enough
                pass

        def log_message(self, *_: object) -> None:
            pass

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listener.daemon_threads = True
    if tls is not None:
        listener.socket = tls.wrap_socket(listener.socket, server_side=True)
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    scheme = "http" if tls is None else "https"
    server.url = f"{scheme}://127.0.0.1:{listener.server_port}/dicom-web"
    try:
        yield server
    finally:
        listener.shutdown()
        thread.join()
        listener.server_close()
