"""Our site client against the real SuperLink behind the front: what works, is refused, survives.

One SuperLink and one run of the toy ServerApp serve the whole file, because their start costs
seconds.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ArrayRecord, Context, Message, RecordDict

from common.errors import RefusedError
from common.wire.app_bundle import write_app
from server.operator.certificates import (
    create_authority,
    issue_server_certificate,
    issue_site_certificate,
    load_authority,
)
from server.operator.foreign import foreign_runs
from tests.transport import TOY, Consortium, Site, consortium, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def echo(message: Message, context: Context) -> Message:
    """The payload, backwards."""
    array = next(iter(message.content.array_records["payload"].values())).numpy()
    return Message(RecordDict({"payload": ArrayRecord([array[::-1].copy()])}), reply_to=message)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Consortium]:
    with consortium(tmp_path_factory.mktemp("consortium")) as running:
        yield running


@pytest.fixture(scope="module")
def run(hub: Consortium) -> tuple[int, str]:
    """The toy run: its id and the pin that a site computes from the plan."""
    run_id, pin = hub.submit()
    return run_id, pin


@pytest.fixture(scope="module")
def site(hub: Consortium, run: tuple[int, str]) -> Iterator[Site]:
    """A registered site that approved the plan of the run."""
    one = hub.site("a", echo, max_message_bytes=64 << 20)
    one.pins.add(run[1])
    one.wait_state("CONNECTED")
    yield one
    one.end()


def test_a_message_goes_there_and_back(hub: Consortium, site: Site) -> None:
    assert hub.ask([site.node_id], b"abc") == [{"node": site.node_id, "payload": b"cba".hex()}]


def test_a_payload_of_several_chunks_is_bit_identical(hub: Consortium, site: Site) -> None:
    payload = np.random.default_rng(0).integers(0, 256, 12 << 20, np.uint8).tobytes()
    [reply] = hub.ask([site.node_id], payload)
    assert bytes.fromhex(reply["payload"]) == payload[::-1]


def test_an_app_that_the_site_did_not_approve_gets_a_code_and_no_work(
    hub: Consortium, site: Site
) -> None:
    pins = set(site.pins)
    site.pins.clear()
    try:
        [reply] = hub.ask([site.node_id], b"abc")
    finally:
        site.pins |= pins
    assert (reply["error"], reply["reason"]) == (7, "E-APP-UNPINNED")


def test_the_hash_that_flower_reports_is_the_one_that_the_site_computed(
    hub: Consortium, run: tuple[int, str]
) -> None:
    status = hub.link.calls.run_status(run[0])
    assert (status.fab_hash, status.status) == (run[1], "running")


def test_a_bundle_with_code_in_it_is_refused_on_submission(
    hub: Consortium, run: tuple[int, str], tmp_path: Path
) -> None:
    app = hub.folder / "bundle"
    (app / "server.py").write_text("import os")
    try:
        with pytest.raises(RefusedError):
            hub.link.calls.submit(app, **TOY)
    finally:
        (app / "server.py").unlink()


def test_a_site_without_a_certificate_stays_outside(hub: Consortium) -> None:
    stranger = Site.create(hub, "stranger", echo).start()
    stranger.wait_state("CLIENT-CERTIFICATE-REFUSED")
    assert stranger.thread is not None
    assert stranger.thread.is_alive()
    stranger.end()


def test_a_certificate_that_is_in_no_registry_stays_outside(
    hub: Consortium, tmp_path: Path
) -> None:
    stranger = Site.create(hub, "forgotten", echo)
    certificate = tmp_path / "forgotten.crt"
    public = (stranger.folder / "node.pub").read_text()
    issue_site_certificate(load_authority(hub.state.authority), "forgotten", public, certificate)
    stranger.settings = replace(stranger.settings, client_certificate=certificate)
    stranger.start().wait_state("FORBIDDEN")
    stranger.end()


def test_one_sites_certificate_does_not_carry_another_sites_key(
    hub: Consortium, site: Site
) -> None:
    thief = Site.create(hub, "thief", echo)
    thief.settings = replace(
        thief.settings,
        client_certificate=site.folder / "node.crt",
        client_key=site.folder / "node.key",
    )
    thief.start().wait_state("FORBIDDEN")
    thief.end()


def test_a_wrong_authority_is_named(hub: Consortium, tmp_path: Path) -> None:
    create_authority(tmp_path)
    lost = Site.create(hub, "lost", echo, ca_file=tmp_path / "ca.crt").start()
    lost.wait_state("SERVER-CA-UNKNOWN")
    lost.end()


def test_expiry_of_the_server_certificate_is_survived_and_renewal_recovers(
    hub: Consortium, site: Site
) -> None:
    authority = load_authority(hub.state.authority)
    issue_server_certificate(authority, hub.state.tls, days=-1)
    hub.reload_front()
    guest = Site.create(hub, "guest", echo)
    hub.enrol(guest)
    guest.pins |= site.pins
    guest.start().wait_state("SERVER-CERTIFICATE-EXPIRED")
    issue_server_certificate(authority, hub.state.tls)
    hub.reload_front()
    guest.wait_state("CONNECTED")
    assert hub.ask([guest.node_id], b"xyz") == [{"node": guest.node_id, "payload": b"zyx".hex()}]

    # revoked: the next request is refused, the thread lives on
    hub.revoke("guest")
    guest.wait_state("FORBIDDEN")
    assert guest.thread is not None
    assert guest.thread.is_alive()
    guest.end()
    hub.link.calls.unregister(guest.node_id)
    with pytest.raises(RefusedError) as revoked:
        hub.link.calls.register(guest.folder / "node.pub", "guest")
    assert revoked.value.code == "E-KEY-REVOKED"


CLIENT = """
import sys, threading, time
from pathlib import Path
from client.fleet.client import FleetClient
from client.fleet.connection import FleetSettings
from client.fleet.health import Health
from tests.e2e.test_transport import echo

