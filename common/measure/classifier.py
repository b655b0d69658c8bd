"""What labelled images are worth: a small classifier trained on them, tested on real images of other people.

In: training images (synthetic, or real for comparison) with labels, later the test images. Out: `Scores`: accuracy, Cohen's kappa
with quadratic weights, macro-F1 and the recall of each class.
Guaranteed: `fit` takes no test image; which snapshot is kept is chosen on a part of the training images alone, and images of one
group (`group_of`) are never on both sides of that cut; every training has the same number of steps whatever the number of
images; classes are drawn equally often; the same inputs and seed give the same numbers on one machine.
Not: a diagnosis; a network of this size on pictures of 32 px sees what is coarse.

Sources: methods/ksalsa.md 6; Cohen 1968 (weighted kappa).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from common.arrays import Images, Labels
from common.errors import ConfigurationError
from common.models.adam import Adam

GROUPS_OF_CHANNELS, DRAWS, AT_ONCE = 4, 1000, 256


@dataclass(frozen=True)
class Recipe:
    """How the network is trained; all are constants."""

    width: int = 8
    steps: int = 120
    batch: int = 24
    largest_px: int = 32
    rate: float = 2e-3
    snapshots: int = 4
    validation_share: float = 0.2
    shift_px: int = 2
    flip: bool = True


@dataclass(frozen=True)
class Scores:
    """Figures of one set of predictions; `recall` by class, NaN where the truth has none of it."""

    accuracy: float
    kappa: float
    macro_f1: float
    recall: tuple[float, ...]


@dataclass(frozen=True)
class Classifier:
    """Trained weights by name with what images are standardised by."""

    weights: Mapping[str, Tensor]
    mean: Tensor
    deviation: Tensor
    largest_px: int

    def predict(self, images: Images) -> Labels:
        """Return class indices [N] of uint8 images [N, S, S, C]."""
        with torch.no_grad():
            parts = [
                _logits(
                    self.weights,
                    (_tensor(images[i : i + AT_ONCE], self.largest_px) - self.mean)
                    / self.deviation,
                ).argmax(1)
                for i in range(0, len(images), AT_ONCE)
            ]
        return np.asarray(torch.cat(parts).numpy(), np.int64)


def fit(
    images: Images,
    labels: Labels,
    classes: int,
    *,
    seed: int,
    group_of: Labels | None = None,
    recipe: Recipe = Recipe(),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Classifier:
    """Return a classifier trained on uint8 images [N, S, S, C] with labels [N] of 0 to `classes` - 1.

    `group_of` int [N]: images of one number are one group. Raises ConfigurationError for no image or a label out of range.
    """
    if (
        len(images) == 0
        or len(images) != len(labels)
        or labels.min() < 0
        or labels.max() >= classes
    ):
        raise ConfigurationError(
            f"classifier: expected images with labels 0 to {classes - 1}, got {len(images)}"
        )
    rng = np.random.default_rng(seed)
    kept, held = _cut(
        labels,
        np.arange(len(labels)) if group_of is None else group_of,
        recipe.validation_share,
        rng,
    )
    x = _tensor(images, recipe.largest_px)
    mean, deviation = (
        x[kept].mean((0, 2, 3), keepdim=True),
        x[kept].std((0, 2, 3), keepdim=True) + 1e-3,
    )
    x, y = (x - mean) / deviation, torch.from_numpy(np.ascontiguousarray(labels))
    weights = _weights(x.shape[1], classes, recipe.width, torch.Generator().manual_seed(seed))
    adam = Adam(weights, recipe.rate, betas=(0.9, 0.99))
    best, least = weights, float("inf")
    for step in range(recipe.steps):
        rows = _drawn(labels[kept], recipe.batch, rng)
        batch = _moved(x[kept[rows]], recipe, rng)
        loss = F.cross_entropy(_logits(weights, batch), y[kept[rows]])
        gradients = torch.autograd.grad(loss, list(weights.values()))
        adam.rate = recipe.rate * min(1.0, (step + 1) / 20, 2 * (1 - step / recipe.steps))
        adam.step(dict(zip(weights, gradients, strict=True)))
        progress(step + 1, recipe.steps)
        if len(held) and (step + 1) % (recipe.steps // recipe.snapshots) == 0:
            value = _balanced_loss(weights, x[held], y[held])
            if value < least:
                best, least = {name: w.detach().clone() for name, w in weights.items()}, value
    return Classifier(
        {name: w.detach() for name, w in best.items()}, mean, deviation, recipe.largest_px
    )


def scores(predicted: Labels, truth: Labels, classes: int) -> Scores:
    """Return the figures of predicted against true class indices [N]."""
    table = np.zeros((classes, classes))
    np.add.at(table, (truth, predicted), 1)
    right, true, said = np.diag(table), table.sum(1), table.sum(0)
    f1 = 2 * right / np.maximum(true + said, 1)
    with np.errstate(invalid="ignore"):
        recall = right / true
    return Scores(
        float(right.sum() / len(truth)),
        kappa(table),
        float(f1[(true + said) > 0].mean()),
        tuple(recall.tolist()),
    )


def kappa(table: NDArray[np.float64]) -> float:
    """Return Cohen's kappa with quadratic weights of a table [truth, predicted] of counts; 0 where chance cannot err."""
    places = np.arange(len(table))
    weights = (places[:, None] - places[None]) ** 2
    expected = np.outer(table.sum(1), table.sum(0)) / max(table.sum(), 1)
    chance = float((weights * expected).sum())
    return 1 - float((weights * table).sum()) / chance if chance > 0 else 0.0


