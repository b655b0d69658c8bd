"""Asks what a plan's averages are worth before any noise, beside averages of pixels.

In: pictures of a sample, one a patient, and their labels. Out: two areas under the curve, or none.
Steps:
  1 split each label's pictures in two halves, at random
  2 draw groups of k pictures of one label from a half
  3 average them by pixel, and by the plan's latents as they are clipped before the noise
  4 train one small classifier on each kind of averages, test both on the other half
Guarantees: no noise is drawn and nothing is reserved, so what is made here must never leave: the
child keeps two numbers, and both stay on this site.
Not covered: what noise costs on top; a label of fewer than FEWEST pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from common.arrays import Floats, Images, Integers, Labels
from common.measure import classifier
from common.measure.scores import area_under_curve

FEWEST = 20  # pictures of a label that takes part
GROUPS = 24  # of each label and half
RECIPE = classifier.Recipe(flip=False)

Render = Callable[[Sequence[Labels]], Images]  # groups of rows -> one image of each


def compare_averages(
    images: Images, labels: Integers, k: int, render: Render, random: np.random.Generator
) -> Floats | None:
    """Return the areas under the curve of pixel averages and of `render`'s averages, [2].

    `images` uint8 [N, H, W, C], `labels` [N]. Each is the mean over halves and labels, one label
    against the others. None for fewer than two labels of FEWEST pictures.
    """
    rows, classes = _take_part(labels)
    if len(np.unique(classes)) < 2:
        return None

    # (1) two halves with the same share of each label
    order = random.permutation(len(rows))
    order = order[np.argsort(classes[order], kind="stable")]
    half = np.zeros(len(rows), np.int64)
    half[order[::2]] = 1

    found = []
    for side in (0, 1):
        # (2) groups of one label
        groups, of_group = _draw_groups(rows[half == side], classes[half == side], k, random)
        # (3) averages of pixels, and of latents
        means = np.stack([images[members].mean(axis=0) for members in groups])
        pixels = np.asarray(means.round(), np.uint8)
        # (4) what each kind teaches about the other half
        tested = images[rows[half != side]], classes[half != side]
        seed = int(random.integers(1 << 31))
        each = [_area(made, of_group, *tested, seed) for made in (pixels, render(groups))]
        found.append(each)
    return np.asarray(np.mean(found, axis=0), np.float64)


def _take_part(labels: Integers) -> tuple[Labels, Labels]:
    """Rows of the labels with FEWEST pictures or more, and their classes counted from 0."""
    values, counts = np.unique(labels, return_counts=True)
    rows = np.flatnonzero(np.isin(labels, values[counts >= FEWEST]))
    _, classes = np.unique(labels[rows], return_inverse=True)
    return rows, classes.astype(np.int64)


def _draw_groups(
    rows: Labels, classes: Labels, k: int, random: np.random.Generator
) -> tuple[list[Labels], Labels]:
    """GROUPS groups of k rows of each class, and the class of each.

    A class of fewer than k rows gives groups of half of its rows: groups of all would be equal.
    """
    groups = []
    of_group = []
    for one in np.unique(classes):
        own = rows[classes == one]
        size = k if len(own) > k else max(1, len(own) // 2)
        groups += [random.choice(own, size, replace=False) for _ in range(GROUPS)]
        of_group += [int(one)] * GROUPS
    return groups, np.array(of_group, np.int64)


def _area(made: Images, of_group: Labels, images: Images, truth: Labels, seed: int) -> float:
    """The mean area under the curve, one class against the others, of a classifier of `made`."""
    classes = int(of_group.max()) + 1
    network = classifier.fit(made, of_group, classes, seed=seed, recipe=RECIPE)
    scores = network.scores(images)
    areas = [area_under_curve(scores[:, one], truth == one) for one in range(classes)]
    return float(np.mean(areas))
