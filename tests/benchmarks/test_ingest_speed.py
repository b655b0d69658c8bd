"""benchmarks/ingest_speed.py: every kind is written, read, and counted as it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from client.ingest.dicom import read_dicom
from tests.benchmarks.test_speed_scripts import script

ingest_speed = script("ingest_speed")


@pytest.mark.parametrize("kind", ingest_speed.LEAST)
def test_each_kind_is_read_as_the_same_radiograph(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest_speed, "SIDE", 64)
    folder = ingest_speed.make_folder(kind, 5, 2, tmp_path / "data")
    files = sorted(folder.iterdir())
    assert len(files) == 5
    assert len({file.stat().st_ino for file in files}) == 2
    pixels = ingest_speed.draw(0)
    with open(files[0], "rb") as file:
        shown = read_dicom(file, ("DX",), (0.0, 4095.0), 1 << 20).pixels[..., 0]
    assert np.array_equal(shown, np.rint(255 * (pixels / 4095)).astype(np.uint8))


def test_a_ratio_under_its_aim_is_not_met() -> None:
    found = {"JPEG-LS": {"other": 1.0, "this": 2.9, "same": False}}
    assert [target.met for target in ingest_speed.targets(found)] == [False]
    assert ingest_speed.tables(found)[0].rows == (("JPEG-LS", "1.0", "2.9", "2.90", "no"),)


def test_text_that_is_sought_has_a_ratio_and_an_aim_of_its_own() -> None:
    rates = {"other": 1.0, "this": 4.0, "text": 2.0, "same": False, "found with text sought": 1200}
    targets = ingest_speed.targets({"JPEG-LS": rates})
    assert [target.met for target in targets] == [True, False]
    row = ("JPEG-LS", "1.0", "4.0", "4.00", "no", "2.0", "2.00", "1,200")
    assert ingest_speed.tables({"JPEG-LS": rates})[0].rows == (row,)
