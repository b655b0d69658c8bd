"""A film and a crop of it are one picture; two people in one pose are two."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from client.ingest import crops
from client.ingest.build import ingest
from client.ingest.crop_windows import (
    COARSE_PX,
    enlarge,
    find_weights,
    reduce_fields,
    structures_at,
    windows_of,
)
from client.ingest.crops import same_crops, same_crops_among
from client.ingest.exposure import same_exposures
from client.ingest.images import frame_image
from client.ingest.likeness import near_duplicates, reduce_images
from client.ingest.refresh import Intakes
from client.ingest.request import Photograph
from client.ingest.whose import find_owners
from client.ingest.withdrawal import name_ids
from client.state.people import PeopleFile
from common.study.intake import Intake
from tests import phantoms
from tests.sites import make_hospital

Images = NDArray[np.uint8]
FILM_PX = 200


def film(seed: int) -> Images:
    """An invented film, [200, 200, 1]: the same shapes for all, and details of its own."""
    pose = _noise(np.random.default_rng(0), 7)
    chance = np.random.default_rng(seed + 1)
    own = 0.25 * _noise(chance, 12) + 0.2 * _noise(chance, 24) + 0.1 * _noise(chance, 50)
    values = np.clip(0.1 + 0.4 * pose + own, 0, 1)
    return np.rint(255 * values).astype(np.uint8)[..., None]


def _noise(chance: np.random.Generator, places: int) -> NDArray[np.float64]:
    small = Image.fromarray(chance.random((places, places)).astype(np.float32))
    large = small.resize((FILM_PX, FILM_PX), Image.Resampling.BICUBIC)
    return np.asarray(large, dtype=np.float64)


def framed(pixels: Images, side: int = 64) -> Images:
    return frame_image(pixels, side, 1, field_of_view=False)


def cut(pixels: Images, left: float, right: float, top: float, bottom: float) -> Images:
    """A film without these hundredths of its sides."""
    sides = [round(FILM_PX * part / 100) for part in (left, right, top, bottom)]
    return pixels[sides[2] : FILM_PX - sides[3], sides[0] : FILM_PX - sides[1]]


def found(images: Images, persons: list[int] | None = None) -> set[tuple[int, int]]:
    numbers = np.array(persons or range(len(images)), np.int64)
    return set(same_crops(reduce_images(images), numbers))


def with_border(pixels: Images) -> Images:
    """The film on a larger sheet that is evenly dark."""
    return np.pad(pixels, ((20, 20), (15, 15), (0, 0)), constant_values=12)


CROPS: dict[str, Callable[[Images], Images]] = {
    "one side": lambda pixels: cut(pixels, 10, 0, 0, 0),
    "a fifth of one side": lambda pixels: cut(pixels, 0, 0, 20, 0),
    "all sides": lambda pixels: cut(pixels, 12, 12, 12, 12),
    "two sides unlike": lambda pixels: cut(pixels, 3, 12, 8, 0),
    "another aspect": lambda pixels: cut(pixels, 0, 0, 12, 12),
    "an even border": with_border,
    "another window": lambda pixels: (cut(pixels, 8, 8, 8, 8) * 0.6 + 70).astype(np.uint8),
}


@pytest.mark.parametrize("kind", CROPS)
def test_a_crop_is_found_among_others(kind: str) -> None:
    images = np.stack([framed(film(seed)) for seed in range(12)])
    both = np.concatenate([images, framed(CROPS[kind](film(4)))[None]])
    assert found(both) == {(4, 12)}


@pytest.mark.parametrize("side", [96, 128])
def test_crops_are_found_at_other_sizes(side: int) -> None:
    images = np.stack([framed(film(seed), side) for seed in range(6)])
    both = np.concatenate([images, framed(cut(film(2), 8, 4, 6, 10), side)[None]])
    assert found(both) == {(2, 6)}


def test_the_other_rules_alone_would_miss_it() -> None:
    images = np.stack([framed(film(1)), framed(cut(film(1), 5, 5, 5, 5))])
    assert not [*near_duplicates(images), *same_exposures(reduce_images(images))]
    assert found(images) == {(0, 1)}


def test_two_crops_of_one_film_are_found() -> None:
    images = np.stack([framed(cut(film(1), 10, 0, 5, 0)), framed(cut(film(1), 0, 8, 0, 8))])
    assert found(images) == {(0, 1)}


def test_people_in_one_pose_are_not_joined() -> None:
    films = [film(seed) for seed in range(14)]
    images = np.stack([framed(one) for one in films])
    crops_of_others = np.stack([framed(cut(film(seed), 6, 6, 6, 6)) for seed in range(14, 28)])
    assert not found(np.concatenate([images, crops_of_others]))


def test_half_of_a_film_is_not_the_film(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crops, "PLACED_ALIKE", 0.2)
    one, other = film(1), film(2)
    mixed = one.copy()
    mixed[:, 100:] = other[:, 100:]
    images = np.stack([framed(one), framed(other), framed(cut(mixed, 6, 6, 6, 6))])
    fits = [fit.per_cent for fit in crops.fit_crops(reduce_images(images), np.arange(3))]
    assert 35 < max(fits) < 60
    assert not found(images)


def test_a_corner_that_agrees_makes_no_crop() -> None:
    chance = np.random.default_rng(1)
    whole = np.zeros((60, 60), np.int8)
    whole[:32, :32] = chance.integers(1, 20, (32, 32))
    cut_of_it = chance.integers(1, 20, (60, 60)).astype(np.int8)
    cut_of_it[28:, 28:] = whole[:32, :32]
    assert crops._correlate(whole, cut_of_it, (-28, -28)) == pytest.approx(1)
    whole[:, 32:] = 1
    assert crops._correlate(whole, cut_of_it, (-28, -28)) == 0


def test_images_of_one_person_are_not_compared() -> None:
    images = np.stack([framed(film(1)), framed(cut(film(1), 8, 8, 8, 8)), framed(film(2))])
    assert not found(images, [5, 5, 6])
    assert found(images, [5, 7, 6]) == {(0, 1)}


def test_crops_among_others_are_found_both_ways() -> None:
    others = np.stack([framed(film(seed)) for seed in range(66)])
    others[65] = framed(cut(film(80), 9, 3, 4, 9))
    images = np.stack([framed(cut(film(3), 8, 0, 8, 0)), framed(film(80)), framed(film(90))])
    assert set(same_crops_among(images, others)) == {(0, 3), (1, 65)}
    assert not list(same_crops_among(images[:0], others))
    assert not list(same_crops_among(images, others[:0]))


def test_even_and_small_images_have_no_crops() -> None:
    assert not found(np.full((3, 64, 64, 1), 90, np.uint8))
    assert not found(np.stack([framed(film(1), 32), framed(cut(film(1), 8, 8, 8, 8), 32)]))
    assert not list(same_crops(np.empty((0, 4096), np.uint16), np.empty(0, np.int64)))


def test_the_order_of_the_images_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.ingest.crop_windows.SAMPLE", 5)
    images = np.stack([framed(film(seed)) for seed in range(12)])
    images[7] = framed(cut(film(2), 5, 10, 0, 7))
    order = np.random.default_rng(1).permutation(12)
    places = {int(row): place for place, row in enumerate(order)}
    one, other = sorted((places[2], places[7]))
    assert found(images) == {(2, 7)}
    assert found(images[order]) == {(one, other)}
    weights = find_weights([reduce_images(images)])
    assert np.allclose(weights, find_weights([reduce_images(images[::-1])]), atol=1e-6)


def test_an_enlarged_picture_has_no_edge_beside_black() -> None:
    picture = np.full((1, 32, 32), 900, np.uint16)
    picture[:, :, :5] = 0
    large = enlarge(picture, 1.21, 38)
    assert set(np.unique(large)) == {0, 900}
    assert not structures_at(picture, 1.21).any()


def test_a_window_lies_where_it_is_said_to() -> None:
    coarse = reduce_fields(reduce_images(framed(film(5))[None]))
    assert coarse.shape == (1, COARSE_PX, COARSE_PX)
    structures = structures_at(coarse, 1.1)
    windows = windows_of(structures, 2).reshape(5, 5, 20, 20)
    first = (structures.shape[1] - 20) // 2
    own = structures[0, first - 2 : first + 18, first + 4 : first + 24]
    assert (windows[1, 4] == own).all()


def test_what_joins_is_decided_by_the_register_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.stack([framed(film(1)), framed(cut(film(1), 8, 8, 8, 8))])
    monkeypatch.setattr(crops, "ALIKE_PER_CENT", {64: 99})
    assert not found(images)


@pytest.mark.usefixtures("in_process")
def test_a_film_and_its_crop_under_two_ids_are_one_person(
    tmp_path: Path, intake: Callable[..., Intake], key: bytes
) -> None:
    rules = intake(dicom_modalities=("DX",), channels=1, labels=("x",), ordinal_labels=False)
    films = {"SA": film(5), "SB": cut(film(5), 8, 3, 5, 10), "SC": film(6), "SD": film(7)}
    for patient, pixels in films.items():
        grey = pixels[..., 0].astype(np.uint16)
        dataset = phantoms.with_pixels(phantoms.header("DX", patient), grey, "MONOCHROME2", 8)
        phantoms.save(dataset, tmp_path / "films" / f"{patient}.dcm")
    report = ingest(tmp_path / "films", rules, key, tmp_path / "cohort")
    assert (report.ingested, report.patients, report.merged) == (4, 3, 1)
    assert report.joins == ("SA = SB: the same picture",)


@pytest.mark.usefixtures("in_process")
def test_a_crop_that_no_id_names_is_of_the_person_of_the_film(
    tmp_path: Path, intake: Callable[..., Intake]
) -> None:
    rules = intake(dicom_modalities=("DX",), channels=1, labels=("x",), ordinal_labels=False)
    site = make_hospital(tmp_path / "site").site()
    source = tmp_path / "films"
    source.mkdir()
    for seed, patient in enumerate(("SA", "SB", "SC")):
        Image.fromarray(film(seed)[..., 0]).save(source / f"{patient}.png")
    rows = [(f"{patient}.png", patient, "x") for patient in ("SA", "SB", "SC")]
    labels = phantoms.write_labels(tmp_path / "labels.csv", rows, "file,patient,label")
    told = {"folder": str(source), "labels_csv": str(labels), "text_detector": "off"}
    data = site.config.data.model_copy(update=told)
    config = site.config.model_copy(update={"data": data})
    assert Intakes(site.state, config).ensure(rules) is not None

    def owners(*shown: tuple[Images, str]) -> list[tuple[str, ...]]:
        photographs = []
        for pixels, _ in shown:
            digest = hashlib.sha256(pixels.tobytes()).digest()
            photographs.append(Photograph(framed(pixels, rules.size_px), digest, False, "", "", 0))
        paths = [source / name for _, name in shown]
        return find_owners(photographs, paths, rules, site.state, config)

    crop = cut(film(1), 8, 3, 0, 6)
    (of_film,) = owners((film(1), "SB.png"))
    assert len(of_film) == 1
    assert owners((crop, "nobody.png"), (film(9), "stranger.png")) == [of_film, ()]

    # two crops of a film that no cohort holds are of one person, of whom one is named
    named, other = owners((film(9), "SB.png"), (cut(film(9), 5, 5, 5, 5), "nobody.png"))
    assert named == other == of_film

    # a person's word that they differ counts before
    Image.fromarray(film(9)[..., 0]).save(source / "SD.png")
    phantoms.write_labels(labels, [*rows, ("SD.png", "SD", "x")], "file,patient,label")
    (own,) = name_ids(["SD"], "", site.state.pseudonym_bytes())
    assert set(owners((crop, "SD.png"))[0]) == {own.name, *of_film}
    PeopleFile(site.state.people).decide((), [(own.name, of_film[0])])
    assert owners((crop, "SD.png")) == [(own.name,)]
