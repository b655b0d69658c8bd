"""Measures released labelled images by a classifier trained on them and tested on real people.

In: released images with labels; public people who took part, and others who did not.
Out: findings for the report.
Guarantees: trainings on the release, on as many real images and on all real images share recipe,
seeds and test people; no test person trains or chooses anything.
Not covered: a tuned classifier, or one for images larger than 32 px. Images of one group are not
known as such, so a snapshot may be chosen by images that resemble its training images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common.arrays import Images, Labels
from common.measure import classifier
from common.measure.classifier import Recipe
from common.measure.scores import Scores, score_predictions
from server.evaluate.findings import DOWNSTREAM, NOT_EVALUATED, Finding, missing

SEEDS = 5
LEAST_IMAGES = 6
LEAST_TESTED = 10
KAPPA = "downstream kappa"
MACRO_F1 = "downstream macro-F1"
RATIO = "downstream kappa, release over as many real images"
KEPT = (
    "downstream pathology kept: "
    "released images that a classifier of real images labels as they are labelled"
)
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
    """Return the findings; `real` are people who took part, `test` people who did not.

    `names` are the labels, `how` says who the people are. The findings are "not evaluated" with
    fewer than `LEAST_IMAGES` released or `LEAST_TESTED` tested images, or with one label alone.
    """
    few = len(released.images) < LEAST_IMAGES or len(test.images) < LEAST_TESTED
    if few or len(np.unique(released.labels)) < 2:
        why = f"needs {LEAST_IMAGES} released images of two labels and {LEAST_TESTED} tested people"
        return [missing(name, why) for name in (DOWNSTREAM, KAPPA, KEPT)]

    # train on the release, on as many real images, on all real images
    by_set: list[list[Scores]] = [[], [], []]
    for seed in range(seeds):
        trainings = (released, draw_as_many(released, real, seed), real)
        for scores, training in zip(by_set, trainings, strict=True):
            scores.append(_score(training, test, len(names), seed, recipe))

    # say what each is worth, and what the release is worth beside as many real images
    said = (
        f"small classifier on 32 px, {seeds} seeds, "
        f"tested on {len(test.images)} people who did not take part; {how}"
    )
    findings: list[Finding] = []
    for end, scores in zip(ENDS, by_set, strict=True):
        findings += _score_findings(scores, end, said)
    findings.append(_ratio_finding(by_set[0], by_set[1], said))

    # measure how much of the pathology single images keep, and each label's recall
    findings += measure_kept(released, real, test, len(names), seeds, recipe, how)
    for i, name in enumerate(names):
        if (test.labels == i).any():
            recall = [scores.recall[i] for scores in by_set[0]]
            findings.append(_mean(f"downstream recall of {name}", recall, "share", said))
    return findings


def _score_findings(scores: Sequence[Scores], end: str, said: str) -> list[Finding]:
    """Mean kappa, accuracy and macro-F1 over seeds."""
    kappas = [one.kappa for one in scores]
    accuracies = [one.accuracy for one in scores]
    f1 = [one.macro_f1 for one in scores]
    return [
        _mean(KAPPA + end, kappas, "Cohen's kappa, quadratic weights", said),
        _mean(DOWNSTREAM + end, accuracies, "share", said),
        _mean(MACRO_F1 + end, f1, "F1", said),
    ]


def _ratio_finding(released: Sequence[Scores], real: Sequence[Scores], said: str) -> Finding:
    """Mean kappa of the release over that of real images; not evaluated if the latter is <= 0."""
    ours = float(np.mean([one.kappa for one in released]))
    theirs = float(np.mean([one.kappa for one in real]))
    if theirs > 0:
        return Finding(RATIO, round(ours / theirs, 3), "ratio", said)
    return Finding(RATIO, None, "ratio", said, NOT_EVALUATED)


def measure_kept(
    released: Labelled,
    real: Labelled,
    others: Labelled,
    classes: int,
    seeds: int,
    recipe: Recipe,
    how: str,
) -> list[Finding]:
    """Return how often classifiers trained on `others` give images the label that they have.

    For released images this says how much of the pathology single images keep; real images are
    measured beside them. The accuracy is the mean over labels, so it does not depend on how many
    images a label has.
    """
    if len(np.unique(others.labels)) < 2:
        return [missing(KEPT, "needs people of two labels who took no part")]

    # train on people who took no part
    models = [
        classifier.fit(others.images, others.labels, classes, seed=seed, recipe=recipe)
        for seed in range(seeds)
    ]
    said = (
        f"small classifier on 32 px, {seeds} seeds, "
        f"trained on {len(others.images)} people who did not take part; {how}"
    )

    # test on released images, and on real images of those who took part
    findings = []
    for name, some in ((KEPT, released), (KEPT_REAL, real)):
        found = [_balanced_accuracy(model.predict(some.images), some.labels) for model in models]
        findings.append(_mean(name, found, "mean over labels", said))
    return findings


def _balanced_accuracy(predicted: Labels, truth: Labels) -> float:
    """The share that is right, each label of the truth weighing the same."""
    shares = [(predicted[truth == label] == label).mean() for label in np.unique(truth)]
    return float(np.mean(shares))


def draw_as_many(released: Labelled, real: Labelled, seed: int) -> Labelled:
    """Return as many real images of each label as were released, or all where there are fewer."""
    rng = np.random.default_rng(seed)
    rows = []
    for label in np.unique(released.labels):
        count = (released.labels == label).sum()
        rows.append(rng.permutation(np.flatnonzero(real.labels == label))[:count])
    chosen = np.concatenate(rows)
    return Labelled(real.images[chosen], real.labels[chosen])


def _score(train: Labelled, test: Labelled, classes: int, seed: int, recipe: Recipe) -> Scores:
    """The scores on `test` of a classifier trained on `train`."""
    model = classifier.fit(train.images, train.labels, classes, seed=seed, recipe=recipe)
    return score_predictions(model.predict(test.images), test.labels, classes)


def _mean(name: str, values: Sequence[float], unit: str, how: str) -> Finding:
    """The mean over seeds with 1.96 standard errors."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return Finding(name, round(mean, 4), unit, how)
    reach = 1.96 * float(np.std(values, ddof=1)) / len(values) ** 0.5
    low = round(mean - reach, 4)
    high = round(mean + reach, 4)
    unit = f"{unit}; 95 % interval of the seeds {low} to {high}"
    return Finding(name, round(mean, 4), unit, how, interval=(low, high))
