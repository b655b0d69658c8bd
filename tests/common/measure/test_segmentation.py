"""Overlap and distances of masks against brute force over all pairs of voxels."""

import math

import numpy as np
import pytest

from common.measure import segmentation


def brute(p: np.ndarray, g: np.ndarray, spacing: tuple[float, ...]) -> tuple[float, float, float]:
    """The three definitions, voxel by voxel."""
    points_p, points_g = (np.argwhere(m) * np.array(spacing) for m in (p, g))
    d = np.sqrt(((points_g[:, None] - points_p[None]) ** 2).sum(-1))
    to_p, to_g = d.min(axis=1), d.min(axis=0)
    overlap = 2 * np.logical_and(p, g).sum() / (p.sum() + g.sum())
    return (
        overlap,
        0.5 * (to_p.sum() + to_g.sum()) / len(points_g),
        max(np.percentile(x, 95) for x in (to_p, to_g)),
    )


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [((17, 12), (1.0, 1.0)), ((9, 11), (0.5, 2.0)), ((4, 7, 6), (3.0, 0.4, 0.7))],
)
def test_all_measures_equal_brute_force(shape: tuple[int, ...], spacing: tuple[float, ...]) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        p, g = (rng.random(shape) < rng.uniform(0.02, 0.5) for _ in range(2))
        p.flat[rng.integers(p.size)] = g.flat[rng.integers(g.size)] = True
        found = segmentation.agreement(p, g, spacing)
        wanted = brute(p, g, spacing)
        assert (found.dice, found.balanced_hausdorff_mm, found.hausdorff95_mm) == pytest.approx(
            wanted, abs=1e-9
        )
        assert not found.penalised


def test_the_balanced_distance_divides_both_sums_by_the_true_voxels() -> None:
    true, predicted = np.zeros((1, 10), bool), np.zeros((1, 10), bool)
    true[0, 0], predicted[0, [0, 4]] = True, True
    assert segmentation.agreement(predicted, true).balanced_hausdorff_mm == 0.5 * (0 + 4) / 1
    assert segmentation.agreement(true, predicted).balanced_hausdorff_mm == 0.5 * (4 + 0) / 2


def test_another_false_voxel_never_lowers_the_balanced_distance() -> None:
    true, predicted = np.zeros((20, 20), bool), np.zeros((20, 20), bool)
    true[5:10, 5], predicted[5:10, 6] = True, True
    before = segmentation.agreement(predicted, true).balanced_hausdorff_mm
    predicted[10, 6] = True  # as near as the others: the plain average would fall
    assert segmentation.agreement(predicted, true).balanced_hausdorff_mm > before


def test_one_empty_mask_costs_the_diagonal_and_two_cost_nothing() -> None:
    empty, full = np.zeros((3, 4), bool), np.ones((3, 4), bool)
    for p, g in ((empty, full), (full, empty)):
        found = segmentation.agreement(p, g, 2.0)
        assert found == segmentation.Agreement(0.0, 10.0, 10.0, penalised=True)
    assert segmentation.agreement(empty, empty) == segmentation.Agreement(
        1.0, 0.0, 0.0, penalised=False
    )
    assert segmentation.dice(full * 255, full) == 1.0


@pytest.mark.parametrize("spacing", [0.0, -1.0, math.nan, (1.0,), (1.0, 1.0, 1.0)])
def test_a_wrong_voxel_size_or_shape_is_refused(spacing: float | tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="spacing_mm"):
        segmentation.agreement(np.ones((3, 3)), np.ones((3, 3)), spacing)
    with pytest.raises(ValueError, match="one shape"):
        segmentation.dice(np.ones((3, 3)), np.ones((3, 4)))
