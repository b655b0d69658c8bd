"""The page's one address: hosts, methods, headers, and how often the disk is read."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re

import httpx
import pytest
from fastapi import FastAPI

from common.errors import ConfigurationError
from server.page import app as page_app
from server.page.app import HEADERS, build_app, host_of
from server.page.overview import Overview
from tests.server.page.overviews import overview


def ask(
    app: FastAPI, path: str = "/", *, method: str = "GET", host: str = "localhost"
) -> httpx.Response:
    """One question to the application, without a network."""

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return await client.request(method, path, headers={"Host": host})

    return asyncio.run(send())


# method, path, Host, status
ANSWERS = {
    "the page": ("GET", "/", "127.0.0.1:9480", 200),
    "the page, not read again": ("GET", "/?still=1", "localhost:9480", 200),
    "its head": ("HEAD", "/", "localhost", 200),
    "over IPv6": ("GET", "/", "[::1]:9480", 200),
    "by the proxy's name": ("GET", "/", "Page.Example.org", 200),
    "by a name that a foreign site made": ("GET", "/", "evil.example.org", 421),
    "by a name that begins like ours": ("GET", "/", "localhost.evil.org", 421),
    "by no name": ("GET", "/", "", 421),
    "another address": ("GET", "/state/keys/operator.key", "localhost", 404),
    "a way out": ("GET", "/../server.yaml", "localhost", 404),
    "documentation of an interface": ("GET", "/openapi.json", "localhost", 404),
    "a wrong argument": ("GET", "/?still=<script>", "localhost", 422),
    "POST": ("POST", "/", "localhost", 405),
    "PUT": ("PUT", "/", "localhost", 405),
    "DELETE": ("DELETE", "/", "localhost", 405),
    "OPTIONS": ("OPTIONS", "/", "localhost", 405),
    "TRACE": ("TRACE", "/", "localhost", 405),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_every_answer_has_the_strict_headers(name: str) -> None:
    method, path, host, status = ANSWERS[name]
    app = build_app(overview, ["page.example.org"])
    answer = ask(app, path, method=method, host=host)
    assert answer.status_code == status
    for header, value in HEADERS.items():
        assert answer.headers[header] == value
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    for rule in ("base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"):
        assert rule in policy
    assert "unsafe" not in policy and "set-cookie" not in answer.headers
    assert ("eye-consortium" in answer.text) == (status == 200 and method == "GET")


def test_the_policy_allows_the_style_sheet_that_the_page_has() -> None:
    answer = ask(build_app(overview))
    (style,) = re.findall(r"<style>(.*?)</style>", answer.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in answer.headers["content-security-policy"]


def test_many_questions_read_the_disk_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(page_app.time, "monotonic", lambda: now)
    reads = []

    def read() -> Overview:
        reads.append(now)
        return overview()

    app = build_app(read)
    for _ in range(5):
        ask(app)
    assert len(reads) == 1
    now = 106.0
    ask(app)
    assert len(reads) == 2


def test_a_folder_that_cannot_be_read_is_said_and_the_page_comes_back() -> None:
    faults = [ConfigurationError("no server is set up here", hint="`kohort-server init`")]

    def read() -> Overview:
        if faults:
            raise faults.pop()
        return overview()

    app = build_app(read)
    answer = ask(app)
    assert answer.status_code == 503
    assert "no server is set up here" in answer.text
    assert "<code>kohort-server init</code>" in answer.text
    assert ask(app).status_code == 200


@pytest.mark.parametrize(
    ("header", "host"),
    [
        ("localhost", "localhost"),
        ("LOCALHOST:80", "localhost"),
        ("[::1]:80", "[::1]"),
        ("[::1]", "[::1]"),
        ("localhost:x", "localhost:x"),
        ("user@localhost", "user@localhost"),
        ("", ""),
    ],
)
def test_a_host_is_read_without_its_port(header: str, host: str) -> None:
    assert host_of(header) == host
