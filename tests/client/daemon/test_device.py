"""Which devices the daemon finds for its children, and what it says of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.daemon import device
from client.daemon.device import find_devices, note_devices, noted_devices
from client.state import machine
from client.state.config import SiteCompute
from client.state.folder import State
from common.errors import ConfigurationError, EnvironmentFault, RefusedError


def test_the_processor_is_taken_without_asking_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    assert find_devices(SiteCompute(device="cpu", processes=2)) == ["cpu"]


def test_auto_falls_back_to_the_processor_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "DRIVERS", ())
    monkeypatch.setattr("sys.executable", "/bin/false")
    [line] = find_devices(SiteCompute())
    assert line == "cpu; compute.device is auto, and torch sees no GPU here"


def test_a_driver_without_a_gpu_makes_auto_ask_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "DRIVERS", ("/dev/null",))
    asked: list[str] = []

    def ask(compute: SiteCompute) -> list[dict[str, str]]:
        asked.append(compute.device)
        return [{"device": "cpu", "name": "processor", "memory_bytes": "1"}]

    monkeypatch.setattr(device, "_ask", ask)
    [line] = find_devices(SiteCompute())
    assert line.startswith("cpu; compute.device is auto")
    assert asked == ["auto"]


def test_gpus_are_named_with_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        {"device": f"cuda:{n}", "name": "NVIDIA H200", "memory_bytes": str(139 << 30)}
        for n in (0, 1)
    ]
    monkeypatch.setattr(device, "_ask", lambda _: found)
    lines = find_devices(SiteCompute(device="cuda:0,1"))
    assert lines == ["cuda:0: NVIDIA H200, 139 GiB", "cuda:1: NVIDIA H200, 139 GiB"]


def test_a_real_process_refuses_a_gpu_that_is_not_there() -> None:
    with pytest.raises(ConfigurationError, match=r"compute\.device is cuda:99") as refused:
        find_devices(SiteCompute(device="cuda:99"))
    assert refused.value.code == "E-DEVICE"
    assert "nvidia-smi" in refused.value.hint


def test_a_torch_that_says_nothing_is_this_machines_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(EnvironmentFault, match="did not say"):
        find_devices(SiteCompute(device="cuda"))


def test_what_was_found_is_kept_for_the_status(tmp_path: Path) -> None:
    state = State(tmp_path)
    assert noted_devices(state) == []
    note_devices(state, ["cuda:0: NVIDIA H200, 139 GiB"])
    assert noted_devices(state) == ["cuda:0: NVIDIA H200, 139 GiB"]
    (tmp_path / device.FILE).write_text("{")
    with pytest.raises(RefusedError, match="not what kohort-site wrote"):
        noted_devices(state)
