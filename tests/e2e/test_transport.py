"""Our site client against Flower's real SuperLink over TLS: what works, is refused, survives.

One SuperLink and one run of the toy ServerApp serve the whole file, because a call of Flower's
command line costs a second.
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
from server.operator.certificates import (
    create_authority,
    issue_server_certificate,
    issue_site_certificate,
    load_authority,
)
from tests.transport import TOY, Consortium, Front, Site, consortium, until

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


def test_a_key_that_nobody_registered_stays_outside(hub: Consortium) -> None:
    stranger = Site.create(hub, "stranger", echo).start()
    stranger.wait_state("KEY-NOT-ADMITTED")
    assert stranger.thread is not None
    assert stranger.thread.is_alive()
    stranger.end()


def test_a_wrong_authority_is_named(hub: Consortium, tmp_path: Path) -> None:
    create_authority(tmp_path)
    lost = Site.create(hub, "lost", echo, ca_file=tmp_path / "ca.crt").start()
    lost.wait_state("SERVER-CA-UNKNOWN")
    lost.end()


def test_expiry_of_the_server_certificate_is_survived_and_renewal_recovers(
    hub: Consortium, site: Site, tmp_path: Path
) -> None:
    """Afterwards the same front asks for client certificates.

    A client without one stays outside, a client with one gets in.
    """
    authority = load_authority(hub.folder / "ca")
    front = Front(hub.url, hub.ca)
    front.use(issue_server_certificate(authority, tmp_path / "expired", days=-1))
    guest = Site.create(hub, "guest", echo, url=front.url)
    guest.node_id = hub.link.calls.register(guest.folder / "node.pub", "guest")
    guest.start()
    guest.wait_state("SERVER-CERTIFICATE-EXPIRED")
    fresh = issue_server_certificate(authority, tmp_path / "fresh")
    front.use(fresh)
    guest.wait_state("CONNECTED")
    front.use(fresh, wants_client=True)
    guest.wait_state("CLIENT-CERTIFICATE-REFUSED")
    guest.end()

    certificate = tmp_path / "guest.crt"
    issue_site_certificate(authority, "guest", (guest.folder / "node.pub").read_text(), certificate)
    admitted = Site(
        guest.folder,
        replace(guest.settings, client_certificate=certificate),
        echo,
        pins=set(site.pins),
    )
    admitted.start().wait_state("CONNECTED")
    assert hub.ask([guest.node_id], b"xyz") == [{"node": guest.node_id, "payload": b"zyx".hex()}]

    hub.link.calls.unregister(guest.node_id)
    admitted.wait_state("KEY-UNKNOWN")
    assert admitted.thread is not None
    assert admitted.thread.is_alive()
    admitted.end()
    front.close()
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

settings = FleetSettings(url, ca, folder / "node.key", folder / "fleet", poll_s=0.05)
FleetClient(settings, lambda: {pin}, handle, Health()).run(threading.Event())
"""


def test_a_killed_client_is_back_within_a_second_and_finishes_the_message(
    hub: Consortium, site: Site, run: tuple[int, str]
) -> None:
    """The client dies by `kill -9` while a handler works.

    The same message is answered after the restart, under the remembered node id.
    """
    killed = Site.create(hub, "killed", echo)
    killed.node_id = hub.link.calls.register(killed.folder / "node.pub", "killed")
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
    asking.join(150)
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
