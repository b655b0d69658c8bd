"""Distances to a reference: known orderings, and an honest floor."""

import numpy as np

from server.evaluate import distances
from server.evaluate.comparison import compare, halves
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


def test_too_few_images_for_a_covariance_read_not_evaluated() -> None:
    found = {f.name: f for f in compare(draw_discs(30, 1), draw_discs(30, 0), Texture(48))}
    for name in ("Fréchet distance", "Fréchet distance, real against real"):
        assert found[name].status == NOT_EVALUATED
        assert "15 images a side cannot carry a covariance of 288 features" in found[name].evidence
    assert found["kernel distance"].status == "shown"


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
