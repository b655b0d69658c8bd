"""A certificate that is replaced while a site runs: a wrong one is named, a right one connects."""

from __future__ import annotations

import threading
from datetime import timedelta
from pathlib import Path

import pytest
from flwr.app import Context, Message

from client.fleet.connection import create_node_key
from server.operator.certificates import (
    Authority,
    ServerFiles,
    create_authority,
    issue_site_certificate,
    load_authority,
)
from tests.client.fleet.running import Running
from tests.fleet_server import FleetServer, instruction
from tests.transport import until

YEAR = timedelta(days=366)


@pytest.fixture
def authority(files: ServerFiles) -> Authority:
    return load_authority(files.ca.parents[1] / "ca")


def issue(authority: Authority, folder: Path, days: float = 30) -> Path:
    """A node key and its certificate."""
    if not (folder / "node.key").exists():
        create_node_key(folder / "node.key", folder / "node.pub", "site")
    public = (folder / "node.pub").read_text()
    issue_site_certificate(authority, "site", public, folder / "node.crt", days=days)
    return folder / "node.crt"


@pytest.mark.parametrize(
    ("what", "code", "says"),
    [
        ("expired", "CLIENT-CERTIFICATE-DATES", "valid from"),
        ("foreign", "CLIENT-CERTIFICATE-UNUSABLE", "not issued by"),
        ("another key", "CLIENT-CERTIFICATE-UNUSABLE", "for another key than"),
    ],
)
def test_it_is_named_before_a_connection_and_a_renewed_one_connects(
    what: str,
    code: str,
    says: str,
    authority: Authority,
    server: FleetServer,
    files: ServerFiles,
    tmp_path: Path,
) -> None:
    certificate = issue(authority, tmp_path)
    site = Running(server, files, tmp_path, client_certificate=certificate)
    until(lambda: site.code() == "CONNECTED")
    if what == "expired":
        issue(authority, tmp_path, days=-1)
    elif what == "foreign":
        (tmp_path / "ca2").mkdir()
        issue(create_authority(tmp_path / "ca2"), tmp_path)
    else:
        (tmp_path / "other").mkdir()
        certificate.write_bytes(issue(authority, tmp_path / "other").read_bytes())
    # a hangup: the certificate that is there now counts
    site.client.reconnect()
    until(lambda: site.code() == code)
    assert says in site.health.get("connection").facts
    calls = len(server.calls)
    assert not site.stop.wait(0.5)
    assert len(server.calls) == calls
    issue(authority, tmp_path)
    until(lambda: site.code() == "CONNECTED")
    site.end()


def test_a_reconnect_ends_a_long_wait(
    authority: Authority, server: FleetServer, files: ServerFiles, tmp_path: Path
) -> None:
    server.instead["activate-node"] = lambda request: (403, {}, b"")
    site = Running(server, files, tmp_path, refused_retry_s=300.0)
    until(lambda: site.code() == "FORBIDDEN")
    server.instead.clear()
    site.client.reconnect()
    until(lambda: site.code() == "CONNECTED", 20.0)
    site.end()


def test_a_new_node_key_takes_over_between_two_messages(
    server: FleetServer, files: ServerFiles, tmp_path: Path
) -> None:
    """An answer belongs to the node that was asked: while one is at work nothing changes."""
    begun, go_on, rests = threading.Event(), threading.Event(), list[bool]()

    def handle(message: Message, context: Context) -> Message:
        begun.set()
        assert go_on.wait(30)
        return Message(message.content, reply_to=message)

    site = Running(server, files, tmp_path, handle=handle)
    until(lambda: site.code() == "CONNECTED")
    server.queue(instruction())
    assert begun.wait(30)

    def rest() -> None:
        rests.append(go_on.is_set())
        if len(rests) == 1:
            site.client.forget_node()

    site.client.on_rest = rest
    calls = len(server.calls)
    until(lambda: len(server.calls) > calls or site.stop.wait(0.2))
    go_on.set()
    until(lambda: server.names().count("activate-node") == 2)
    assert all(rests)
    until(lambda: site.code() == "CONNECTED")
    site.end()
