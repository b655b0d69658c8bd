"""Certificates that end, are renewed or revoked while a site is connected: the embedded front."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx

from server.front.sockets import FLEET, SOCKETS, SocketFolder
from server.operator.certificates import (
    create_authority,
    issue_server_certificate,
    issue_site_certificate,
    load_authority,
)
from server.operator.sites import Registry
from server.operator.state import ServerState
from tests.faults.runs import Outcome
from tests.server.front.conftest import PROTOBUF, PULL, Door, Member, Upstream, embedded
from tests.transport import until

SITE = "clinic-a"
DAY_S = 86_400.0
SHORT_S = 5.0


def certificate_cases(folder: Path) -> Iterator[Outcome]:
    """Connect a site, change its certificate under it, and yield what its next calls came to."""
    state = ServerState(folder / "server")
    issue_server_certificate(create_authority(state.authority), state.tls)
    Registry(state.sites).close()
    sockets = SocketFolder(state.superlink / SOCKETS)
    upstream = Upstream(sockets.path(FLEET))
    threading.Thread(target=upstream.serve_forever, args=(0.05,), daemon=True).start()
    try:
        with embedded(state) as (port, process):
            door = Door(state, port, upstream, process, "embedded")
            for fault, case in CASES.items():
                statuses, expected = case(door)
                # a new connection is refused by TLS, a standing one by the front
                found = [status == 200 for status in statuses]
                wrong = "" if found == expected else f"{statuses}, expected {expected}"
                yield Outcome(fault, "front", "while connected", wrong or words(found), wrong)
    finally:
        upstream.shutdown()
        upstream.server_close()
        sockets.close()


def words(passed: list[bool]) -> str:
    """Return what became of a site's calls as the table names it."""
    return ", then ".join("passes" if one else "refused" for one in passed)


def call(client: httpx.Client, member: Member) -> int:
    """Return the status of one call; 0 where TLS refuses."""
    headers = {**PROTOBUF, "flwr-public-key": member.header}
    try:
        return client.post(PULL, content=b"x", headers=headers).status_code
    except httpx.TransportError:
        return 0


def renew(door: Door, member: Member, days: float) -> None:
    """Issue a certificate anew, on the same key."""
    public = member.key.with_suffix(".pub").read_text()
    authority = load_authority(door.state.authority)
    issue_site_certificate(authority, member.name, public, member.certificate, days=days)


def expires(door: Door) -> tuple[list[int], list[bool]]:
    """It ends while the connection stands; a new one passes."""
    member = door.member(SITE)
    # once the front is up, its answers are quick
    with door.client(member) as client:
        until(lambda: call(client, member) == 200)
    renew(door, member, SHORT_S / DAY_S)
    statuses = []
    with door.client(member) as client:
        statuses.append(call(client, member))
        time.sleep(SHORT_S + 1)
        statuses.append(call(client, member))
    renew(door, member, 1.0)
    with door.client(member) as client:
        statuses.append(call(client, member))
    return statuses, [True, False, True]


def is_renewed(door: Door) -> tuple[list[int], list[bool]]:
    """The old one still counts until it ends, and so does the new one."""
    member = door.member(SITE)
    with door.client(member) as old:
        renew(door, member, 1.0)
        with door.client(member) as new:
            return [call(old, member), call(new, member), call(old, member)], [True, True, True]


def is_revoked(door: Door) -> tuple[list[int], list[bool]]:
    """Its site is revoked while the connection stands; a new certificate helps nothing."""
    member = door.member("clinic-b")
    statuses = []
    with door.client(member) as client:
        statuses.append(call(client, member))
        registry = Registry(door.state.sites)
        registry.revoke("clinic-b")
        registry.close()
        statuses.append(call(client, member))
    renew(door, member, 1.0)
    with door.client(member) as client:
        statuses.append(call(client, member))
    return statuses, [True, False, False]


Case = Callable[[Door], tuple[list[int], list[bool]]]
CASES: dict[str, Case] = {
    "certificate ends": expires,
    "certificate renewed": is_renewed,
    "certificate revoked": is_revoked,
}
