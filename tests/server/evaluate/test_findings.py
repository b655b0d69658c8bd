"""The release's own measurements: known orderings, and honest gaps."""

import numpy as np

from server.evaluate import distances
from server.evaluate import findings as evaluate
from server.evaluate.extractors import Texture


def discs(count: int, seed: int, *, radius: float = 10.0, noise: float = 8.0) -> np.ndarray:
    """Orange discs on black with noise, uint8 [N, 32, 32, 3]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:32, :32] - 15.5
    inside = (y**2 + x**2 < radius**2)[..., None]
    colour = rng.normal([190, 110, 40], 12, (count, 1, 1, 3))
    pictures = np.where(inside, colour, 5) + rng.normal(0, noise, (count, 32, 32, 3))
    return pictures.clip(0, 255).astype(np.uint8)


def values(findings: list[evaluate.Finding]) -> dict[str, float | None]:
    return {f.name: f.value for f in findings}


def test_more_of_the_same_is_nearer_than_something_else_by_every_distance() -> None:
    real = discs(80, 0)
    same, other = (
        values(evaluate.compare(images, real, Texture(2)))
        for images in (discs(40, 1), discs(40, 2, radius=6, noise=40))
    )
    for name in ("Fréchet distance", "kernel distance"):
        near, far, floor = same[name], other[name], same[f"{name}, real against real"]
        assert near is not None and far is not None and floor is not None
        assert abs(near) < 0.1 * far
        assert abs(floor) < 0.1 * far
    assert same["precision"] > 0.5 > other["precision"]  # type: ignore[operator]
    assert same["recall"] > 0.5 > other["recall"]  # type: ignore[operator]


def test_a_copy_has_ratio_zero_and_a_stranger_a_large_one() -> None:
    real = discs(40, 0)
    for images, low, high in (
        (real[:10], -1e-9, 1e-3),
        (discs(10, 3, radius=6, noise=40), 1.5, 1e9),
    ):
        ratio = values(evaluate.compare(images, real, Texture()))["nearest reference ratio"]
        assert ratio is not None
        assert low <= ratio <= high


def test_too_few_images_for_a_covariance_read_not_evaluated() -> None:
    found = {f.name: f for f in evaluate.compare(discs(30, 1), discs(30, 0), Texture(48))}
    for name in ("Fréchet distance", "Fréchet distance, real against real"):
        assert found[name].status == evaluate.NOT_EVALUATED
        assert "15 images a side cannot carry a covariance of 288 features" in found[name].evidence
    assert found["kernel distance"].status == "shown"


def test_a_small_reference_gets_fewer_features_rather_than_no_distance() -> None:
    found = values(
        evaluate.evaluate(discs(60, 1), np.zeros(60, np.int64), ("none",), discs(110, 0))
    )
    assert found["Fréchet distance"] is not None
    assert [evaluate._texture(n).channels for n in (20, 49, 200, 289)] == [48, 8, 24, 48]


def test_the_floor_has_no_patient_in_both_halves() -> None:
    patients = np.repeat(np.arange(9), 4)
    first, second = evaluate.halves(len(patients), patients)
    assert not set(patients[first]) & set(patients[second])
    assert sorted([*first, *second]) == list(range(36))
    # near-copies of each patient: split by image the floor would be of the same pictures twice
    real = discs(9, 0)[np.repeat(np.arange(9), 4)]
    by_image, by_patient = (
        Texture(2).features(real[rows]) for rows in (np.arange(0, 36, 2), first)
    )
    rest = Texture(2).features(real[second])
    assert distances.nearest_ratio(by_patient, rest) > 0
    assert distances.euclidean(by_image, Texture(2).features(real[1::2])).min(axis=1).max() < 1e-3


def test_what_was_measured_elsewhere_takes_the_place_of_not_evaluated() -> None:
    extra = evaluate.Finding("worth", 0.5, "Dice", "test", interval=(0.4, 0.6))
    found = evaluate.evaluate(
        discs(6, 0), np.zeros(6, np.int64), ("none",), None, downstream=[extra]
    )
    assert extra in found and evaluate.DOWNSTREAM not in {f.name for f in found}


def test_what_did_not_run_says_so() -> None:
    findings = evaluate.evaluate(discs(6, 0), np.zeros(6, np.int64), ("none",), None)
    silent = {f.name for f in findings if f.status == evaluate.NOT_EVALUATED}
    assert {
        "kernel distance",
        "membership inference",
        "downstream accuracy on real images",
    } <= silent
    assert all(f.value is None for f in findings if f.status == evaluate.NOT_EVALUATED)


def test_duplicates_and_label_shares_are_counted() -> None:
    images = discs(4, 0)
    images[1] = images[0]
    found = {
        f.name: f.value for f in evaluate.evaluate(images, np.array([0, 0, 0, 1]), ("a", "b"), None)
    }
    assert found["exact duplicates"] == 1
    assert found["share of label a"] == 0.75
