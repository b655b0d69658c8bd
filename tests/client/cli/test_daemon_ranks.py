"""The real `kohort-site run` with `compute.processes`: what it answers, and what a kill leaves.

Each training round is computed by two processes of the child. Whatever dies, the next try sends one
complete answer under a reservation of its own, and no process stays behind.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from client.daemon.standing import site_standing
from client.state.folder import State
from client.state.ledger_file import of_kind
from tests.client.child.test_job import alive
from tests.client.cli.typing_commands import Cli
from tests.daemons import Daemon
from tests.processes import descendants
from tests.seeded_rounds import Site, image_hospital
from tests.transport import until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),  # two starts, and a busy machine
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc"),
]
STEPS = 25  # long enough to be killed in the middle
START_S = 400.0  # a daemon and two processes import torch, on a busy machine
ENDING_S = 120.0
ASKED_S = 0.5  # a look at the daemon costs a tenth of a second, which its processes want
Make = Callable[..., Site]


def compute_in(state: Path, **settings: Any) -> None:
    """Write settings of `compute` into a site's file."""
    file = state / "site.yaml"
    text = file.read_text()
    for name, value in settings.items():
        text, found = re.subn(rf"(?m)^  {name}: \S+", f"  {name}: {value}", text)
        assert found == 1, name
    file.write_text(text)


@contextmanager
def running(folder: Path, make: Make, processes: int, **changes: Any) -> Iterator[Daemon]:
    """A hospital whose daemon runs with so many processes."""
    hospital, weights = make(folder / "h", privacy__canaries=10, **changes)
    compute_in(hospital.root, device='"cpu"', processes=processes)
    daemon = Daemon(folder, hospital, weights)
    daemon.start()
    try:
        yield daemon
    finally:
        daemon.end()


def wait_for_answers(daemon: Daemon, count: int) -> None:
    """Wait until so many replies were delivered, none of them an error."""
    until(lambda: len(daemon.server.replies()) >= count, START_S, ASKED_S)
    assert not any(reply.HasField("error") for reply in daemon.server.replies())


def logged(daemon: Daemon) -> list[str]:
    """The log without times, address and folder."""
    text = daemon.log.read_text().replace(str(daemon.state.root), "STATE")
    lines = [line.partition(" ")[2] for line in text.splitlines()]
    return [re.sub(r"https://\S+", "SERVER", line) for line in lines]


def spent(daemon: Daemon, kind: str) -> list[Any]:
    """The events that the ledger holds as reserved, or the reservations that were committed."""
    rows = of_kind(daemon.hospital.site().ledger().rows(), kind)
    return [row.data["event" if kind == "reserve" else "reservation"] for row in rows]


def facts(daemon: Daemon) -> dict[str, Any]:
    """What `kohort-site status` says, without times and this study's own hash."""
    found = site_standing(daemon.state.root).to_dict()
    for plan in found["plans"]:
        del plan["hash"]
    shown = ("site", "devices", "plans", "state", "last_error", "alerts")
    connection = [(one["code"], one["facts"]) for one in found["connection"]]
    return {name: found[name] for name in shown} | {"connection": connection}


def test_ledger_status_and_log_are_those_of_one_process(tmp_path: Path) -> None:
    seen: dict[int, tuple[Any, ...]] = {}
    for processes in (1, 2):
        with running(tmp_path / str(processes), image_hospital, processes) as daemon:
            daemon.ask("gan")
            wait_for_answers(daemon, 1)
            until(lambda daemon=daemon: not any(daemon.state.jobs.iterdir()), ENDING_S)
            ledger = [spent(daemon, "reserve"), spent(daemon, "commit")]
            seen[processes] = (ledger, facts(daemon), logged(daemon))
            assert len(ledger[0]) == len(ledger[1]) == 1
            assert "INFO computing on cpu" in logged(daemon)
    assert seen[1] == seen[2]


def at_step(daemon: Daemon) -> list[int]:
    """The daemon's descendants while both processes of its child train; empty before that."""
    [plan] = site_standing(daemon.state.root, counts=False).plans
    _, *children = descendants(daemon.process.pid)
    if len(children) == 2 and any(one.work.total == STEPS for one in plan.work):
        return children
    return []


def test_after_kill_9_of_the_daemon_the_next_start_sends_one_answer(tmp_path: Path) -> None:
    slow = {"models__gan__local_steps": STEPS}
    with running(tmp_path, image_hospital, 2, **slow) as daemon:
        daemon.ask("gan")
        both = until(lambda: at_step(daemon), START_S, ASKED_S)
        daemon.process.kill()
        daemon.process.wait()
        until(lambda: not any(alive(pid) for pid in both), ENDING_S)
        assert daemon.server.replies() == []
        assert spent(daemon, "commit") == []
        daemon.start()
        wait_for_answers(daemon, 1)
        check_second_try(daemon)


def test_after_kill_9_of_the_second_process_the_round_is_done_once_more(tmp_path: Path) -> None:
    slow = {"models__gan__local_steps": STEPS}
    with running(tmp_path, image_hospital, 2, **slow) as daemon:
        daemon.ask("gan")
        first, second = until(lambda: at_step(daemon), START_S, ASKED_S)
        assert parent_of(second) == first
        os.kill(second, signal.SIGKILL)
        until(lambda: not alive(first), ENDING_S)
        wait_for_answers(daemon, 1)
        assert "WARNING a child crashed; see child.log in its job folder" in logged(daemon)
        check_second_try(daemon)


def parent_of(pid: int) -> int:
    """The parent of a process."""
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def check_second_try(daemon: Daemon) -> None:
    """One answer, of the second of two reservations; nobody is left, and nothing comes later."""
    [first, second] = of_kind(daemon.hospital.site().ledger().rows(), "reserve")
    assert first.data["event"] == second.data["event"]
    assert spent(daemon, "commit") == [second.seq]
    [entry] = [e for e in daemon.state.journal.entries() if e.state == "cleared"]
    assert len(entry.data["digests"]) == 1
    until(lambda: descendants(daemon.process.pid) == [daemon.process.pid], ENDING_S)
    assert len(daemon.server.replies()) == 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"processes": 0}, "compute.processes: expected a value greater than or equal to 1, got 0"),
        ({"processes": 65}, "compute.processes: expected a value less than or equal to 64, got 65"),
        ({"processes": 2}, "with GPUs there is one process a GPU"),
        ({"device": '"cuda:0,0"'}, "each of them once"),
    ],
    ids=["no process", "too many", "several on auto", "one GPU twice"],
)
def test_a_compute_section_that_cannot_be_is_refused(
    settings: dict[str, Any], words: str, joined: tuple[Path, Path], cli: Cli
) -> None:
    state, _ = joined
    compute_in(state, **settings)
    code, _, err = cli("run", "--state", state)
    assert code == 2
    assert "kohort-site: error: " in err
    assert words in err


def test_gpus_that_are_not_there_end_the_real_command_before_anything_is_spent(
    joined: tuple[Path, Path], cli: Cli
) -> None:
    state, bundle = joined
    assert cli("approve", "--state", state, bundle, "--yes", "--by", "Dr. Example")[0] == 0
    compute_in(state, device='"cuda:98,99"')
    program = str(Path(sys.executable).parent / "kohort-site")
    run = [program, "run", "--state", str(state)]
    done = subprocess.run(run, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 2
    assert "kohort-site: error: compute.device is cuda:98,99: expected GPU 98" in done.stderr
    assert "kohort-site: hint: `nvidia-smi` must list the GPU" in done.stderr
    assert "Traceback" not in done.stderr
    assert not State(state).ledger.exists()
    assert not State(state).jobs.exists()
