"""benchmarks/site_scale.py runs a site's own stages on a small invented cohort."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.benchmarks.test_speed_scripts import script

site_scale = script("site_scale")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("part", list(site_scale.PARTS))
def test_every_stage_runs_on_a_small_cohort(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site_scale, "RELEASED", 24)
    monkeypatch.setattr(site_scale, "FEW_GROUPS", 2)
    site_scale.make_cohort(tmp_path, 60, 64)
    for stage in site_scale.PARTS[part].values():
        stage(tmp_path, 60, 64)


def test_a_cohort_is_sparse_and_its_images_differ(tmp_path: Path) -> None:
    site_scale.make_cohort(tmp_path, 20, 512)
    images = site_scale.read_cohort(tmp_path)
    assert images.shape == (20, 512, 512, 1)
    assert (tmp_path / "images.npy").stat().st_blocks * 512 < images.nbytes / 4
    assert len({image.tobytes() for image in images}) == 20


def test_a_part_is_shown_with_its_targets_and_the_formula_of_the_estimate() -> None:
    one = {"s": 1.0, "mib": 100, "growth_mib": 10}
    found = {
        "sizes": [10, 100],
        "side": 64,
        "stages": {"10": {"x": one}, "100": {"x": {**one, "s": 150.0, "growth_mib": 2000}}},
        "counted": {"gflop": 2000.0, "times": 50_000},
    }
    shown = site_scale.tables("inversion", found)
    assert shown[0].rows[0][-2:] == ("2.18", "0.00")
    assert shown[1].rows == (("50,000", "2,000", "83"),)
    met = [target.met for target in site_scale.targets("inversion", found)]
    assert met == [False, True, True]
    assert [t.met for t in site_scale.targets("grouping", found)] == [False, True, False]


def test_operations_are_counted_for_one_group() -> None:
    small, large = (site_scale.count_alignment(side) for side in (32, 64))
    assert 0 < small["gflop"] < large["gflop"]
    assert np.isfinite(large["gflop"])
