"""Which devices are taken, with and without GPUs on the machine, and how exactly they compute."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from common.compute import Compute
from common.devices import (
    describe,
    exact,
    free_bytes,
    is_out_of_memory,
    resolve,
    set_tf32,
    settle,
)
from common.errors import ConfigurationError


def see_gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Let torch see so many GPUs."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: count > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)


@pytest.mark.parametrize(
    ("device", "gpus", "taken"),
    [
        ("auto", 0, ["cpu"]),
        ("auto", 2, ["cuda:0"]),
        ("cpu", 2, ["cpu"]),
        ("cuda", 2, ["cuda:0"]),
        ("cuda:1", 2, ["cuda:1"]),
        ("cuda:1,0", 2, ["cuda:1", "cuda:0"]),
    ],
)
def test_auto_takes_a_gpu_where_torch_sees_one(
    monkeypatch: pytest.MonkeyPatch, device: str, gpus: int, taken: list[str]
) -> None:
    see_gpus(monkeypatch, gpus)
    assert [str(found) for found in resolve(Compute(device=device))] == taken


@pytest.mark.parametrize(("device", "gpus"), [("cuda", 0), ("cuda:0", 0), ("cuda:0,2", 2)])
def test_a_gpu_that_is_not_there_is_an_error_and_never_a_fallback(
    monkeypatch: pytest.MonkeyPatch, device: str, gpus: int
) -> None:
    see_gpus(monkeypatch, gpus)
    with pytest.raises(ConfigurationError, match=f"torch sees {gpus} here") as refused:
        resolve(Compute(device=device))
    assert refused.value.code == "E-DEVICE"
    assert "nvidia-smi" in refused.value.hint


def test_a_processor_is_described_with_its_cores_and_memory() -> None:
    found = describe(torch.device("cpu"))
    assert found.device == "cpu"
    assert "cores" in found.name
    assert 0 < free_bytes(torch.device("cpu"), Compute()) < found.memory_bytes


def tf32() -> tuple[bool, bool]:
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


def test_tf32_follows_the_precision_and_is_off_where_exactness_is_promised() -> None:
    before = tf32()
    try:
        settle(Compute(), (torch.device("cpu"),))
        assert tf32() == (False, False)
        settle(Compute(precision="bfloat16"), (torch.device("cpu"),))
        assert tf32() == (True, True)
        with exact():
            assert tf32() == (False, False)
        assert tf32() == (True, True)
        with pytest.raises(KeyError), exact():
            raise KeyError
        assert tf32() == (True, True)
        assert torch.backends.cudnn.deterministic
        assert not torch.backends.cudnn.benchmark
    finally:
        set_tf32(False)
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


FULL = """
import resource, sys
import torch
from common.devices import is_out_of_memory

limit = 1 << 30
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
kept = []
try:
    while True:
        kept.append(torch.zeros(1 << 22))
except Exception as error:
    sys.exit(0 if is_out_of_memory(error) else 1)
"""


def test_what_torch_raises_under_a_memory_limit_is_known_as_a_full_device() -> None:
    done = subprocess.run([sys.executable, "-c", FULL], check=False, timeout=100)
    assert done.returncode == 0
    assert is_out_of_memory(torch.OutOfMemoryError("full"))
    assert not is_out_of_memory(RuntimeError("could not compute"))
