"""What averages are worth before noise: a render that keeps the label, and one that loses it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from client.child.worth import FEWEST, compare_averages
from common.arrays import Images, Labels

K = 5


def pictures(count: int = 60, seed: int = 0) -> tuple[Images, Labels]:
    """Noise of 16 px with a bright half: the upper one for label 3, the lower one for label 5."""
    random = np.random.default_rng(seed)
    labels = np.where(np.arange(count) % 2, 3, 5)
    images = random.normal(100, 30, (count, 16, 16, 1))
    images[labels == 3, :8] += 40
    images[labels == 5, 8:] += 40
    return np.asarray(images.clip(0, 255), np.uint8), labels


def test_a_render_that_keeps_the_label_is_worth_what_pixels_are() -> None:
    images, labels = pictures()
    seen: list[Labels] = []

    def render(groups: Sequence[Labels]) -> Images:
        seen.extend(groups)
        return np.stack([np.median(images[members], axis=0) for members in groups]).astype(np.uint8)

    found = compare_averages(images, labels, K, render, np.random.default_rng(0))
    assert found is not None
    assert found.min() > 0.95
    # groups are of k different pictures of one label
    assert all(len(set(members.tolist())) == K for members in seen)
    assert all(len(set(labels[members].tolist())) == 1 for members in seen)


def test_a_render_that_loses_the_label_is_worth_nothing() -> None:
    images, labels = pictures()
    random = np.random.default_rng(1)

    def render(groups: Sequence[Labels]) -> Images:
        return random.integers(0, 255, (len(groups), 16, 16, 1)).astype(np.uint8)

    found = compare_averages(images, labels, K, render, np.random.default_rng(0))
    assert found is not None
    assert found[0] > 0.95
    assert found[1] < 0.8


def test_no_picture_is_tested_by_a_classifier_of_its_own_average() -> None:
    images, labels = pictures(80)
    halves: list[set[int]] = []

    def render(groups: Sequence[Labels]) -> Images:
        halves.append({int(row) for members in groups for row in members})
        return np.stack([images[members].mean(axis=0) for members in groups]).astype(np.uint8)

    compare_averages(images, labels, K, render, np.random.default_rng(0))
    assert len(halves) == 2
    assert not halves[0] & halves[1]


@pytest.mark.parametrize("few", [0, FEWEST - 1])
def test_a_label_of_few_pictures_takes_no_part(few: int) -> None:
    images, labels = pictures(2 * FEWEST)
    keep = (labels == 3) | (np.cumsum(labels == 5) <= few)
    random = np.random.default_rng(0)
    images, labels = images[keep], labels[keep]
    assert compare_averages(images, labels, K, lambda groups: images[:0], random) is None


def test_a_label_of_fewer_than_k_pictures_in_a_half_still_varies() -> None:
    images, labels = pictures(2 * FEWEST)
    sizes: set[int] = set()

    def render(groups: Sequence[Labels]) -> Images:
        sizes.update(len(members) for members in groups)
        return np.stack([images[members].mean(axis=0) for members in groups]).astype(np.uint8)

    assert compare_averages(images, labels, 20, render, np.random.default_rng(0)) is not None
    assert sizes == {FEWEST // 4}
