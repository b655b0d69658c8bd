"""The real `kohort-site run`: its limits and its child's, its files, its signals, its end."""

from __future__ import annotations

import json
import os
import signal
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from client.daemon.standing import site_standing
from common.storage import heartbeat, reserve
from tests.daemons import Daemon
from tests.sites import make_hospital
from tests.sized_plans import image_weights
from tests.transport import until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc"),
]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("daemon")
    # in a process of its own, the daemon would refuse invented weights
    weights = image_weights(32)
    running = Daemon(folder, make_hospital(folder / "h", weights=weights), weights)
    # as a folder from before `init` may be
    running.state.root.chmod(0o755)
    (running.state.root / ".part-abcdefgh").write_bytes(b"half")
    running.start()
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
    daemon.ask("gan")
    pid = until(daemon.child, 60.0)
    assert limits(pid) == ("0077", "0 0")
    # while the child is at work, and after the answer, which removes the job's folder
    state = daemon.state
    assert list(state.jobs.glob("*/child.log"))
    assert not open_to_others(state.root)
    until(lambda: daemon.server.replies(), 120.0)
    assert not open_to_others(state.root)


def open_to_others(folder: Path) -> list[Path]:
    """The files of a folder that another account may read; one that has just gone is none."""
    found = []
    for path in (folder, *folder.rglob("*")):
        try:
            mode = path.lstat().st_mode
        except FileNotFoundError:
            continue
        if stat.S_IMODE(mode) & 0o077:
            found.append(path)
    return found


def test_a_start_closes_the_folder_sweeps_it_and_makes_the_reserve(daemon: Daemon) -> None:
    root = daemon.state.root
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    assert "was open to other users" in daemon.log.read_text()
    assert not (root / ".part-abcdefgh").exists()
    assert (root / reserve.NAME).stat().st_size == reserve.SIZE_BYTES


def test_a_start_says_on_which_device_its_children_compute(daemon: Daemon) -> None:
    [device] = site_standing(daemon.state.root).devices
    assert f"computing on {device}" in daemon.log.read_text()
    if not torch.cuda.is_available():
        assert device == "cpu; compute.device is auto, and torch sees no GPU here"


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
    path = daemon.state.root / heartbeat.FILE
    text = json.loads(path.read_text())
    path.write_text(json.dumps(text | {"time": time.time() - 61}))
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
    facts = json.loads((daemon.state.root / heartbeat.FILE).read_text())["facts"]
    assert "CONNECTED" in [one["code"] for one in facts["states"]]
    assert daemon.code() == "NOT-RUNNING"
    daemon.start()
