"""A small classifier of images, to measure the utility of labelled images.

In: training images (synthetic, or real for comparison) with labels.
Out: a `Classifier`.
Guarantees:
  - the snapshot is chosen on a part of the training images, which shares no group (`group_of`) with
    the other part;
  - every training has the same number of steps, and classes are drawn equally often;
  - the same inputs and seed give the same numbers on one machine.
Not covered: a diagnosis. A network of this size on images of 32 px sees coarse structure only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from common.arrays import Floats, Images, Labels
from common.errors import ConfigurationError
from common.models.adam import Adam
from common.models.images import to_device

CPU = torch.device("cpu")
GROUPS_OF_CHANNELS = 4
AT_ONCE = 256
LEAST_GROUPS = 4  # a class of fewer gives none to the choice of a snapshot
WARM_UP_STEPS = 20


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
class Classifier:
    """Trained weights by name, and the mean and deviation that standardise images."""

    weights: Mapping[str, Tensor]
    mean: Tensor
    deviation: Tensor
    largest_px: int

    def predict(self, images: Images) -> Labels:
        """Return class indices [N] of uint8 images [N, S, S, C]."""
        return np.asarray(self.scores(images).argmax(1), np.int64)

    def scores(self, images: Images) -> Floats:
        """Return the logarithm of each class's probability, [N, classes], of uint8 images."""
        parts = []
        with torch.no_grad():
            for start in range(0, len(images), AT_ONCE):
                some = images[start : start + AT_ONCE]
                x = _to_tensor(some, self.largest_px, self.mean.device)
                x = (x - self.mean) / self.deviation
                parts.append(F.log_softmax(_logits(self.weights, x), dim=1))
        return np.asarray(torch.cat(parts).double().cpu().numpy())


