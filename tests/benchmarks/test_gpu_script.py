"""The script for a GPU runs every part, here at toy size and on the processor."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import gpu, report
from benchmarks.gpu_setting import Part, Setting

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(900)  # a busy machine: ten seconds of work, most of them imports
def test_every_part_writes_its_run_and_the_sheet_is_there(tmp_path: Path) -> None:
    script = ROOT / "benchmarks" / "gpu.sh"
    command = ["sh", str(script), "--device", "cpu", "--quick", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in gpu.PARTS:
        run = report.load(tmp_path / f"gpu.{name}.json")
        assert run.tables
        assert "failed" not in run.figures
    with Image.open(tmp_path / gpu.SAMPLES) as sheet:
        assert np.asarray(sheet).std() > 0
    parity = report.load(tmp_path / "gpu.parity.json").figures
    assert parity["lattice, sum in parts, steps"] == 0
    assert parity["lattice, largest norm over 2^24"] <= 1


def test_a_part_that_fails_says_so_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(setting: Setting) -> Part:
        raise RuntimeError("no such kernel")

    parts = {"parity": fail, "noise": gpu.PARTS["noise"]}
    monkeypatch.setattr(gpu, "PARTS", parts)
    assert gpu.main(["--device", "cpu", "--quick", "--out", str(tmp_path)]) == 1
    failed = report.load(tmp_path / "gpu.parity.json").figures["failed"]
    assert failed == "RuntimeError: no such kernel"
    assert report.load(tmp_path / "gpu.noise.json").figures["wall_ns"] > 0