folder = Path(sys.argv[1])
url = sys.argv[2]
ca = Path(sys.argv[3])
pin = sys.argv[4]
hang = sys.argv[5] == "hang"

def handle(message, context):
    (folder / "started").touch()
    while hang:
        time.sleep(1)
    return echo(message, context)

settings = FleetSettings(
    url, ca, folder / "node.key", folder / "fleet", folder / "node.crt", poll_s=0.05
)
FleetClient(settings, lambda: {pin}, handle, Health(), admit=lambda *_: None).run(threading.Event())
"""


def test_a_killed_client_is_back_within_a_second_and_finishes_the_message(
    hub: Consortium, site: Site, run: tuple[int, str]
) -> None:
    """The client dies by `kill -9` while a handler works.

    The same message is answered after the restart, under the remembered node id.
    """
    killed = Site.create(hub, "killed", echo)
    hub.enrol(killed)
    arguments = [str(killed.folder), hub.url, str(hub.ca), run[1], "hang"]
    root = Path(__file__).parents[2]
    process = subprocess.Popen([sys.executable, "-c", CLIENT, *arguments], cwd=root)
    replies: list[object] = []
    try:
        until((killed.folder / "fleet" / "node-id").exists)
        asking = threading.Thread(
            target=lambda: replies.extend(hub.ask([killed.node_id], b"12")), daemon=True
        )
        asking.start()
        until((killed.folder / "started").exists)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()

    twin = Site(
        killed.folder, replace(killed.settings, state_dir=killed.folder / "without-id"), echo
    ).start()
    # without the remembered id the server would keep us out for a minute
    twin.wait_state("KEY-NOT-ADMITTED")
    twin.end()

    back = Site(killed.folder, killed.settings, echo, pins={run[1]})
    begun = time.monotonic()
    back.start().wait_state("CONNECTED")
    assert time.monotonic() - begun < 1.0 * (1 + os.getloadavg()[0] / (os.cpu_count() or 1))
    asking.join(300)
    assert replies == [{"node": killed.node_id, "payload": b"21".hex()}]
    back.end()


def test_a_killed_superlink_comes_back_with_its_nodes_and_its_run(
    hub: Consortium, site: Site, run: tuple[int, str]
) -> None:
    child = hub.link._children[0]
    assert child.process is not None
    os.kill(child.process.pid, signal.SIGKILL)
    until(lambda: site.state() != "CONNECTED")
    site.wait_state("CONNECTED")
    assert hub.ask([site.node_id], b"again") == [{"node": site.node_id, "payload": b"niaga".hex()}]
    assert not hub.link.calls.run_status(run[0]).finished


def test_a_foreign_run_fails_before_a_byte_of_its_bundle_is_fetched(
    hub: Consortium, site: Site, run: tuple[int, str], tmp_path: Path
) -> None:
    """The executor is at work on the study, so it is stopped first: its claim brings it back."""
    write_app(tmp_path / "foreign", b"study: {name: foreign}\n", **TOY)
    executor = hub.link._children[1]
    hub.ask([], b"")  # ends the toy run
    until(lambda: hub.link.calls.run_status(run[0]).finished)
    foreign = hub.link.calls.submit(tmp_path / "foreign", **TOY)
    status = until(lambda: next((s for s in [hub.link.calls.run_status(foreign)] if s.finished), 0))
    assert (status.outcome, status.details) == ("failed", "E-APP-UNPINNED")
    assert [row["run"] for row in foreign_runs(hub.state.superlink)] == [foreign]
    assert executor.runs


def test_a_killed_executor_resumes_its_task(hub: Consortium, site: Site) -> None:
    (hub.orders / "running").unlink()
    for path in hub.orders.glob("*.json"):
        path.unlink()
    hub.count = 0
    again, _ = hub.submit()
    executor = hub.link._children[1]
    assert executor.process is not None
    os.kill(executor.process.pid, signal.SIGKILL)
    assert hub.ask([site.node_id], b"on") == [{"node": site.node_id, "payload": b"no".hex()}]
    assert hub.link.calls.run_status(again).status == "running"


def test_the_server_listens_on_no_port_but_the_fronts(hub: Consortium) -> None:
    front = int(hub.url.rpartition(":")[2])
    assert listening_ports(
        {child.process.pid for child in hub.link._children if child.process}
    ) <= {front}


def listening_ports(pids: set[int]) -> set[int]:
    """The TCP ports on which these processes listen."""
    inodes = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            target = os.readlink(link)
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and words[9] in inodes:
                found.add(int(words[1].rpartition(":")[2], 16))
    return found
