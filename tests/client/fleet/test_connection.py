"""The HTTPS connection against servers and proxies that misbehave."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

import client.fleet.connection as connection
from server.operator.certificates import (
    ServerFiles,
    create_authority,
    issue_server_certificate,
    load_authority,
)
from tests.client.fleet.running import Running
from tests.fleet_server import PROTOBUF, Answer, FleetServer
from tests.transport import until


@pytest.mark.parametrize("why", ["another authority", "expired", "TLS 1.2"])
def test_a_server_that_cannot_prove_itself_gets_no_request(
    why: str, files: ServerFiles, tmp_path: Path
) -> None:
    authority = (
        create_authority(tmp_path / "ca")
        if why == "another authority"
        else load_authority(files.ca.parents[1] / "ca")
    )
    shown = issue_server_certificate(
        authority, tmp_path / "shown", days=-1 if why == "expired" else 1
    )
    newest = ssl.TLSVersion.TLSv1_2 if why == "TLS 1.2" else ssl.TLSVersion.TLSv1_3
    impostor = FleetServer(shown, newest_tls=newest)
    site = Running(impostor, files, tmp_path)
    code = {
        "another authority": "SERVER-CA-UNKNOWN",
        "expired": "SERVER-CERTIFICATE-EXPIRED",
        "TLS 1.2": "TLS-FAILED",
    }[why]
    until(lambda: site.code() == code)
    site.end()
    impostor.close()
    assert impostor.calls == []


def test_a_redirect_is_not_followed(server: FleetServer, site: Running, files: ServerFiles) -> None:
    until(lambda: site.code() == "CONNECTED")
    elsewhere = FleetServer(files)
    for status in (301, 307, 308):
        location = {"location": f"{elsewhere.url}/v1/fleet/pull-messages"}
        server.instead["pull-messages"] = lambda request, status=status, location=location: (
            status,
            location,
            b"",
        )
        until(lambda: site.code() == "REDIRECTED")
        server.instead.clear()
        until(lambda: site.code() == "CONNECTED")
    assert elsewhere.calls == []
    elsewhere.close()


def test_an_endless_answer_is_cut(
    server: FleetServer, site: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "ANSWER_CAP_BYTES", 1 << 20)
    server.instead["pull-messages"] = lambda request: (
        200,
        {**PROTOBUF, "transfer-encoding": "chunked"},
        b"",
    )
    until(lambda: site.code() == "ANSWER-TOO-LARGE")
    server.instead.clear()
    until(lambda: site.code() == "CONNECTED")


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ((200, {"content-type": "text/html"}, b"<html>log in</html>"), "NOT-THE-SERVER"),
        ((200, {"content-type": "text/html"}, b""), "NOT-THE-SERVER"),
        ((200, PROTOBUF, b"\xff\xff\xff"), "NOT-THE-SERVER"),
        ((200, {**PROTOBUF, "content-encoding": "gzip"}, b"\x1f\x8b"), "NOT-THE-SERVER"),
        ((404, {}, b""), "NOT-THE-SERVER"),
        ((503, {}, b""), "SERVER-BUSY"),
        ((429, {}, b""), "SERVER-BUSY"),
        ((403, {}, b""), "FORBIDDEN"),
        ((400, {}, b"No required SSL certificate was sent"), "CLIENT-CERTIFICATE-REFUSED"),
        (
            (412, {}, b'{"code": 1001, "detail": "RUNTIME_VERSION_INCOMPATIBLE update now"}'),
            "NOT-THE-SERVER",
        ),
        ((200, PROTOBUF, b"\x12\x00\x12\x00\x1a\x00\x1a\x00"), "NOT-THE-SERVER"),
    ],
)
def test_no_answer_ends_the_loop(
    answer: Answer, code: str, server: FleetServer, site: Running
) -> None:
    server.instead["pull-messages"] = lambda request: answer
    until(lambda: site.code() == code)
    server.instead.clear()
    until(lambda: site.code() == "CONNECTED")


def test_the_proxy_of_the_environment_is_not_used(
    server: FleetServer, files: ServerFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    site = Running(server, files, tmp_path)
    until(lambda: site.code() == "CONNECTED")
    site.end()


def test_a_configured_proxy_is_used(
    server: FleetServer, files: ServerFiles, tmp_path: Path
) -> None:
    site = Running(server, files, tmp_path, proxy="http://127.0.0.1:9")
    until(lambda: site.code() == "PROXY-UNREACHABLE")
    site.end()
    assert server.calls == []
