"""benchmarks/many_sites.py runs a real server with a few simulated sites of each kind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks.test_speed_scripts import script

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(
    "KOHORT_REAL_SERVER" not in os.environ, reason="half a minute: set KOHORT_REAL_SERVER=1"
)
def test_two_rounds_of_three_sites_against_the_real_server() -> None:
    command = [sys.executable, "-m", "benchmarks.many_sites", "--real", "3x0.1", "--rounds", "2"]
    done = subprocess.run(
        [*command, "--json"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert [len(one["accepted"]) for one in found["rounds"]] == [3, 3]
    assert found["states"] == {} and found["pushed_mib"] > 6 * found["update_mib"]
    for role in ("SuperLink", "ServerApp", "front", "executor", "coordinator"):
        assert any(sample.get(role, 0) > 10 for sample in found["samples"]), role


def test_memory_is_flat_when_it_does_not_grow_with_the_replies() -> None:
    many_sites = script("many_sites")
    found = many_sites.Found(1.0)
    for accepted in range(60):
        saw = 500.0 + 100 * (accepted % 2)
        found.samples.append({"s": accepted, "accepted": accepted, "all": saw})
    flat = many_sites.growth(found)
    assert flat["ratio"] == 1 and flat["mib_each_hundred_replies"] == pytest.approx(0, abs=1e-6)
    for sample in found.samples:
        sample["all"] += 6 * sample["accepted"]
    assert many_sites.growth(found)["mib_each_hundred_replies"] == pytest.approx(600)
    assert many_sites.growth(found)["ratio"] > many_sites.MOST_GROWTH


def test_an_update_has_about_the_size_that_was_asked_for() -> None:
    real_server = script("real_server")
    for mib in (0.2, 20.0, 100.0):
        numbers = real_server.count_numbers(real_server.shapes_of(*real_server.sizes_near(mib)))
        assert 4 * numbers / real_server.MIB == pytest.approx(mib, rel=0.25)
