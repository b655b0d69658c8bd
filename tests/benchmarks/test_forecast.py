"""benchmarks/forecast.py runs every phase as a site's child does, and compares the forecast."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.learn.fast.ways import CHOICES
from tests.benchmarks.test_speed_scripts import script

forecast = script("forecast")
PHASES = {
    "gan": ["gan"],
    "glow": ["glow"],
    "wgan": ["wgan"],
    "images": ["encoder", "invert", "align"],
    "privatize": ["privatize"],
}


@pytest.mark.parametrize("part", forecast.PARTS)
def test_every_phase_is_forecast_and_run(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # this process has further tests, which try no ways
    monkeypatch.setattr(CHOICES, "keep_in", lambda _: None)
    study = forecast.make_study(part, 32, quick=True)
    planned = {phase.name for phase in forecast.phases(study)}
    found = forecast.run_part(part, 32, True, tmp_path)
    assert list(found) == PHASES[part]
    assert planned >= set(found)
    assert all(one["s"] > 0 and one["bytes"] > 0 for one in found.values())


def test_a_peak_above_its_forecast_and_a_time_far_off_are_said() -> None:
    row = {
        "phase": "gan", "px": 64, "s": 2.0, "bytes": 1 << 30, "predicted_s": 3.0,
        "predicted_bytes": 1 << 31, "products": 1, "noise": 0, "products_per_s": 1.0,
    }  # fmt: skip
    assert [target.met for target in forecast.targets([row])] == [True, True]
    low = row | {"predicted_bytes": 1 << 29}
    slow = row | {"s": 7.0}
    assert [target.met for target in forecast.targets([row, low])] == [False, True]
    assert [target.met for target in forecast.targets([row, slow])] == [True, False]
    [table] = forecast.tables([row])
    assert table.rows[0][4] == "1.50"
