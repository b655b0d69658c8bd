"""The release's own measurements: known orderings, and honest gaps."""

import numpy as np

from server import evaluate


def discs(count: int, seed: int, *, radius: float = 10.0, noise: float = 8.0) -> np.ndarray:
    """Orange discs on black with noise, uint8 [N, 32, 32, 3]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:32, :32] - 15.5
    inside = (y**2 + x**2 < radius**2)[..., None]
    colour = rng.normal([190, 110, 40], 12, (count, 1, 1, 3))
    pictures = np.where(inside, colour, 5) + rng.normal(0, noise, (count, 32, 32, 3))
    return pictures.clip(0, 255).astype(np.uint8)


def test_more_of_the_same_is_nearer_than_something_else() -> None:
    real = evaluate.features(discs(40, 0))
    same, other = evaluate.features(discs(40, 1)), evaluate.features(discs(40, 2, radius=6, noise=40))
    assert abs(evaluate.kernel_distance(same, real)) < 0.1 * evaluate.kernel_distance(other, real)


def test_a_copy_has_ratio_zero_and_a_stranger_a_large_one() -> None:
    real = discs(40, 0)
    for images, low, high in ((real[:10], -1e-9, 1e-3), (discs(10, 3, radius=6, noise=40), 1.5, 1e9)):
        found = evaluate.compare(evaluate.features(images), evaluate.features(real))
        ratio = next(f.value for f in found if f.name == "nearest reference ratio")
        assert ratio is not None
        assert low <= ratio <= high


def test_what_did_not_run_says_so() -> None:
    findings = evaluate.evaluate(discs(6, 0), np.zeros(6, np.int64), ("none",), None)
    silent = {f.name for f in findings if f.status == evaluate.NOT_EVALUATED}
    assert {"kernel distance", "membership inference", "downstream accuracy on real images"} <= silent
    assert all(f.value is None for f in findings if f.status == evaluate.NOT_EVALUATED)


def test_duplicates_and_label_shares_are_counted() -> None:
    images = discs(4, 0)
    images[1] = images[0]
    found = {f.name: f.value for f in evaluate.evaluate(images, np.array([0, 0, 0, 1]), ("a", "b"), None)}
    assert found["exact duplicates"] == 1
    assert found["share of label a"] == 0.75
