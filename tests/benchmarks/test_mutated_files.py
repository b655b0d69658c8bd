"""benchmarks/mutated_files.py: every seed is read, and what becomes of a few files is counted."""

from __future__ import annotations

from pathlib import Path

from client.ingest.decode_child import read_file
from client.ingest.request import Choices
from tests.benchmarks.test_speed_scripts import script

mutated_files = script("mutated_files")


def test_every_seed_is_read_before_it_is_damaged(tmp_path: Path) -> None:
    seeds = [*mutated_files.draw_dicom(tmp_path), *mutated_files.draw_stills()]
    assert len(seeds) == 16
    path = tmp_path / "file"
    for seed in seeds:
        path.write_bytes(seed)
        assert read_file(str(path), mutated_files.settings(Choices())).pixels.any()


def test_a_peak_over_the_cap_and_a_hung_child_are_not_met() -> None:
    found = {"peak_mib": 1025, "outcomes": {"decoder-timed-out": 1}, "slowest_s": 1.0}
    assert [target.met for target in mutated_files.targets(found)] == [False, False]
    assert mutated_files.tables(found)[0].rows == (("decoder-timed-out", "1"),)
