"""The real `kohort-server run` with Flower's own processes over TLS, killed in the middle.

The sites are toys on the real site client.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from client.fleet.client import FleetClient
from client.fleet.connection import FleetSettings, create_node_key
from client.fleet.health import Health
from common.process import free_port
from common.study.bundle import write_bundle
from common.wire import signing
from common.wire.app_bundle import fab_hash
from common.wire.messages import Header
from server.operator.certificates import (
    create_authority,
    issue_server_certificate,
    issue_site_certificate,
    load_authority,
)
from server.operator.config import new_config
from server.operator.requests import Request
from server.operator.sites import Registry
from server.operator.state import ServerState
from server.rounds.record import StudyRecord
from tests.federation import ToySite, tiny_plan

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@contextmanager
def site_client(
    toy: ToySite, folder: Path, state: ServerState, port: int, pin: str
) -> Iterator[None]:
    """A toy site on the real Fleet client, enrolled."""
    create_node_key(folder / "node.key", folder / "node.pub", toy.name)
    node_key = " ".join((folder / "node.pub").read_text().split()[:2])
    (state.node_keys).mkdir(parents=True, exist_ok=True)
    (state.node_keys / f"{toy.name}.pub").write_text(node_key + "\n")
    line = signing.public_text(toy.key.public_key())
    registry = Registry(state.sites)
    registry.enrol(
        Request(
            format="kohort-request/1", site=toy.name, node_key=node_key, sign_key=line, signature=""
        )
    )
    registry.close()
    certificate = folder / "node.crt"
    issue_site_certificate(load_authority(state.authority), toy.name, node_key, certificate)
    settings = FleetSettings(
        f"https://127.0.0.1:{port}",
        state.authority / "ca.crt",
        folder / "node.key",
        folder / "fleet",
        certificate,
        retry_first_s=0.2,
        retry_cap_s=1.0,
        refused_retry_s=1.0,
    )
    stop = threading.Event()
    client = FleetClient(settings, lambda: {pin}, toy.app(), Health(), admit=lambda *_: None)
    thread = threading.Thread(target=client.run, args=(stop,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(30)


def start(state: ServerState, bundle: Path, log: Path) -> subprocess.Popen[bytes]:
    """`kohort-server run` as an operator starts it."""
    command = [
        str(Path(sys.executable).parent / "kohort-server"),
        "run",
        str(bundle),
        "--state",
        str(state.root),
    ]
    with log.open("ab") as output:
        return subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)


def wait(
    condition: object, process: subprocess.Popen[bytes], log: Path, timeout_s: float = 240
) -> None:
    """Wait for a condition while the server lives."""
    deadline = time.monotonic() + timeout_s
    while not condition():  # type: ignore[operator]
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.2)


def test_a_killed_server_is_started_again_and_completes_the_study(tmp_path: Path) -> None:
    state, key, log = ServerState(tmp_path / "server"), signing.new_key(), tmp_path / "server.log"
    signing.save_private(state.operator_key, key)
    issue_server_certificate(create_authority(state.authority), state.tls, [])
    port = free_port()
    new_config("demo", f"https://127.0.0.1:{port}", state.config)
    study = write_bundle(
        tiny_plan(tmp_path / "plan", models__gan__rounds=4), key, tmp_path / "bundle"
    )
    pin = fab_hash((tmp_path / "bundle" / "study.yaml").read_bytes())
    toys = [
        ToySite(site.name, study, key.public_key(), seed) for seed, site in enumerate(study.sites)
    ]
    asked: list[Header] = toys[0].asked
    clients = [site_client(toy, tmp_path / "sites" / toy.name, state, port, pin) for toy in toys]
    with clients[0], clients[1], clients[2]:
        first = start(state, tmp_path / "bundle", log)
        try:
            wait(lambda: any(header.round >= 1 for header in asked), first, log)
        finally:
            os.kill(first.pid, signal.SIGKILL)
            first.wait()
        second = start(state, tmp_path / "bundle", log)
        try:
            assert second.wait(timeout=300) == 0, log.read_text()[-3000:]
        finally:
            second.kill()
    record = StudyRecord(state.study(study.hash()), study)
    assert record.complete() and [batch.site for batch in record.batches()] == [
        toy.name for toy in toys
    ]
    for toy in toys:
        answered = {
            (header.phase, header.model, header.round): header.digest for header in toy.asked
        }
        # the same question again
        assert all(answered[h.phase, h.model, h.round] == h.digest for h in toy.asked)
        assert toy.asked[-1].statement == {"done": True}
    assert "Traceback" not in log.read_text()
