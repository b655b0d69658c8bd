"""The chest benchmark: its AUC, its groups, what its rows claim, and that nobody has two roles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import chest_pictures
from benchmarks.chest_releases import (
    FLOW,
    People,
    Releases,
    Row,
    in_pixels,
    pneumonia,
    random_groups,
)


@pytest.fixture(scope="module")
def releases() -> Releases:
    images = np.random.default_rng(0).integers(0, 255, (40, 32, 32, 1), dtype=np.uint8)
    people = People(images[:24], np.arange(24) % 2, np.arange(24))
    return Releases(People(images, np.arange(40) % 2, np.arange(40)), people, people, FLOW)


def test_groups_have_k_to_2k_patients_of_one_label_and_nobody_twice(releases: Releases) -> None:
    groups = random_groups(releases.patients, 5, np.random.default_rng(1))
    assert all(
        5 <= len(group) < 10 and len(set(releases.patients.labels[group])) == 1 for group in groups
    )
    assert sorted(np.concatenate(groups).tolist()) == list(range(24))


@pytest.mark.parametrize(
    "row",
    [
        Row("gaussian", 5, 8.0, 4),
        Row("laplace l1", 5, 8.0, 4),
        Row("laplace box", 5, 0.5),
        Row("privunit", 1, 8.0, 4),
    ],
)
def test_a_row_spends_what_it_says_and_its_images_are_of_its_groups(
    releases: Releases, row: Row
) -> None:
    mechanism = releases.mechanism(row)
    stated = (
        mechanism.epsilon_per_coordinate
        if row.kind == "laplace box"
        else mechanism.epsilon_per_image
    )
    assert stated == pytest.approx(row.epsilon, rel=2e-3)
    made = releases.release(row, 0)
    assert made.images.shape == (len(made.members), 32, 32, 1) and made.images.dtype == np.uint8
    assert [
        int(releases.patients.labels[members[0]]) for members in made.members
    ] == made.labels.tolist()
    assert "ε=" in made.statement


def test_noise_in_pixels_shrinks_as_epsilon_grows(releases: Releases) -> None:
    groups = [np.arange(12), np.arange(12, 24)]
    plain = in_pixels(
        Row("pixel average", 12), releases.patients.images, groups, np.random.default_rng(0)
    ).astype(float)
    for kind in ("dp-pix", "pixel laplace"):
        apart = [
            np.abs(
                in_pixels(
                    Row(kind, 12, e), releases.patients.images, groups, np.random.default_rng(0)
                )
                - plain
            ).mean()
            for e in (1.0, 1e6)
        ]
        assert apart[0] > 2 * apart[1], kind


def test_no_image_has_two_roles(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    train, test = (rng.integers(0, 255, (n, 28, 28), dtype=np.uint8) for n in (30, 9))
    # a patient's image that is public, a test image that is a public one
    train[3], test[4] = (
        train[1],
        train[2],
    )
    zeros, path = np.zeros((30, 1), np.uint8), tmp_path / "pneumoniamnist_28.npz"
    np.savez(path, train_images=train, test_images=test, train_labels=zeros, test_labels=zeros[:9])
    roles = pneumonia(tmp_path, "test")
    shown = [image.tobytes() for role in roles for image in role.images]
    assert len(shown) == len(set(shown)) == 37
    assert [len(role.images) for role in roles] == [20, 9, 8]


def test_the_pictures_are_the_same_each_time(tmp_path: Path) -> None:
    for name in ("one", "two"):
        chest_pictures.curves(
            tmp_path / f"{name}.png", "t", {"a": [(1.0, 0.6), (8.0, 0.9)]}, {"real": 0.95}
        )
        chest_pictures.strip(
            tmp_path / f"{name}-strip.png", {"x|y": np.zeros((2, 32, 32, 1), np.uint8)}
        )
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    assert (tmp_path / "one-strip.png").read_bytes() == (tmp_path / "two-strip.png").read_bytes()
