"""The real `kohort-server run` with Flower's own processes over TLS, killed in the middle.

The sites are toys on the real site client. It runs with open keys first,
then with protected ones and without the authority's key.
"""

from __future__ import annotations

import json
import os
import signal
import ssl
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
from tests.processes import descendants, limits_of, pieces, seen_from_outside

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


PROGRAM = str(Path(sys.executable).parent / "kohort-server")
PASSPHRASE = b"a passphrase of some words"


def start(
    state: ServerState, bundle: Path, log: Path, passphrase: bytes = b""
) -> subprocess.Popen[bytes]:
    """`kohort-server run` as an operator starts it."""
    command = ["run", str(bundle), "--state", str(state.root)]
    inherited: tuple[int, ...] = ()
    if passphrase:
        inherited = (descriptor_of(passphrase),)
        command = ["--passphrase-fd", str(inherited[0]), *command]
    with log.open("ab") as output:
        return subprocess.Popen(
            [PROGRAM, *command],
            stdout=output,
            stderr=output,
            start_new_session=True,
            pass_fds=inherited,
        )


def descriptor_of(passphrase: bytes) -> int:
    """A pipe that holds a passphrase."""
    reader, writer = os.pipe()
    os.write(writer, passphrase + b"\n")
    os.close(writer)
    return reader


def protect(state: ServerState) -> None:
    """Close the keys by a passphrase, as an operator does."""
    reader = descriptor_of(PASSPHRASE)
    command = ["protect", "--state", str(state.root), "--new-passphrase-fd", str(reader)]
    subprocess.run([PROGRAM, *command], pass_fds=(reader,), check=True, capture_output=True)


def served_certificate(port: int) -> str:
    """The certificate that the front shows."""
    return ssl.get_server_certificate(("127.0.0.1", port), timeout=20)


def check_processes(server: int, secrets: list[bytes]) -> int:
    """Every process of a server writes for its user alone, dumps nothing and shows no secret.

    Returns how many there are.
    """
    running = descendants(server)
    for pid in running:
        assert limits_of(pid) == ("0077", "0 0")
        shown = seen_from_outside(pid)
        assert str(sys.executable).encode() in shown
        for secret in secrets:
            assert secret and secret not in shown
    return len(running)


def secrets_of(state: ServerState) -> list[bytes]:
    """What nobody may see: the keys, the executor's secret, the token of the task."""
    found: list[bytes] = []
    for path in (*state.root.rglob("*.key"), state.superlink / "executor.secret"):
        found += pieces(path)
    claim = json.loads((state.superlink / "claim.json").read_text())
    return [*found, claim["token"].encode()]


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
            # coordinator, front, SuperLink, executor, ServerApp
            assert check_processes(first.pid, secrets_of(state)) == 5
            # a renewed certificate is served from SIGHUP on, and the round goes on
            before = served_certificate(port)
            subprocess.run([PROGRAM, "renew", "--state", str(state.root)], check=True)
            os.kill(first.pid, signal.SIGHUP)
            wait(lambda: served_certificate(port) != before, first, log)
            reached = len(asked)
            wait(lambda: len(asked) > reached, first, log)
        finally:
            os.kill(first.pid, signal.SIGKILL)
            first.wait()
        # from here on with protected keys, and without the authority's
        protect(state)
        (state.authority / "ca.key").rename(tmp_path / "away.key")
        second = start(state, tmp_path / "bundle", log, PASSPHRASE)
        try:
            reached = len(asked)
            wait(lambda: len(asked) > reached, second, log)
            assert state.operator_key.read_bytes().startswith(b"-----BEGIN ENCRYPTED")
            assert check_processes(second.pid, [PASSPHRASE, *secrets_of(state)]) == 5
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
