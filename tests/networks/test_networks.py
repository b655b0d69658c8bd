"""The guides' steps, followed literally by an operator and three hospitals on separate networks.

One hospital reaches the server by its name over IPv4, one over IPv6, and one through a CONNECT
proxy alone. The commands are read from docs/operator/first-study.md and docs/hospital.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kohort.manifest import read_manifest
from tests.networks import connect_proxy, knock
from tests.networks.consortium import (
    HOSPITAL,
    NAME,
    OPERATOR,
    PORT,
    PROXY_PORT,
    SITES,
    People,
    begin,
    open_people,
)
from tests.networks.world import open_world, why_not

WHY_NOT = why_not()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT),
]
LISTENS = "0A"  # of /proc/net/tcp


@pytest.fixture(scope="module")
def people() -> Iterator[People]:
    """Everybody with keys, a plan and a cohort; no daemon runs but the proxy."""
    with (
        tempfile.TemporaryDirectory(prefix="kohort-") as folder,  # nginx needs short paths
        open_world() as places,
        open_people(Path(folder), places) as everybody,
    ):
        everybody.start("proxy", everybody.proxy, f"python {connect_proxy.__file__} {PROXY_PORT}")
        begin(everybody)
        yield everybody


def start_server(people: People) -> None:
    """Start the server as the guide does, and wait until it has all sites."""
    command = OPERATOR.command("kohort-server run", people.operator.folder)
    people.start("server", people.operator, command)
    people.until(lambda: people.log("server").count("starting on") and answers(people))


def answers(people: People) -> bool:
    """Whether a member gets an answer."""
    return came_of(people, "hospital-a", "member") == "404"


def came_of(people: People, site: str, how: str, host: str = NAME) -> str:
    """What comes of one request from a hospital's machine."""
    machine = people.hospitals[site]
    state = machine.folder / "var/lib/kohort"
    return machine.run(f"python {knock.__file__} {how} {host} {PORT} {state}")


def check_the_door(people: People) -> None:
    """From another network, over IPv4 and IPv6: one port, TLS 1.3, a member's certificate."""
    for site in ("hospital-a", "hospital-b"):
        assert came_of(people, site, "member") == "404"
        assert came_of(people, site, "nameless") == "400"
        assert came_of(people, site, "tls12") == "refused"
    # the third hospital has no way but its proxy
    for host in (NAME, "192.0.2.1"):
        assert came_of(people, "hospital-c", "member", host) == "unreachable"
    tables = people.operator.run("cat /proc/net/tcp /proc/net/tcp6")
    rows = [line.split() for line in tables.splitlines()]
    assert {int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == LISTENS} == {PORT}


@pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx: not installed")
def test_the_door_behind_nginx(people: People) -> None:
    operator = people.operator
    root = operator.folder / "var/lib/kohort-server"
    settings = root / "server.yaml"
    embedded = settings.read_text()
    settings.write_text(embedded.replace("front: embedded", "front: nginx"))
    try:
        operator.run(people.operator_does("kohort-server front").rpartition("next: ")[2])
        start_server(people)
        check_the_door(people)
        people.end("server")
    finally:
        settings.write_text(embedded)
        operator.run(f"kill $(cat {root / 'front' / 'nginx.pid'})")


def test_a_study_over_ipv4_ipv6_and_a_proxy(people: People) -> None:
    start_server(people)
    check_the_door(people)
    people.until(lambda: people.log("server").count("registered") >= len(SITES))
    for printed in people.hospital_does("kohort-site check --state /var/lib/kohort").values():
        assert printed.splitlines()[-1] == "server: ok"
    for name, machine in people.hospitals.items():
        people.start(name, machine, HOSPITAL.command("kohort-site run", machine.folder, name))
    people.until(lambda: people.daemons["server"].poll() is not None)
    assert "is complete" in people.log("server")
    people.end(*SITES)

    # the release has all three
    people.operator_does("kohort-server release")
    assert "consistent" in people.operator_does("kohort verify")
    [release] = (people.operator.folder / "releases").iterdir()
    assert set(read_manifest(release).sites) == set(SITES)
    assert f"CONNECT {NAME}:{PORT}" in people.log("proxy")
    for name in SITES:
        assert f"serving https://{NAME}:{PORT} as {name}" in people.log(name)
        assert "Traceback" not in people.log(name)
