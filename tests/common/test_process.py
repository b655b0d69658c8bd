"""A process ends with its parent, whichever way the parent ends; a free port can be bound."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common.process import free_port

CHILD = """
import os, time
from common import process
process.{call}
print(os.getpid(), flush=True)
time.sleep(60)
"""
WAYS = {
    "the kernel's signal": "end_with_parent()",
    "the kernel's signal, not to be caught": "end_with_parent(9)",
    "the end of standard input": "end_with_input(70)",
    "the adoption of an orphan": "end_when_orphaned()",
}


@pytest.mark.parametrize("way", WAYS)
def test_a_child_dies_with_its_parent_even_by_kill_9_through(way: str) -> None:
    child = CHILD.format(call=WAYS[way])
    parent = f"""
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", {child!r}], stdin=subprocess.PIPE)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        number = int(running.stdout.readline())
        os.kill(running.pid, signal.SIGKILL)
        running.wait()
        assert ended(number), "the child outlived its parent"


def ended(number: int) -> bool:
    """Whether the process ends within a bounded time."""
    for _ in range(300):
        if not Path(f"/proc/{number}").exists():
            return True
        time.sleep(0.1)
    return False


def test_a_free_port_can_be_bound() -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", free_port()))


def test_a_private_process_writes_for_its_user_alone_and_leaves_no_core(tmp_path: Path) -> None:
    script = (
        "import resource, sys; from common.process import keep_private; keep_private();"
        f"open('{tmp_path}/file', 'w').close();"
        "print(resource.getrlimit(resource.RLIMIT_CORE))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "(0, 0)"
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600


def test_another_process_of_the_same_user_may_not_trace_a_private_one() -> None:
    """Seen by the kernel's own flag, PR_GET_DUMPABLE."""
    script = (
        "import ctypes; from common.process import keep_private; keep_private();"
        "print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "0"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_a_private_process_of_a_plain_user_still_finds_its_own_descriptors() -> None:
    """A long socket folder is named by a descriptor: /proc/self must stay open to ourselves."""
    script = (
        "import os; from common.process import keep_private;"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534); keep_private();"
        "folder = os.open('/tmp', os.O_RDONLY); os.stat(f'/proc/self/fd/{folder}/')"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
