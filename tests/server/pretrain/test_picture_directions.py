"""Public directions by pictures show; the widest directions need not."""

from __future__ import annotations

import numpy as np
import pytest

from common.errors import ConfigurationError
from common.models.basis import fit
from server.pretrain.picture_directions import REACHING, fit_to_pictures, scale_to_radius


def shown(n: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Latents whose widest direction shows nothing, and pictures of two narrow ones."""
    random = np.random.default_rng(3)
    rows = random.normal(size=(n, 12))
    rows[:, 0] *= 5
    pattern = random.normal(size=(2, 8, 8, 1))
    pictures = 128 + 20 * np.tensordot(rows[:, [4, 7]], pattern, 1)
    return rows, np.clip(pictures, 0, 255).astype(np.uint8)


def test_directions_by_pictures_are_those_that_show_and_not_the_widest() -> None:
    rows, pictures = shown(3000)
    found = fit_to_pictures(rows, pictures, 2)
    assert np.linalg.norm(found.directions[:, [4, 7]], axis=1).min() > 0.97
    assert abs(fit(rows, 2).directions[0, 0]) > 0.99
    np.testing.assert_allclose(found.reduce(rows).std(axis=0), 1.0, rtol=1e-9)
    np.testing.assert_allclose(found.reduce(rows).mean(axis=0), 0.0, atol=1e-9)


def test_a_row_of_twice_the_weight_counts_as_two_rows() -> None:
    rows, pictures = shown(40)
    weights = np.ones(40)
    weights[:10] = 2
    weighed = fit_to_pictures(rows, pictures, 2, weights / weights.sum())
    twice = np.concatenate([np.arange(40), np.arange(10)])
    repeated = fit_to_pictures(rows[twice], pictures[twice], 2)
    np.testing.assert_allclose(weighed.mean, repeated.mean)
    np.testing.assert_allclose(weighed.spread, repeated.spread)
    np.testing.assert_allclose(
        np.abs(weighed.directions @ repeated.directions.T), np.eye(2), atol=1e-6
    )


@pytest.mark.parametrize(("rows", "components"), [(300, 13), (300, 0), (2, 2), (299, 2)])
def test_directions_by_pictures_need_images_of_every_row(rows: int, components: int) -> None:
    codes, pictures = shown()
    given = pictures if rows == 299 else pictures[:rows]
    with pytest.raises(ConfigurationError, match="one image a row"):
        fit_to_pictures(codes[:rows], given, components)


def test_most_public_rows_reach_the_clip_after_scaling() -> None:
    rows, pictures = shown(1000)
    found = fit_to_pictures(rows, pictures, 2)
    scaled = scale_to_radius(found, rows)
    lengths = np.linalg.norm(scaled.reduce(rows), axis=1)
    assert np.mean(lengths >= scaled.components**0.5) == pytest.approx(REACHING, abs=2e-3)
    # one factor for all: the directions keep their proportions
    np.testing.assert_allclose(scaled.directions, found.directions)
    assert np.ptp(scaled.spread / found.spread) < 1e-12


def test_scaling_counts_rows_by_their_weights() -> None:
    rows, pictures = shown(400)
    found = fit_to_pictures(rows, pictures, 2)
    weights = np.ones(400)
    weights[:100] = 2
    repeated = rows[np.concatenate([np.arange(400), np.arange(100)])]
    weighed = scale_to_radius(found, rows, weights / weights.sum())
    np.testing.assert_allclose(weighed.spread, scale_to_radius(found, repeated).spread, rtol=0.02)
    assert not np.allclose(weighed.spread, scale_to_radius(found, rows[100:]).spread, rtol=0.02)


def test_rows_that_are_all_alike_have_no_scale() -> None:
    rows, pictures = shown(300)
    found = fit_to_pictures(rows, pictures, 2)
    with pytest.raises(ConfigurationError, match="do not vary"):
        scale_to_radius(found, np.tile(found.mean, (5, 1)))
