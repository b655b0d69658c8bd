"""The speed scripts run and print what their readers parse; nothing here judges a time."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch

from client.learn.fast.ways import Choices


def script(name: str) -> ModuleType:
    """A script of benchmarks/, by its file: opacus installs a package of that name."""
    path = Path(__file__).parents[2] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"kohort_{name}", path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


torch.set_num_threads(1)
private_step, noise = script("private_step"), script("noise")
report = private_step.report


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", private_step.VARIANTS)
def test_every_variant_takes_a_step_and_moves_the_critic(name: str) -> None:
    setup = private_step.Setup(private_step.Shape(2, 2), "cpu")
    before = {n: p.detach().clone() for n, p in setup.critic.named_parameters()}
    private_step.VARIANTS[name](setup)()
    assert sum(p.numel() for p in before.values()) == 391_945
    # without noise, the score's bias stays: real and fake cancel
    weights = [n for n in before if n.endswith("weight")]
    assert all(
        not torch.equal(before[n], dict(setup.critic.named_parameters())[n]) for n in weights
    )


@pytest.mark.filterwarnings("ignore")
def test_the_private_steps_script_prints_one_json_object(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(private_step, "memory_of", lambda name, shape: 1.0)
    monkeypatch.setattr(private_step, "CHOICES", Choices())
    private_step.main(["--json", "--shapes", "2x1", "--repeats", "1"])
    found = json.loads(capsys.readouterr().out)
    assert {
        "ratio_to_nonprivate_channels_last",
        "speedup_over_best_opacus",
        "memory_over_best_opacus",
        "process_over_wall_time",
    } <= set(found["2x1"])
    assert all(value > 0 for value in found["2x1"].values())


def test_a_shape_names_its_size_where_it_is_not_64_px() -> None:
    for text, size_px in (("32x1@256", 256), ("16x4", 64)):
        shape = private_step.Shape.parse(text)
        assert shape.size_px == size_px
        assert str(shape) == text


@pytest.mark.parametrize(("load", "marked"), [(0.1, False), (50.0, True)])
def test_a_run_under_load_says_so(
    load: float, marked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "_load_at_start", lambda: load)
    monkeypatch.setattr(report.os, "cpu_count", lambda: 2)
    assert ("under load" in report.machine()) == marked
    assert torch.backends.cpu.get_cpu_capability() in report.machine()


def test_work_of_a_tenth_of_a_second_shows_in_the_ticks() -> None:
    before = report._busy_ticks()
    assert before is not None
    start = time.process_time()
    while time.process_time() - start < 0.1:
        pass
    after = report._busy_ticks()
    assert after is not None
    assert after - before >= 0.05 * os.sysconf("SC_CLK_TCK")


GROWTH = """
import sys
import time
import torch
sys.path.insert(0, sys.argv[1])
from test_speed_scripts import private_step
private_step.VARIANTS["large"] = lambda setup: lambda: torch.ones(2**24).sum()
print(private_step.memory_growth("large", private_step.Shape(2, 1)))
"""


def test_memory_is_measured_as_growth_of_the_peak() -> None:
    """64 MiB that are freed again count.

    The measurement runs in its own process, as the script's does: memory that others freed would
    hide the growth.
    """
    command = [sys.executable, "-W", "ignore", "-c", GROWTH, str(Path(__file__).parent)]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    assert 48 * 2**20 < float(said.splitlines()[-1]) < 96 * 2**20


def test_the_noise_script_prints_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    noise.main(["--json", "--repeats", "1", "--without-opendp"])
    found = json.loads(capsys.readouterr().out)
    assert {
        "laplace_200k_s",
        "gaussian_2_8m_s",
        "torch_laplace_200k_s",
        "torch_gaussian_2_8m_s",
    } == set(found)
