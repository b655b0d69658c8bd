"""A device in site.yaml, in the user's words: what is not there ends the command, unspent."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.daemon.standing import site_standing
from client.state.folder import State
from tests.client.cli.typing_commands import Cli


def ask_for_a_gpu(state: Path) -> None:
    """Let site.yaml name a GPU that no machine has."""
    file = state / "site.yaml"
    text = file.read_text()
    assert 'device: "auto"' in text
    file.write_text(text.replace('device: "auto"', 'device: "cuda:99"'))


def test_run_with_a_gpu_that_is_not_there_ends_before_anything_is_spent(
    joined: tuple[Path, Path], cli: Cli
) -> None:
    state, bundle = joined
    assert cli("approve", "--state", state, bundle, "--yes", "--by", "Dr. Example")[0] == 0
    ask_for_a_gpu(state)
    code, _, err = cli("run", "--state", state)
    assert code == 2
    assert "compute.device is cuda:99" in err
    assert "hint: `nvidia-smi` must list the GPU" in err
    place = State(state)
    assert not place.ledger.exists()
    assert not place.jobs.exists()
    # it never connected, and `status` says what ended it
    found = site_standing(state)
    assert (found.daemon.state, found.contact) == ("stopped", None)
    assert found.last_error is not None and found.last_error.advice.code == "E-DEVICE"


def test_check_names_the_gpu_that_is_not_there(joined: tuple[Path, Path], cli: Cli) -> None:
    state, _ = joined
    ask_for_a_gpu(state)
    code, out, err = cli("check", "--state", state, "--offline")
    assert code == 2
    assert "device: 1 to repair" in out
    assert "compute.device is cuda:99" in err


def test_check_shows_the_device_that_is_taken(joined: tuple[Path, Path], cli: Cli) -> None:
    state, _ = joined
    file = state / "site.yaml"
    file.write_text(file.read_text().replace('device: "auto"', 'device: "cpu"'))
    _, out, _ = cli("check", "--state", state, "--offline")
    assert "device: ok\n  cpu\n" in out


def test_check_says_where_more_processes_are_asked_for_than_there_are_cores(
    joined: tuple[Path, Path], cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, _ = joined
    file = state / "site.yaml"
    text = file.read_text().replace('device: "auto"', 'device: "cpu"')
    for processes in (2, 3):
        file.write_text(text.replace("processes: 1", f"processes: {processes}"))
        monkeypatch.setattr("client.cli.inspection.machine.usable_cores", lambda: 2)
        _, out, _ = cli("check", "--state", state, "--offline")
        line = "compute.processes is 3: no faster than 2, the cores"
        assert (line in out) == (processes == 3)
