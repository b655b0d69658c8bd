"""Distances to a reference: known orderings, and an honest floor."""

import numpy as np
import pytest

from common.arrays import Floats
from server.evaluate import comparison, distances
from server.evaluate.comparison import (
    FLOOR,
    FRECHET,
    KERNEL,
    MEAN_IMAGE,
    SAME_PIXEL,
    average_alike,
    compare,
    halves,
)
from server.evaluate.extractors import Texture
from server.evaluate.findings import NOT_EVALUATED, Finding
from tests.discs import draw_discs


def values(findings: list[Finding]) -> dict[str, float | None]:
    return {f.name: f.value for f in findings}


def test_more_of_the_same_is_nearer_than_something_else_by_every_distance() -> None:
    real = draw_discs(80, 0)
    same, other = (
        values(compare(images, real, Texture(2)))
        for images in (draw_discs(40, 1), draw_discs(40, 2, radius=6, noise=40))
    )
    for name in ("Fréchet distance", "kernel distance"):
        near, far, floor = same[name], other[name], same[f"{name}, real against real"]
        assert near is not None and far is not None and floor is not None
        assert abs(near) < 0.1 * far
        assert abs(floor) < 0.1 * far
    assert same["precision"] > 0.5 > other["precision"]  # type: ignore[operator]
    assert same["recall"] > 0.5 > other["recall"]  # type: ignore[operator]


def test_a_copy_has_ratio_zero_and_a_stranger_a_large_one() -> None:
    real = draw_discs(40, 0)
    for images, low, high in (
        (real[:10], -1e-9, 1e-3),
        (draw_discs(10, 3, radius=6, noise=40), 1.5, 1e9),
    ):
        ratio = values(compare(images, real, Texture()))["nearest reference ratio"]
        assert ratio is not None
        assert low <= ratio <= high


def test_too_few_images_for_a_covariance_are_compared_by_variances_and_the_unit_says_so() -> None:
    for channels, said in ((2, False), (48, True)):
        found = {
            f.name: f for f in compare(draw_discs(30, 1), draw_discs(30, 0), Texture(channels))
        }
        for ending in ("", FLOOR, MEAN_IMAGE):
            assert found[FRECHET + ending].value is not None
            assert ("too few images for covariances" in found[FRECHET + ending].unit) == said


def test_one_image_a_side_has_no_distance_and_says_why() -> None:
    for images, reference in ((1, 30), (30, 2), (30, 3)):
        found = compare(draw_discs(images, 1), draw_discs(reference, 0), Texture(2))
        assert {f.status for f in found} == {NOT_EVALUATED}
        assert all("a distance needs two on each side" in f.evidence for f in found)


def test_all_rows_have_equally_many_images_and_an_interval_around_the_value() -> None:
    found = {f.name: f for f in compare(draw_discs(12, 1), draw_discs(60, 0), Texture(2))}
    for name in (FRECHET, KERNEL):
        for ending in ("", FLOOR, SAME_PIXEL, MEAN_IMAGE):
            row = found[name + ending]
            assert row.value is not None and row.interval is not None
            assert row.interval[0] <= row.value <= row.interval[1]
            assert "12 images against 30 public reference images" in row.evidence


def test_no_row_has_more_images_than_the_release(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def estimate(a: Floats, b: Floats) -> distances.Estimate:
        sizes.append((len(a), len(b)))
        return distances.Estimate(0.0, (0.0, 0.0))

    monkeypatch.setattr(distances, "estimate_kernel", estimate)
    compare(draw_discs(12, 1), draw_discs(60, 0), Texture(2))
    assert sizes == [(12, 30)] * 4


def test_averages_are_farther_than_real_images_and_one_image_for_all_farthest() -> None:
    real = draw_discs(120, 0)
    real[1::2] = draw_discs(60, 5, radius=6)  # two kinds
    found = values(compare(draw_discs(20, 1), real, Texture(2), group_size=5))
    for name in (FRECHET, KERNEL):
        floor, alike, mean = (found[name + end] for end in (FLOOR, SAME_PIXEL, MEAN_IMAGE))
        assert floor is not None and alike is not None and mean is not None
        assert floor < alike < mean


def test_a_half_smaller_than_k_has_no_row_of_averages() -> None:
    found = {f.name: f for f in compare(draw_discs(8, 1), draw_discs(16, 0), Texture(2))}
    assert found[KERNEL + SAME_PIXEL].status == NOT_EVALUATED
    assert found[KERNEL + MEAN_IMAGE].value is not None


def test_an_image_is_averaged_with_its_nearest_in_pixels() -> None:
    levels = np.array([0, 10, 100, 120, 250], np.uint8)
    images = np.broadcast_to(levels[:, None, None, None], (5, 4, 4, 1))
    assert average_alike(images, 2)[:, 0, 0, 0].tolist() == [5, 5, 110, 110, 185]
    with pytest.raises(ValueError, match="5 images, k = 6"):
        average_alike(images, 6)


def test_pixels_are_compared_strip_by_strip(monkeypatch: pytest.MonkeyPatch) -> None:
    images = draw_discs(9, 0)
    whole = average_alike(images, 3)
    monkeypatch.setattr(comparison, "STRIP", 100)
    assert np.array_equal(average_alike(images, 3), whole)


def test_of_very_many_images_some_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "MOST_IMAGES", 7)
    found = {f.name: f for f in compare(draw_discs(30, 1), draw_discs(30, 0), Texture(2))}
    assert "7 images against 7 public" in found[KERNEL].evidence


def test_the_floor_has_no_patient_in_both_halves() -> None:
    patients = np.repeat(np.arange(9), 4)
    first, second = halves(len(patients), patients)
    assert not set(patients[first]) & set(patients[second])
    assert sorted([*first, *second]) == list(range(36))
    # near-copies of each patient: split by image the floor would be of the same pictures twice
    real = draw_discs(9, 0)[np.repeat(np.arange(9), 4)]
    by_image, by_patient = (
        Texture(2).features(real[rows]) for rows in (np.arange(0, 36, 2), first)
    )
    rest = Texture(2).features(real[second])
    assert distances.nearest_ratio(by_patient, rest) > 0
    assert distances.euclidean(by_image, Texture(2).features(real[1::2])).min(axis=1).max() < 1e-3
