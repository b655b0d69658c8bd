"""The real `kohort-site run`: its limits and its child's, its files, its signals, its end."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from flwr.proto.run_pb2 import GetRunResponse, Run

from client.cli.look import site_status
from client.fleet.connection import create_node_key
from client.state.folder import State
from client.state.membership import Membership
from common.storage import reserve
from common.wire import signing
from server.operator.certificates import (
    Authority,
    ServerFiles,
    create_authority,
    issue_server_certificate,
    issue_site_certificate,
)
from tests.fleet_server import PROTOBUF, RUN_ID, FleetServer, instruction
from tests.sites import SITE, Hospital, make_hospital
from tests.transport import until

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")


class Daemon:
    """One hospital with a running daemon."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hospital: Hospital = make_hospital(folder / "h")
        self.state = State(self.hospital.root)
        self.authority: Authority = create_authority(folder / "ca")
        files: ServerFiles = issue_server_certificate(self.authority, folder / "server")
        self.server = FleetServer(files)
        [pin] = self.hospital.site().plans.pins()
        answer = GetRunResponse(run=Run(run_id=RUN_ID, fab_hash=pin)).SerializeToString()
        self.server.instead["get-run"] = lambda request: (200, PROTOBUF, answer)
        create_node_key(self.state.node_key, self.state.node_key.with_suffix(".pub"), SITE)
        self.certify(30)
        (self.state.root / "ca.crt").write_bytes(files.ca.read_bytes())
        operator = signing.public_text(self.hospital.operator.public_key())
        membership = Membership(
            format="kohort-join/1",
            site=SITE,
            server_url=self.server.url,
            ca=files.ca.read_text(),
            operator_key=operator,
            client_certificate=(self.state.root / "node.crt").read_text(),
        )
        self.state.membership.write_text(membership.model_dump_json())
        # as a folder from before `init` may be
        self.state.root.chmod(0o755)
        (self.state.root / ".part-abcdefgh").write_bytes(b"half")
        self.log = folder / "log"
        self.start()

    def certify(self, days: float) -> None:
        """Write the site's certificate."""
        public = self.state.node_key.with_suffix(".pub").read_text()
        issue_site_certificate(
            self.authority, SITE, public, self.state.root / "node.crt", days=days
        )

    def start(self) -> None:
        """Start it with an open umask and core dumps allowed, as a careless shell would."""
        command = [sys.executable, "-m", "client", "run", "--state", str(self.state.root)]
        shell = f"umask 000; ulimit -c unlimited 2>/dev/null; exec {' '.join(command)}"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(["sh", "-c", shell], stdout=log, stderr=log)
        until(lambda: self.code() == "CONNECTED", 60.0)

    def code(self) -> str:
        """What `kohort-site status` says of the connection."""
        assert self.process.poll() in (None, -9), self.log.read_text()
        for one in site_status(self.state.root)["connection"]:
            if one["subject"] == "connection":
                return str(one["code"])
        return ""

    def child(self) -> int:
        """The process id of its child, 0 for none."""
        task = Path(f"/proc/{self.process.pid}/task")
        for path in task.glob("*/children"):
            for pid in path.read_text().split():
                return int(pid)
        return 0

    def end(self) -> None:
        """End everything."""
        self.process.kill()
        self.process.wait()
        self.server.close()


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    running = Daemon(tmp_path_factory.mktemp("daemon"))
    yield running
    running.end()


def limits(pid: int) -> tuple[str, str]:
    """The umask of a process, and its limit on core dumps."""
    umask = next(
        line.split()[1]
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if line.startswith("Umask")
    )
    core = next(
        line
        for line in Path(f"/proc/{pid}/limits").read_text().splitlines()
        if line.startswith("Max core file size")
    )
    return umask, " ".join(core.split()[4:6])


def test_daemon_and_child_write_for_themselves_alone_and_leave_no_core(daemon: Daemon) -> None:
    assert limits(daemon.process.pid) == ("0077", "0 0")
    sealed = daemon.hospital.ask("train")
    payload = np.frombuffer(sealed.payload, np.uint8)
    signed = {"header": sealed.header, "signature": sealed.signature}
    daemon.server.queue(instruction(payload, kind="train", **signed))
    pid = until(daemon.child, 60.0)
    assert limits(pid) == ("0077", "0 0")
    # the models of this plan are too small to be real: the child refuses, the daemon answers
    until(lambda: daemon.server.replies(), 120.0)
    state = daemon.state
    assert list(state.jobs.glob("*/child.log"))
    for path in (state.root, *state.root.rglob("*")):
        assert stat.S_IMODE(path.lstat().st_mode) & 0o077 == 0, path


def test_a_start_closes_the_folder_sweeps_it_and_makes_the_reserve(daemon: Daemon) -> None:
    root = daemon.state.root
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    assert "was open to other users" in daemon.log.read_text()
    assert not (root / ".part-abcdefgh").exists()
    assert (root / reserve.NAME).stat().st_size == reserve.SIZE_BYTES


def test_a_hangup_reads_the_certificate_again(daemon: Daemon) -> None:
    daemon.certify(-1)
    daemon.process.send_signal(signal.SIGHUP)
    until(lambda: daemon.code() == "CLIENT-CERTIFICATE-DATES", 30.0)
    daemon.certify(30)
    daemon.process.send_signal(signal.SIGHUP)
    until(lambda: daemon.code() == "CONNECTED", 30.0)


def test_a_suspended_daemon_goes_on(daemon: Daemon) -> None:
    daemon.process.send_signal(signal.SIGSTOP)
    time.sleep(5)
    # a minute without a sign of life is said
    path = daemon.state.root / "health.json"
    old = time.time() - 61
    os.utime(path, (old, old))
    assert daemon.code() == "UNRESPONSIVE"
    asked = len(daemon.server.calls)
    daemon.process.send_signal(signal.SIGCONT)
    until(lambda: len(daemon.server.calls) > asked, 30.0)
    until(lambda: daemon.code() == "CONNECTED", 30.0)


def test_after_kill_9_the_status_says_that_it_is_not_running(daemon: Daemon) -> None:
    daemon.process.kill()
    daemon.process.wait()
    states = json.loads((daemon.state.root / "health.json").read_text())["states"]
    assert "CONNECTED" in [one["code"] for one in states]
    assert daemon.code() == "NOT-RUNNING"
    daemon.start()