def fit(
    images: Images,
    labels: Labels,
    classes: int,
    *,
    seed: int,
    group_of: Labels | None = None,
    recipe: Recipe = Recipe(),
    device: torch.device = CPU,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Classifier:
    """Return a classifier trained on uint8 images [N, S, S, C] with labels [N] below `classes`.

    Images with the same number in `group_of` int [N] are one group. Training and prediction run on
    `device`; its starting weights are the same on each.
    Raises ConfigurationError for no image or a label out of range.
    """
    # the part to train on, and the part that chooses a snapshot
    _check_labels(images, labels, classes)
    rng = np.random.default_rng(seed)
    groups = group_of
    if groups is None:
        groups = np.arange(len(labels))
    kept, held = _split(labels, groups, recipe.validation_share, rng)

    # images, standardised by the first part alone
    x = _to_tensor(images, recipe.largest_px, device)
    mean = x[kept].mean((0, 2, 3), keepdim=True)
    deviation = x[kept].std((0, 2, 3), keepdim=True) + 1e-3
    x = (x - mean) / deviation
    y = torch.from_numpy(np.ascontiguousarray(labels)).to(device)

    random = torch.Generator().manual_seed(seed)
    weights = _start_weights(x.shape[1], classes, recipe.width, random, device)
    adam = Adam(weights, recipe.rate, betas=(0.9, 0.99))
    best = weights
    least = float("inf")
    for step in range(recipe.steps):
        # one step of Adam on a batch of equally likely classes
        rows = _draw_rows(labels[kept], recipe.batch, rng)
        batch = _augment(x[kept[rows]], recipe, rng)
        loss = F.cross_entropy(_logits(weights, batch), y[kept[rows]])
        gradients = torch.autograd.grad(loss, list(weights.values()))
        adam.rate = recipe.rate * _rate_share(step, recipe.steps)
        adam.step(dict(zip(weights, gradients, strict=True)))
        progress(step + 1, recipe.steps)

        # now and then a snapshot, if it is the best on the other part
        if len(held) and (step + 1) % (recipe.steps // recipe.snapshots) == 0:
            value = _balanced_loss(weights, x[held], y[held])
            if value < least:
                least = value
                best = {name: w.detach().clone() for name, w in weights.items()}
    found = {name: w.detach() for name, w in best.items()}
    return Classifier(found, mean, deviation, recipe.largest_px)


def _check_labels(images: Images, labels: Labels, classes: int) -> None:
    """Raise ConfigurationError for no image, or for a label out of range."""
    fits = len(images) > 0 and len(images) == len(labels)
    if not fits or labels.min() < 0 or labels.max() >= classes:
        raise ConfigurationError(
            f"classifier: expected images with labels 0 to {classes - 1}, got {len(images)}"
        )


# ---- the network: three strided convolutions, group norm, mean and maximum, one linear layer


def _start_weights(
    channels: int, classes: int, width: int, random: torch.Generator, device: torch.device
) -> dict[str, Tensor]:
    """Fresh weights that require a gradient, drawn where `random` is and moved to the device."""
    found: dict[str, Tensor] = {}
    before = channels
    for i, size in enumerate((width, 2 * width, 4 * width)):
        normal = torch.randn(size, before, 3, 3, generator=random)
        found[f"conv{i}"] = normal * (2 / (9 * before)) ** 0.5
        found[f"scale{i}"] = torch.ones(size)
        found[f"shift{i}"] = torch.zeros(size)
        before = size
    found["head"] = torch.randn(classes, 2 * before, generator=random) * 0.01
    found["bias"] = torch.zeros(classes)
    return {name: w.to(device).requires_grad_() for name, w in found.items()}


def _logits(weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """[N, classes] of standardised images [N, C, S, S]."""
    for i in range(3):
        x = F.conv2d(x, weights[f"conv{i}"], stride=2, padding=1)
        x = F.relu(F.group_norm(x, GROUPS_OF_CHANNELS, weights[f"scale{i}"], weights[f"shift{i}"]))
    pooled = torch.cat([x.mean((2, 3)), x.amax((2, 3))], dim=1)
    return F.linear(pooled, weights["head"], weights["bias"])


# ---- data


def _split(
    labels: Labels, group_of: Labels, share: float, rng: np.random.Generator
) -> tuple[Labels, Labels]:
    """Rows to train on and rows to choose by: `share` of each class's groups.

    A class of fewer than `LEAST_GROUPS` groups gives none.
    """
    held = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        groups = rng.permutation(np.unique(group_of[labels == label]))
        if len(groups) >= LEAST_GROUPS:
            held |= np.isin(group_of, groups[: max(1, round(share * len(groups)))])
    if len(np.unique(labels[~held])) < len(np.unique(labels)):
        # A group can have several labels: then training on every class comes before a choice.
        held[:] = False
    return np.flatnonzero(~held), np.flatnonzero(held)


def _draw_rows(labels: Labels, batch: int, rng: np.random.Generator) -> Labels:
    """Rows of a batch: a class at random, then one of its images."""
    by_class = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    return np.array([rng.choice(by_class[i]) for i in rng.integers(len(by_class), size=batch)])


def _augment(x: Tensor, recipe: Recipe, rng: np.random.Generator) -> Tensor:
    """The batch shifted by one random offset, mirrored at random, at a random contrast."""
    dy, dx = rng.integers(-recipe.shift_px, recipe.shift_px + 1, size=2).tolist()
    x = torch.roll(x, (dy, dx), (2, 3))
    if recipe.flip and rng.random() < 0.5:
        x = x.flip(3)
    return x * float(rng.uniform(0.9, 1.1)) + float(rng.uniform(-0.1, 0.1))


def _rate_share(step: int, steps: int) -> float:
    """The share of the learning rate: a linear warm-up, and a linear decay in the second half."""
    return min(1.0, (step + 1) / WARM_UP_STEPS, 2 * (1 - step / steps))


def _balanced_loss(weights: Mapping[str, Tensor], x: Tensor, y: Tensor) -> float:
    """Cross entropy in which every class weighs the same."""
    with torch.no_grad():
        losses = F.cross_entropy(_logits(weights, x), y, reduction="none")
    by_class = [losses[y == label].mean() for label in torch.unique(y)]
    return float(torch.stack(by_class).mean())


def _to_tensor(images: Images, largest_px: int, device: torch.device) -> Tensor:
    """[N, C, S, S] in [0, 1], averaged down by a whole factor to `largest_px` or just above.

    Images at full size are floats for a batch at a time.
    """
    parts: list[Tensor] = []
    factor = max(1, images.shape[1] // largest_px)
    for start in range(0, len(images), AT_ONCE):
        x = to_device(images[start : start + AT_ONCE], device).float() / 255
        parts.append(F.avg_pool2d(x, factor) if factor > 1 else x)
    return torch.cat(parts)
