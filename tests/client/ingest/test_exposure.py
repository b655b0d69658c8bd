"""One exposure under two windows is one picture; two people never are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from client.ingest.build import ingest
from client.ingest.exposure import same_exposures, same_exposures_among, structure_of
from client.ingest.likeness import near_duplicates, reduce_images
from common.study.intake import Intake
from tests import phantoms

Images = NDArray[np.uint8]


def film(seed: int, side: int = 64) -> NDArray[np.float64]:
    """An invented exposure, [side, side] of 0 to 1: smooth shapes and fine noise."""
    chance = np.random.default_rng(seed)
    coarse = Image.fromarray(chance.random((9, 9)).astype(np.float32))
    fine = Image.fromarray(chance.random((24, 24)).astype(np.float32))
    shapes = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC))
    details = np.asarray(fine.resize((side, side), Image.Resampling.BICUBIC))
    return np.clip(0.15 + 0.5 * shapes + 0.25 * details, 0, 1).astype(np.float64)


def shown(exposure: NDArray[np.float64], low: float, high: float, gamma: float = 1) -> Images:
    """An exposure under a window, uint8 [side, side, 1]."""
    share = np.clip((exposure - low) / (high - low), 0, 1) ** gamma
    return np.rint(255 * share).astype(np.uint8)[..., None]


WINDOWS = {
    "a wide window": (-0.3, 1.4, 1.0),
    "a narrow window": (0.2, 0.75, 1.0),
    "a brighter copy": (0.0, 0.8, 1.0),
    "a gamma": (0.0, 1.0, 0.5),
    "a darker gamma": (0.0, 1.0, 2.2),
}


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("side", [64, 96, 128])
def test_one_exposure_in_two_windows_is_found(window: str, side: int) -> None:
    images = np.stack(
        [shown(film(seed, side), 0, 1) for seed in range(6)]
        + [shown(film(2, side), *WINDOWS[window])]
    )
    assert list(same_exposures(reduce_images(images))) == [(2, 6)]


def test_near_duplicates_alone_would_miss_it() -> None:
    images = np.stack([shown(film(2), 0, 1), shown(film(2), 0.2, 0.75, 0.5)])
    assert not list(near_duplicates(images))
    assert list(same_exposures(reduce_images(images))) == [(0, 1)]


def test_different_exposures_are_not_joined_by_a_common_frame() -> None:
    images = np.stack([shown(film(seed), 0, 1) for seed in range(40)])
    images[:, :22] = images[:, -22:] = 0
    images[:, :, :22] = images[:, :, -22:] = 0
    assert not list(same_exposures(reduce_images(images)))


def test_half_a_film_is_not_the_film() -> None:
    images = np.stack([shown(film(1), 0, 1), shown(film(2), 0, 1)])
    half = images[0].copy()
    half[:, 32:] = images[1][:, 32:]
    assert not list(same_exposures(reduce_images(np.stack([*images, half]))))


def test_pairs_across_blocks_are_found_wherever_they_lie() -> None:
    images = np.repeat(np.full((1, 64, 64, 1), 7, np.uint8), 600, axis=0)
    films = ((3, 1, 0.0), (255, 2, 0.0), (256, 2, 0.2), (300, 3, 0.0), (310, 3, 0.1), (599, 1, 0.1))
    for place, seed, low in films:
        images[place] = shown(film(seed), low, 0.9)
    found = sorted(same_exposures(reduce_images(images)))
    assert found == [(3, 599), (255, 256), (300, 310)]
    among = same_exposures_among(images[[3, 256]], images)
    assert sorted(among) == [(0, 3), (0, 599), (1, 255), (1, 256)]


def test_a_structure_counts_darker_neighbours_less_brighter_ones() -> None:
    chance = np.random.default_rng(4)
    fields = chance.integers(0, 2000, (1, 64 * 64), dtype=np.uint16)
    fields[0, chance.integers(0, 64 * 64, 5)] = 0
    values = fields.reshape(64, 64).astype(int)
    level = values.max() // 255
    seen = structure_of(fields).reshape(60, 60)
    for row, column in chance.integers(0, 60, (200, 2)).tolist():
        near = values[row : row + 5, column : column + 5]
        less = values[row + 2, column + 2] - near
        expected = int((less >= level).sum()) - int((less <= -level).sum())
        assert seen[row, column] == (expected if near.all() else 0)


def test_even_and_small_images_have_no_structure() -> None:
    even = np.full((3, 64, 64, 1), 90, np.uint8)
    assert not structure_of(reduce_images(even)).any()
    assert not list(same_exposures(reduce_images(even)))
    small = np.stack([shown(film(1, 32), 0, 1)] * 2)
    assert not list(same_exposures(reduce_images(small)))
    assert not list(same_exposures(np.empty((0, 4096), np.uint16)))
    assert not list(same_exposures_among(even[:0], even))


@pytest.mark.usefixtures("in_process")
def test_one_film_processed_twice_under_two_ids_is_one_person(
    tmp_path: Path, intake: Callable[..., Intake], key: bytes
) -> None:
    rules = intake(dicom_modalities=("DX",), channels=1, labels=("x",), ordinal_labels=False)
    for patient, seed, window in (("SA", 5, (2000, 3900)), ("SB", 5, (2100, 2200)), ("SC", 6, ())):
        pixels = np.rint(4095 * film(seed, 128)).astype(np.uint16)
        dataset = phantoms.with_pixels(phantoms.header("DX", patient), pixels, "MONOCHROME2", 12)
        if window:
            dataset.WindowCenter, dataset.WindowWidth = window
        phantoms.save(dataset, tmp_path / "films" / f"{patient}.dcm")
    report = ingest(tmp_path / "films", rules, key, tmp_path / "cohort")
    assert (report.ingested, report.patients, report.merged) == (3, 2, 1)
    assert report.joins == ("SA = SB: the same picture",)
