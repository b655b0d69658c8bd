"""`kohort-server run` without a bundle, as a process: sites renew, and no study is answered."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from client.fleet.connection import FleetSettings
from client.fleet.failures import CallFailed
from client.fleet.health import BETWEEN_STUDIES
from client.fleet.renewal import Renewal
from client.fleet.wire import Wire
from common.errors import EnvironmentFault
from common.process import free_port
from common.storage.heartbeat import life_of
from kohort.console import INTERRUPTED
from server.front.nginx import config_path, nginx_conf
from server.front.sockets import FLEET, FRONT, SOCKETS
from server.operator.certificates import load_authority, site_certificate
from server.operator.config import load_config
from server.rounds.standing import read_standing
from tests.processes import descendants
from tests.renewing import Clock, Member, Operator
from tests.server.cli.reports import Kohort
from tests.transport import until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
]
WAIT_S = 120.0


@dataclass
class Between:
    """A server between studies, one site whose certificate is 16 days old, and its way in."""

    operator: Operator
    site: Member
    process: subprocess.Popen[bytes]
    settings: FleetSettings


@pytest.fixture(params=["embedded", "nginx"])
def running(request: pytest.FixtureRequest) -> Iterator[Between]:
    # a socket needs a short path
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    with _serve(folder, request.param) as found:
        yield found
    shutil.rmtree(folder)


@contextmanager
def _serve(folder: Path, front: str) -> Iterator[Between]:
    operator = Operator(folder / "server", Clock())
    port = free_port()
    path = operator.state.config
    text = path.read_text().replace("front: embedded", f"front: {front}")
    path.write_text(text.replace("port: 4433", f"port: {port}"))
    site = Member.join("hospital-a", folder / "a", operator)
    authority = load_authority(operator.state.authority)
    line = (folder / "a" / "keys" / "node.pub").read_text()
    soon = datetime.now(UTC) - timedelta(days=16)
    for path in (site.state.certificate, operator.state.site_certificate(site.name)):
        path.write_bytes(site_certificate(authority, site.name, line, now=soon))
    # what a killed server leaves behind
    sockets = operator.state.superlink / SOCKETS
    sockets.mkdir(parents=True)
    (sockets / FLEET).touch()
    command = [sys.executable, "-m", "server.cli.main", "run", "--state", str(operator.state.root)]
    with (folder / "run.log").open("wb") as log, _nginx(operator, front):
        process = subprocess.Popen(command, stderr=log)
        try:
            until(lambda: _is_up(operator, process, front), WAIT_S)
            assert process.poll() is None, (folder / "run.log").read_text()
            url = f"https://127.0.0.1:{port}"
            yield Between(operator, site, process, replace(site.settings, url=url))
        finally:
            process.terminate()
            process.wait(WAIT_S)
            operator.close()


def _is_up(operator: Operator, process: subprocess.Popen[bytes], front: str) -> bool:
    """Whether the server says that it runs, or has ended."""
    socket = operator.state.superlink / SOCKETS / FRONT
    up = life_of(operator.state.root).state == "running"
    return process.poll() is not None or (up and (front != "nginx" or socket.exists()))


@contextmanager
def _nginx(operator: Operator, front: str) -> Iterator[None]:
    """nginx with the configuration of `kohort-server front`, where it stands in front."""
    if front != "nginx":
        yield
        return
    nginx = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if nginx is None:
        pytest.skip("nginx is not installed")
    path = config_path(operator.state)
    path.parent.mkdir(parents=True)
    path.write_text(nginx_conf(operator.state, load_config(operator.state.config)))
    command = [nginx, "-p", str(path.parent), "-c", str(path), "-g", "daemon off; user root;"]
    process = subprocess.Popen(command)
    try:
        until((path.parent / "nginx.pid").exists)
        yield
    finally:
        process.terminate()
        process.wait(20)


def test_a_site_renews_with_no_study_at_all(running: Between, kohort: Kohort) -> None:
    root = running.operator.state.root
    # (1) the daemon's own renewal, over TLS: asked, signed by the server, taken
    renewal = Renewal(running.site.state, running.settings, running.site.name)
    before = running.site.ends
    assert renewal.turn() == ""
    said = ""
    deadline = time.monotonic() + WAIT_S
    while not said and time.monotonic() < deadline:
        time.sleep(3)
        said = renewal.turn()
    assert said.startswith("certificate renewed")
    assert running.site.ends > before + timedelta(days=10)
    # (2) a call of a study is told that there is none, with the new certificate as well
    wire = Wire(running.settings)
    with pytest.raises(CallFailed) as refused:
        wire.send_heartbeat(1)
    wire.close()
    assert refused.value.state is BETWEEN_STUDIES
    # (3) people see it; no SuperLink runs; no second server may start
    assert "between studies" in kohort("status", "--state", root)[1]
    assert read_standing(running.operator.state).between
    assert not (running.operator.state.superlink / "state.db").exists()
    code, _, errors = kohort("run", "--state", root, "--port", free_port())
    assert (code, "already running" in errors) == (EnvironmentFault.exit_code, True) or (
        "nginx listens" in errors
    )
    # (4) SIGHUP ends nothing; SIGTERM ends it and the front, as systemd expects
    running.process.send_signal(signal.SIGHUP)
    assert renewal.turn() == ""
    wire = Wire(running.settings)
    with pytest.raises(CallFailed) as refused:
        wire.send_heartbeat(1)
    wire.close()
    assert refused.value.state is BETWEEN_STUDIES
    children = set(descendants(running.process.pid))
    running.process.terminate()
    assert running.process.wait(WAIT_S) == INTERRUPTED
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]
    assert "not running: stopped" in kohort("status", "--state", root)[1]
