"""The generator benchmark's own rules.

They say what fine structure is, what a judge compares with, and what is printed and saved.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import quality_generator as q
from common import arrays
from common.study.plan import load_study


def speckled(count: int, amplitude: int, seed: int = 0) -> arrays.Images:
    """Grey pictures [count, 64, 64, 3] of single pixels that differ by ± `amplitude`."""
    sign = np.random.default_rng(seed).choice([-1, 1], (count, 64, 64, 1))
    return np.repeat(128 + amplitude * sign, 3, 3).astype(np.uint8)


def test_fine_structure_is_what_differs_from_the_surroundings_in_the_middle() -> None:
    assert q.fine_structure(np.full((2, 64, 64, 3), 90, np.uint8)) == 0
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, None, :, None] * 2, (1, 64, 64, 3))
    assert q.fine_structure(ramp) < 1e-3  # a slow change of brightness is none
    assert q.fine_structure(speckled(4, 20)) == pytest.approx(
        2 * q.fine_structure(speckled(4, 10)), rel=1e-4
    )
    edge = np.full((1, 64, 64, 3), 90, np.uint8)
    edge[:, :12] = 0  # the black surround is outside of what is looked at
    assert q.fine_structure(edge) == 0


def test_a_judge_finds_the_same_kind_near_and_another_kind_far() -> None:
    judge = q.Judge(speckled(40, 20))
    same, weaker = judge(speckled(30, 20, seed=1)), judge(speckled(30, 5, seed=1))
    assert same["images"] == 30
    assert same["fine"] == pytest.approx(1, abs=0.02)
    assert weaker["fine"] == pytest.approx(0.25, abs=0.02)
    assert weaker["kernel"] > 10 * abs(same["kernel"])


def test_the_table_has_a_column_for_each_checkpoint_and_only_the_parts_that_were_measured() -> None:
    cell = {"images": 3, "kernel": 0.5, "low": 0.25, "high": 0.625, "fine": 0.75}
    (one,) = q.tables(
        {"new": {"rows": {"samples": cell}}, "old": {"rows": {"samples": cell | {"kernel": -1.0}}}}
    )
    lines = one.markdown().splitlines()
    assert lines[0].endswith("| new | old |")
    assert lines[2] == "| samples | 0.500, 0.250 to 0.625 (0.75) | -1.000, 0.250 to 0.625 (0.75) |"
    assert len(lines) == 3
    speed = {"0": {"median error": 0.02, "per CPU-second": 35.04}}
    _, inversion, speeds = q.tables(
        {"new": {"rows": {"samples": cell}, "inversion": {"threshold": 0.1}, "speed": speed}}
    )
    assert "| threshold | 0.1 |" in inversion.markdown()
    assert "| 0 | 0.0200, 35.0 |" in speeds.markdown()


def test_a_sheet_is_rows_of_pictures_enlarged_twice(tmp_path: Path) -> None:
    black, white = np.zeros((3, 8, 8, 3), np.uint8), np.full((3, 8, 8, 3), 255, np.uint8)
    q.save([black, white], tmp_path / "sheet.jpg")
    sheet = np.asarray(Image.open(tmp_path / "sheet.jpg"))
    assert sheet.shape == (32, 48, 3)
    assert sheet[:14].max() < 10 < 245 < sheet[18:].min()


def test_a_seed_always_draws_the_same() -> None:
    assert torch.equal(
        torch.rand(3, generator=q.generator_of(1)), torch.rand(3, generator=q.generator_of(1))
    )
    assert not torch.equal(
        torch.rand(3, generator=q.generator_of(1)), torch.rand(3, generator=q.generator_of(2))
    )


def test_five_grades_become_the_studys_labels_in_order() -> None:
    study = load_study(q.fundus_split.ROOT / "deploy" / "studies" / "fundus.yaml")
    assert len(q.MERGED) == 5
    assert sorted(set(q.MERGED.tolist())) == list(range(len(study.intake.labels)))
    assert (np.diff(q.MERGED) >= 0).all()
