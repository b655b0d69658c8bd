"""What is sent to a door: every path that Flower has, odd spellings of the eight, broken requests.

A `Knock` is the bytes of one connection. None of them may be answered with success.
"""

from __future__ import annotations

import functools
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flwr.proto import control_pb2, fab_pb2

from server.flower.wire import superlink_app
from server.front import rules

PULL = "/v1/fleet/pull-messages"
START_RUN = "/v1/control/start-run"
SECRET_BYTES = 48
H2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
ROOMS = ("fleet", "control", "runtime")


@dataclass(frozen=True)
class Knock:
    """One attempt: its kind, its name, and its bytes for a caller with this key header.

    `open_to_members`: a member's request of this kind is no attack.
    """

    kind: str
    name: str
    data: bytes
    open_to_members: bool = False


@functools.cache
def flower_paths() -> tuple[str, ...]:
    """Return every path of Flower's own application."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # of a library of Flower's
        warnings.simplefilter("ignore", DeprecationWarning)
        app = superlink_app(str(Path(folder) / "state.db"), b"s" * SECRET_BYTES)
        found = set(app.openapi()["paths"])
    return tuple(sorted(found | {"/", "/docs", "/docs/oauth2-redirect", "/openapi.json"}))


def kind_of(path: str) -> str:
    """The room of a path, as the table names it."""
    if path in rules.FLEET_CALLS:
        return "the eight calls"
    room = path.split("/")[2] if path.startswith("/v1/") else ""
    return f"/v1/{room}/*" if room in ROOMS else "other paths"


def foreign_run(marker: Path) -> bytes:
    """A request to start a run whose bundle would create a file."""
    code = f"import pathlib; pathlib.Path({str(marker)!r}).touch()".encode()
    return bytes(
        control_pb2.StartRunRequest(
            fab=fab_pb2.Fab(hash_str="0" * 64, content=code)
        ).SerializeToString()
    )


def request(
    path: str,
    key: str,
    *lines: str,
    method: str = "POST",
    version: str = "HTTP/1.1",
    body: bytes = b"x",
    length: bool = True,
) -> bytes:
    """The bytes of one request."""
    head = [f"{method} {path} {version}", "host: x", "content-type: application/protobuf"]
    if key:
        head.append(f"flwr-public-key: {key}")
    if length:
        head.append(f"content-length: {len(body)}")
    return "\r\n".join([*head, *lines, "", ""]).encode("latin-1") + body


def knocks(key: str, marker: Path) -> Iterator[Knock]:
    """Yield all of them, for a caller who shows this key."""
    yield from paths(key, marker)
    yield from spellings(key)
    yield from broken(key)
    yield from smuggled(key, marker)


def paths(key: str, marker: Path) -> Iterator[Knock]:
    """Yield every path of Flower's, by the method that it has there and by GET."""
    for path in flower_paths():
        is_call = path in rules.FLEET_CALLS
        # an empty message is a whole one: where it got through, the SuperLink would ask who calls
        body = b"" if is_call else b"x"
        if path == START_RUN:
            body = foreign_run(marker)
        yield Knock(kind_of(path), path, request(path, key, body=body), is_call)
        yield Knock(kind_of(path), path, request(path, key, method="GET", body=b""))


def spellings(key: str) -> Iterator[Knock]:
    """Yield other spellings of a call that passes and of one that does not."""
    found = (
        "/v1/fleet/%70ull-messages",
        "/v1/fleet%2fpull-messages",
        "/v1/fleet//pull-messages",
        "//v1/fleet/pull-messages",
        "/v1/fleet/./pull-messages",
        "/v1/fleet/../fleet/pull-messages",
        "/v1/fleet/pull-messages/",
        "/v1/fleet/pull-messages/..",
        "/v1/fleet/pull-messages;a=1",
        "/v1/fleet/pull-messages?x",
        "/v1/fleet/pull-messages?",
        "/v1/fleet/pull-messages#x",
        "/v1/fleet/PULL-MESSAGES",
        "/v1/fleet/pull-messages%00",
        "/v1/fleet/pull-messages%0d%0aa:b",
        "/v1/fleet/pull-messages/../../control/start-run",
        "/v1/fleet/pull-messages/..%2f..%2fcontrol/list-runs",
        "/v1/control/%73tart-run",
        "/v1/fleet/..;/control/start-run",
        "\\v1\\fleet\\pull-messages",
        "https://x/v1/control/start-run",
        "http://superlink/v1/control/list-runs",
        "http://unix:/operator.sock/v1/control/list-runs",
        "*",
        "/v1/fleet/pull-messages\xc3\xa9",
    )
    for path in found:
        yield Knock("other spellings", path, request(path, key))


