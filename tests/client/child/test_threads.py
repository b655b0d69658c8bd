"""`limits.threads` holds for every thread of a child, whatever library starts it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from client.daemon.jobs import environment, run_child
from client.state.jobs import Job
from common.compute import Compute
from common.wire import tensors
from tests.jobs import NO_GROUPS, SECRET, job_folder
from tests.sites import Hospital

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")

# a thread multiplies matrices; which threads of the process had work?
PROGRAM = """
import os, threading
from pathlib import Path
import torch

def multiply():
    x = torch.randn(1200, 1200)
    for _ in range(12):
        x = torch.tanh(x @ x)
    # a thread's helpers end with it: they are counted here
    for task in Path("/proc/self/task").iterdir():
        ticks = (task / "stat").read_text().rpartition(")")[2].split()[11:13]
        if sum(map(int, ticks)) > 1:
            busy.add(int(task.name))
    busy.discard(threading.get_native_id())

busy = set()
thread = threading.Thread(target=multiply)
thread.start()
thread.join()
print(len(busy - {os.getpid()}))
"""


def busy_helpers(inherited: dict[str, str]) -> int:
    """How many threads beside the one that computes had work."""
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, env=inherited, stdout=subprocess.PIPE, check=True, timeout=200)
    return int(done.stdout)


def test_a_thread_of_a_child_with_one_thread_starts_no_helpers() -> None:
    assert busy_helpers(environment(4)) > 0  # the count sees them where they are allowed
    assert busy_helpers(environment(1)) == 0


def test_a_real_child_with_one_thread_takes_no_more_processor_time_than_wall_time(
    hospital: Hospital, weights: dict[str, tensors.Arrays], tmp_path: Path
) -> None:
    folder = job_folder(hospital, tmp_path / "job", "train", "gan", weights["gan"], NO_GROUPS)
    before = os.times()
    began = time.monotonic()
    ending = run_child(folder, 1, SECRET, threading.Event(), lambda *_: None)
    wall_s = time.monotonic() - began
    after = os.times()
    assert ending.finished, (folder / "child.log").read_text()
    busy_s = after.children_user - before.children_user
    busy_s += after.children_system - before.children_system
    assert 0 < busy_s <= 1.15 * wall_s


def test_processes_of_one_child_share_its_threads(tmp_path: Path) -> None:
    job = Job("train", "gan", "/plan", "/cohort", "", 8, 0.5, "d")
    assert job.threads_each == 8
    several = Job("train", "gan", "", "", "", 8, 0, compute=Compute(device="cuda:0,1"))
    assert (several.process_count, several.threads_each) == (2, 4)
    many = Job("train", "gan", "", "", "", 1, 0, compute=Compute(device="cpu"), processes=3)
    assert (many.process_count, many.threads_each) == (3, 1)
    images = Job("synthesize", "", "", "", "", 8, 0, compute=Compute(device="cuda:0,1"))
    assert (images.process_count, images.threads_each) == (1, 8)
