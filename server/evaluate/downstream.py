"""What released labelled images are worth to a researcher: a classifier trained on them, tested on public real people.

In: released images with labels; public people who took part and others who did not. Out: findings for the report.
Guaranteed: three trainings of the same recipe and seeds, tested on the same people, whom none of them saw: on the release, on as
many real images as the release has, on all real images; nothing is chosen by the test people. `KEPT`: how often a classifier of
the people who took no part says of a released image what its label says, beside how often it is right about real images of those
who took part: what of the pathology is still to be seen in single images. Not: a tuned classifier, or one
for pictures larger than 32 px (common/measure/classifier.py); images of one group are not known here as such, so a snapshot is chosen by
released images that may resemble those that it learned from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common.arrays import Images, Labels
from common.measure import classifier
from common.measure.classifier import Recipe, Scores
from server.evaluate.findings import DOWNSTREAM, NOT_EVALUATED, Finding

SEEDS, LEAST_IMAGES, LEAST_TESTED = 5, 6, 10
KAPPA, MACRO_F1, RATIO = (
    "downstream kappa",
    "downstream macro-F1",
    "downstream kappa, release over as many real images",
)
KEPT = "downstream pathology kept: released images that a classifier of real images labels as they are labelled"
KEPT_REAL = "downstream pathology kept: real images of those who took part, the same classifier"
ENDS = ("", ", trained on as many real images", ", trained on all real images")


@dataclass(frozen=True)
class Labelled:
    """Images uint8 [N, S, S, C] with label indices [N]."""

    images: Images
    labels: Labels


def downstream(
    released: Labelled,
    real: Labelled,
    test: Labelled,
    names: Sequence[str],
    how: str,
    *,
    seeds: int = SEEDS,
    recipe: Recipe = Recipe(),
) -> list[Finding]:
    """Return the findings; `real` are people who took part, `test` people who did not, `names` the labels, `how` says who.

    Fewer than `LEAST_IMAGES` released or `LEAST_TESTED` tested images, or one label alone: "not evaluated".
    """
    if (
        len(released.images) < LEAST_IMAGES
        or len(test.images) < LEAST_TESTED
        or len(np.unique(released.labels)) < 2
    ):
        why = f"needs {LEAST_IMAGES} released images of two labels and {LEAST_TESTED} tested people"
        return [Finding(name, None, "", why, NOT_EVALUATED) for name in (DOWNSTREAM, KAPPA, KEPT)]
    sets = [
        [released] * seeds,
        [as_many(released, real, seed) for seed in range(seeds)],
        [real] * seeds,
    ]
    found = [
        [_trained(one, test, len(names), seed, recipe) for seed, one in enumerate(some)]
        for some in sets
    ]
    said = f"small classifier on 32 px, {seeds} seeds, tested on {len(test.images)} people who did not take part; {how}"
    findings = []
    for end, scores in zip(ENDS, found, strict=True):
        findings += [
            _mean(KAPPA + end, [s.kappa for s in scores], "Cohen's kappa, quadratic weights", said),
            _mean(DOWNSTREAM + end, [s.accuracy for s in scores], "share", said),
            _mean(MACRO_F1 + end, [s.macro_f1 for s in scores], "F1", said),
        ]
    kappas = [float(np.mean([s.kappa for s in scores])) for scores in found]
    ratio = round(kappas[0] / kappas[1], 3) if kappas[1] > 0 else None
    findings.append(
        Finding(RATIO, ratio, "ratio", said, "shown" if ratio is not None else NOT_EVALUATED)
    )
    findings += kept(released, real, test, len(names), seeds, recipe, how)
    return findings + [
        _mean(f"downstream recall of {name}", [s.recall[i] for s in found[0]], "share", said)
        for i, name in enumerate(names) if (test.labels == i).any()
    ]  # fmt: skip


def kept(
    released: Labelled,
    real: Labelled,
    others: Labelled,
    classes: int,
    seeds: int,
    recipe: Recipe,
    how: str,
) -> list[Finding]:
    """How often classifiers trained on `others` give released images, and real ones, the label that they have.

    Accuracy is the mean over labels, so that a release with other shares of labels than the people compares with them.
    """
    if len(np.unique(others.labels)) < 2:
        return [
            Finding(KEPT, None, "", "needs people of two labels who took no part", NOT_EVALUATED)
        ]
    models = [
        classifier.fit(others.images, others.labels, classes, seed=seed, recipe=recipe)
        for seed in range(seeds)
    ]
    said = f"small classifier on 32 px, {seeds} seeds, trained on {len(others.images)} people who did not take part; {how}"
    return [
        _mean(
            name,
            [_balanced(model.predict(some.images), some.labels) for model in models],
            "mean over labels",
            said,
        )
        for name, some in ((KEPT, released), (KEPT_REAL, real))
    ]


def _balanced(predicted: Labels, truth: Labels) -> float:
    """The share that is right, each label of the truth weighing the same."""
    return float(
        np.mean([(predicted[truth == label] == label).mean() for label in np.unique(truth)])
    )


def as_many(released: Labelled, real: Labelled, seed: int) -> Labelled:
    """Return as many real images of each label as were released, or all where there are fewer."""
    rng = np.random.default_rng(seed)
    rows = [
        rng.permutation(np.flatnonzero(real.labels == label))[: (released.labels == label).sum()]
        for label in np.unique(released.labels)
    ]
    chosen = np.concatenate(rows)
    return Labelled(real.images[chosen], real.labels[chosen])


def _trained(train: Labelled, test: Labelled, classes: int, seed: int, recipe: Recipe) -> Scores:
    model = classifier.fit(train.images, train.labels, classes, seed=seed, recipe=recipe)
    return classifier.scores(model.predict(test.images), test.labels, classes)


def _mean(name: str, values: Sequence[float], unit: str, how: str) -> Finding:
    """The mean over seeds with 1.96 standard errors."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return Finding(name, round(mean, 4), unit, how)
    reach = 1.96 * float(np.std(values, ddof=1)) / len(values) ** 0.5
    low, high = round(mean - reach, 4), round(mean + reach, 4)
    return Finding(
        name,
        round(mean, 4),
        f"{unit}; 95 % interval of the seeds {low} to {high}",
        how,
        interval=(low, high),
    )