def broken(key: str) -> Iterator[Knock]:
    """Yield requests that are no such call: methods, versions, headers, lengths."""
    kind = "methods, versions, headers"
    for method in ("GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND", "post"):
        yield Knock(kind, method, request(PULL, key, method=method))
    yield Knock(kind, "CONNECT", request("superlink:80", key, method="CONNECT"))
    yield Knock(kind, "HTTP/2", H2)
    yield Knock(kind, "HTTP/0.9", f"GET {PULL}\r\n".encode())
    yield Knock(kind, "HTTP/3.7", request(PULL, key, version="HTTP/3.7"))
    yield Knock(kind, "no length", request(PULL, key, length=False, body=b""))
    for line in (
        "expect: 100-continue",
        "content-encoding: gzip",
        "upgrade: h2c",
        "upgrade: websocket",
        "content-length: 7",
        "content-type: text/html",
        f"flwr-public-key: {key or 'abc'}",
    ):
        yield Knock(kind, line.partition(":")[0], request(PULL, key, line))
    for text in ("-1", "+1", "0x1", "1 1", "1,1", "1e3", "99999999999999999999", "\xb2"):
        yield Knock(kind, f"length {text}", request(PULL, key, f"content-length: {text}", length=False))  # fmt: skip  # noqa: E501
    yield Knock(kind, "a header of 40 KiB", request(PULL, key, "x: " + "y" * 40_000))
    yield Knock(kind, "5,000 headers", request(PULL, key, *(f"x{n}: 1" for n in range(5_000))))
    yield Knock(kind, "a body above the cap", request(PULL, key, body=b"x" * 5_000))


def smuggled(key: str, marker: Path) -> Iterator[Knock]:
    """Yield requests that two readers could end at two places, with a second request inside."""
    kind = "two requests in one"
    inner = request(START_RUN, key, body=foreign_run(marker))
    chunk = f"{len(inner):x}\r\n".encode() + inner + b"\r\n0\r\n\r\n"
    for line in (
        "transfer-encoding: chunked",
        "transfer-encoding: identity, chunked",
        "transfer-encoding: xchunked",
        "transfer-encoding : chunked",
        "transfer-encoding:\tchunked",
        "Transfer-Encoding: Chunked",
        "x: y\r\n transfer-encoding: chunked",
        "transfer-encoding: gzip, chunked",
    ):
        name = line.replace("\r\n", " ")
        yield Knock(kind, f"{name}, with a length", request(PULL, key, line, body=chunk))
        both = request(PULL, key, line, body=b"0\r\n\r\n" + inner, length=False)
        yield Knock(kind, f"{name}, without one", both)
    short = request(PULL, key, "content-length: 0", body=inner)
    yield Knock(kind, "two lengths", short)
    yield Knock(kind, "a line feed alone", request(PULL, key).replace(b"\r\n", b"\n") + inner)
    yield Knock(kind, "a carriage return alone", request(PULL, f"{key}\rcontent-length: 0") + inner)
    yield Knock(kind, "a zero byte in a header", request(PULL, key, "x: a\x00b") + inner)
    get = request(PULL, key, method="GET", body=inner)
    yield Knock(kind, "a body behind GET", get)
    yield Knock(kind, "a second request behind the first", request("/v1/control/list-runs", key) + inner)  # fmt: skip  # noqa: E501
