"""benchmarks/cohort_scale.py runs a site's own stages on a small invented cohort."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.ingest import decode
from tests.benchmarks.test_speed_scripts import script

cohort_scale = script("cohort_scale")


def test_every_stage_is_run_and_every_copy_is_one_person(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        decode, "decode_all", decode.decode_all
    )  # put back what the script replaces
    found = cohort_scale.run_stages(200, 32, tmp_path)
    assert list(found) == [
        "list, identify, spool",
        "near-duplicates, persons",
        "write and digest",
        "open",
        "verify",
    ]
    assert all(one["mib"] > 0 for one in found.values())


def test_growth_is_the_exponent_of_a_power_law() -> None:
    runs = {"10": {"x": {"s": 2.0, "mib": 50}}, "1000": {"x": {"s": 2000.0, "mib": 50}}}
    assert cohort_scale.growth(runs, (10, 1000), "x", "s") == pytest.approx(1.5)
    assert cohort_scale.growth(runs, (10, 1000), "x", "mib") == 0


def test_operations_are_counted_for_one_image() -> None:
    small, large = (cohort_scale.count_inversion(side) for side in (32, 64))
    assert 0 < small["gflop_an_image"] < large["gflop_an_image"]