# ---- the network: three strided convolutions, group norm, mean and maximum over the picture, one linear layer ------------
def _weights(channels: int, classes: int, width: int, random: torch.Generator) -> dict[str, Tensor]:
    """Fresh weights that require a gradient."""
    found: dict[str, Tensor] = {}
    before = channels
    for i, size in enumerate((width, 2 * width, 4 * width)):
        found[f"conv{i}"] = (
            torch.randn(size, before, 3, 3, generator=random) * (2 / (9 * before)) ** 0.5
        )
        found[f"scale{i}"], found[f"shift{i}"] = torch.ones(size), torch.zeros(size)
        before = size
    found["head"] = torch.randn(classes, 2 * before, generator=random) * 0.01
    found["bias"] = torch.zeros(classes)
    return {name: w.requires_grad_() for name, w in found.items()}


def _logits(weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """[N, classes] of standardised images [N, C, S, S]."""
    for i in range(3):
        x = F.conv2d(x, weights[f"conv{i}"], stride=2, padding=1)
        x = F.relu(F.group_norm(x, GROUPS_OF_CHANNELS, weights[f"scale{i}"], weights[f"shift{i}"]))
    pooled = torch.cat([x.mean((2, 3)), x.amax((2, 3))], dim=1)
    return F.linear(pooled, weights["head"], weights["bias"])


def _cut(
    labels: Labels, group_of: Labels, share: float, rng: np.random.Generator
) -> tuple[Labels, Labels]:
    """Rows to train on and rows to choose by: `share` of each class's groups, none of a class with fewer than four."""
    held = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        groups = rng.permutation(np.unique(group_of[labels == label]))
        if len(groups) >= 4:
            held |= np.isin(group_of, groups[: max(1, round(share * len(groups)))])
    if len(np.unique(labels[~held])) < len(np.unique(labels)):
        held[:] = (
            False  # groups of several labels: rather no choice than a class that nobody trains on
        )
    return np.flatnonzero(~held), np.flatnonzero(held)


def _drawn(labels: Labels, batch: int, rng: np.random.Generator) -> Labels:
    """Rows of a batch: a class at random, then one of its images."""
    by_class = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    return np.array([rng.choice(by_class[i]) for i in rng.integers(len(by_class), size=batch)])


def _moved(x: Tensor, recipe: Recipe, rng: np.random.Generator) -> Tensor:
    """The batch shifted by one random offset, mirrored at random, at a random contrast."""
    dy, dx = rng.integers(-recipe.shift_px, recipe.shift_px + 1, size=2).tolist()
    x = torch.roll(x, (dy, dx), (2, 3))
    if recipe.flip and rng.random() < 0.5:
        x = x.flip(3)
    return x * float(rng.uniform(0.9, 1.1)) + float(rng.uniform(-0.1, 0.1))


def _balanced_loss(weights: Mapping[str, Tensor], x: Tensor, y: Tensor) -> float:
    """Cross entropy in which every class weighs the same."""
    with torch.no_grad():
        losses = F.cross_entropy(_logits(weights, x), y, reduction="none")
    return float(
        torch.stack([losses[y == label].mean() for label in sorted(set(y.tolist()))]).mean()
    )


def _tensor(images: Images, largest_px: int) -> Tensor:
    """[N, C, S, S] in [0, 1], averaged down by the whole factor that brings S to `largest_px` or just above."""
    x = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255
    factor = max(1, x.shape[2] // largest_px)
    return F.avg_pool2d(x, factor) if factor > 1 else x
