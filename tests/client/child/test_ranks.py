"""Several processes of one host do one round, and have one fate."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from client.child import ranks
from client.daemon.jobs import environment, run_child
from client.state.jobs import Job
from common.wire import tensors
from tests.jobs import SECRET
from tests.processes import descendants
from tests.seeded_rounds import training
from tests.sites import Hospital
from tests.transport import until

pytestmark = pytest.mark.slow


def test_the_daemons_child_starts_the_others_and_leaves_one_output(
    hospital: Hospital, weights: dict[str, tensors.Arrays], tmp_path: Path
) -> None:
    folder = training((hospital, weights), tmp_path / "job", "gan", 2)
    ending = run_child(folder, 1, SECRET, threading.Event(), lambda *_: None)
    assert ending.finished, (folder / "child.log").read_text()
    assert Job.read(folder).process_count == 2


def test_a_refusal_leaves_its_code_whichever_process_refuses(
    hospital: Hospital, weights: dict[str, tensors.Arrays], tmp_path: Path
) -> None:
    folder = training((hospital, weights), tmp_path / "job", "gan", 2)
    (folder / "in.safetensors").write_bytes(tensors.dumps(weights["glow"]))
    ending = run_child(folder, 1, SECRET, threading.Event(), lambda *_: None)
    assert not ending.finished
    assert ending.code == "E-REFUSED"
    assert not (folder / "out.safetensors").exists()


# both processes wait for ever, once they have met
ENDLESS = """
import sys, time
from pathlib import Path
import torch
from client.child import ranks
from common.process import end_with_input, end_with_parent
folder, rank = Path(sys.argv[1]), int([*sys.argv, "0"][2])
ranks.PROGRAM = (sys.argv[0],)
sys.stdin.readline()
end_with_parent(9)
end_with_input(70)
with ranks.together(folder, rank, [torch.device("cpu")] * 2):
    (folder / f"met-{rank}").touch()
    time.sleep(300)
"""


def started(folder: Path, text: str) -> tuple[subprocess.Popen[bytes], int]:
    """The first process of a program, and the id of the second, once they have met."""
    program = folder / "program.py"
    program.write_text(text)
    first = subprocess.Popen(
        [sys.executable, str(program), str(folder)], stdin=subprocess.PIPE, env=environment(1)
    )
    assert first.stdin is not None
    first.stdin.write(b"\n")
    first.stdin.flush()
    until(lambda: (folder / "met-0").exists() and (folder / "met-1").exists())
    [second] = set(descendants(first.pid)) - {first.pid}
    return first, second


@pytest.mark.parametrize("killed", [0, 1])
def test_when_one_process_dies_so_does_the_other(tmp_path: Path, killed: int) -> None:
    first, second = started(tmp_path, ENDLESS)
    try:
        os.kill((first.pid, second)[killed], signal.SIGKILL)
        assert first.wait(60) == (-signal.SIGKILL if killed == 0 else ranks.LOST)
        deadline = time.monotonic() + 60
        while Path(f"/proc/{second}").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not Path(f"/proc/{second}").exists()
    finally:
        first.kill()
        first.communicate()


# both exchange without end; who waits for a process to end hears of it late
EXCHANGING = (
    ENDLESS.replace(
        "ranks.PROGRAM",
        "import subprocess\nwait = subprocess.Popen.wait\n"
        "def wait_late(process, timeout=None):\n"
        "    code = wait(process, timeout)\n"
        "    if timeout is None: time.sleep(5)\n"
        "    return code\n"
        "subprocess.Popen.wait = wait_late\nranks.PROGRAM",
        1,
    )
    .replace('[torch.device("cpu")] * 2):', '[torch.device("cpu")] * 2) as workers:')
    .replace("time.sleep(300)", "while True: workers.sum(torch.ones(1))")
)


def test_a_connection_that_breaks_is_a_process_that_was_lost(tmp_path: Path) -> None:
    first, second = started(tmp_path, EXCHANGING)
    try:
        os.kill(second, signal.SIGKILL)
        assert first.wait(60) == ranks.LOST
    finally:
        first.kill()
        first.communicate()
