"""A segmentation network trained on pairs of image and mask, to measure their utility.

In: training pairs (synthetic, or real for comparison), a recipe, a seed.
Out: a `Segmenter`.
Guarantees:
  - dropout, learning rate and epoch are chosen on a part of the training pairs;
  - images are standardised by the mean and deviation of the other part;
  - the same inputs and seed give the same numbers on one machine.
Source: Kossen et al. 2022; docs/methods/dp-wgan.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.arrays import Flags, Integers, Pairs
from common.errors import ConfigurationError
from common.measure.unet import MULTIPLE_PX, UNet, dice_loss
from common.models.adam import Adam

Progress = Callable[[int, int], None]
Groups: TypeAlias = Sequence[int] | NDArray[np.int64]
CPU = torch.device("cpu")
PREDICTED_AT_ONCE = 128
STARTS = 4  # trainings of one configuration, at most
SEED_STRIDE = 1_000_003  # between their seeds
DEAD_MARGIN = 0.01  # of Dice: a network that is not better than a full mask by this has failed


@dataclass(frozen=True)
class Choice:
    """One configuration of the grid."""

    dropout: float
    learning_rate: float


GRID = (Choice(0.0, 1e-4), Choice(0.0, 8e-5), Choice(0.1, 1e-4), Choice(0.1, 8e-5))


@dataclass(frozen=True)
class Recipe:
    """How the network is trained; all are constants.

    `augment` applies one of the eight flips and quarter turns to each batch.
    """

    width: int = 32
    epochs: int = 15
    batch_size: int = 64
    grid: tuple[Choice, ...] = GRID
    validation_share: float = 0.2
    augment: bool = False


# for a CPU and some hundred pairs
SMALL = Recipe(width=8, epochs=12, batch_size=8, grid=(Choice(0.0, 1e-3),))


@dataclass(frozen=True)
class Segmenter:
    """A trained network, the mean and deviation of its images, and what was chosen.

    `validation_dsc` is measured on the part of the training pairs that chose.
    """

    network: UNet
    mean: float
    deviation: float
    choice: Choice
    epoch: int
    validation_dsc: float

    def masks(self, images: Pairs) -> Flags:
        """Return masks [N, H, W] of uint8 images [N, H, W]."""
        device = next(self.network.parameters()).device
        parts = []
        with torch.no_grad():
            for start in range(0, len(images), PREDICTED_AT_ONCE):
                some = images[start : start + PREDICTED_AT_ONCE]
                x = _standardise(some, self.mean, self.deviation, device)
                parts.append((self.network(x) > 0)[:, 0].cpu().numpy())
        found: Flags = np.concatenate(parts)
        return found


def fit(
    pairs: Pairs,
    recipe: Recipe,
    seed: int,
    *,
    group_of: Groups | None = None,
    device: torch.device = CPU,
    progress: Progress = lambda done, total: None,
) -> Segmenter:
    """Return the network of the configuration and epoch with the best validation Dice.

    With Dice loss a training sometimes fails: all masks are empty or full. It is then repeated from
    another seed, at half the learning rate. `progress(done, total)` counts epochs over the whole
    grid.
    """
    # the part to train on, and the part that chooses
    groups = np.arange(len(pairs))
    if group_of is not None:
        groups = np.asarray(group_of)
    check_pairs(pairs, groups, "training pairs")
    kept, held = _split(groups, recipe.validation_share, seed)
    total = len(recipe.grid) * recipe.epochs

    # the Dice of a mask that is foreground throughout: a training no better than that has failed
    full = np.ones(pairs[held].shape[:3], np.bool_)
    trivial = dice_of_pairs(full, pairs[held]) + DEAD_MARGIN

    # train every configuration
    best: Segmenter | None = None
    for i, choice in enumerate(recipe.grid):

        def count(epoch: int, before: int = i * recipe.epochs) -> None:
            progress(before + epoch, total)

        for start in range(STARTS):
            slower = replace(choice, learning_rate=choice.learning_rate / 2**start)
            found = _train(
                pairs[kept], pairs[held], recipe, slower, seed + start * SEED_STRIDE, device, count
            )
            if found.validation_dsc > trivial:
                break
        if best is None or found.validation_dsc > best.validation_dsc:
            best = found
    if best is None:
        raise ConfigurationError("recipe: the grid is empty")
    return best


def check_pairs(pairs: Pairs, groups: Groups, what: str) -> None:
    """Raise ConfigurationError for pairs that cannot be trained or tested on."""
    square = pairs.ndim == 4 and pairs.shape[1] == pairs.shape[2] and pairs.shape[3] == 2
    if pairs.dtype != np.uint8 or not square or not len(pairs) or pairs.shape[1] % MULTIPLE_PX:
        raise ConfigurationError(
            f"{what}: expected uint8 [N, S, S, 2] with S divisible by {MULTIPLE_PX}, "
            f"got {pairs.dtype} {pairs.shape}"
        )
    if len(groups) != len(pairs):
        raise ConfigurationError(
            f"{what}: {len(pairs)} pairs, but patients are named for {len(groups)}"
        )


def dice_of_pairs(predicted: Flags, pairs: Pairs) -> float:
    """Return Dice of all images together; 1 if there is no foreground at all."""
    true = pairs[..., 1] > 127
    total = int(predicted.sum()) + int(true.sum())
    if not total:
        return 1.0
    return 2 * int((predicted & true).sum()) / total


def _train(
    train: Pairs,
    validation: Pairs,
    recipe: Recipe,
    choice: Choice,
    seed: int,
    device: torch.device,
    count: Callable[[int], None],
) -> Segmenter:
    """Train one configuration for all epochs; return the network of the best one."""
    # standardised images, and masks
    mean = float(train[..., 0].mean())
    deviation = max(float(train[..., 0].std()), 1.0)
    images = _standardise(train[..., 0], mean, deviation, device)
    masks = (_to_pixels(train[..., 1], device) > 127).float()
    # the CPU's generator draws in any case, the device's the dropout
    with torch.random.fork_rng([] if device.type == "cpu" else [device]):
        # initial weights, order and dropout draw from torch's own generator
        torch.manual_seed(seed)
        network = UNet(recipe.width, choice.dropout).to(device)
        network = network.to(memory_format=torch.channels_last)
        parameters = dict(network.named_parameters())
        adam = Adam(parameters, choice.learning_rate, betas=(0.9, 0.999))
        best_dsc = -1.0
        best_epoch = 0
        best_weights = _copy_weights(network)
        for epoch in range(1, recipe.epochs + 1):
            _train_epoch(network, adam, images, masks, recipe)

            # the validation part decides which epoch stays
            network.eval()
            now = Segmenter(network, mean, deviation, choice, epoch, 0.0)
            dsc = dice_of_pairs(now.masks(validation[..., 0]), validation)
            if dsc > best_dsc:
                best_dsc = dsc
                best_epoch = epoch
                best_weights = _copy_weights(network)
            count(epoch)
        network.load_state_dict(best_weights)
    return Segmenter(network, mean, deviation, choice, best_epoch, best_dsc)


def _train_epoch(network: UNet, adam: Adam, images: Tensor, masks: Tensor, recipe: Recipe) -> None:
    """Train on every pair once, in a random order."""
    network.train()
    parameters = dict(network.named_parameters())
    order: Tensor = torch.randperm(len(images))
    for rows in torch.chunk(order, -(-len(images) // recipe.batch_size)):
        x = images[rows]
        y = masks[rows]
        if recipe.augment:
            x, y = _turn(x, y)
        loss = dice_loss(network(x.contiguous(memory_format=torch.channels_last)), y)
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        adam.step(dict(zip(parameters, gradients, strict=True)))


def _copy_weights(network: UNet) -> dict[str, Tensor]:
    """The network's weights by name, which later steps do not change."""
    return {name: p.detach().clone() for name, p in network.named_parameters()}


def _split(groups: Integers, share: float, seed: int) -> tuple[Integers, Integers]:
    """Positions of the training and of the validation part.

    No group is in both, and both have at least one.
    """
    names = np.random.default_rng(seed).permutation(np.unique(groups))
    if len(names) < 2:
        raise ConfigurationError(
            "training pairs: expected at least two patients (or pairs), one for validation"
        )
    count = min(max(1, round(share * len(names))), len(names) - 1)
    held = np.isin(groups, names[:count])
    return np.flatnonzero(~held), np.flatnonzero(held)


def _standardise(images: Pairs, mean: float, deviation: float, device: torch.device) -> Tensor:
    """float32 [N, 1, H, W], channels last, on the device, of uint8 [N, H, W]."""
    x = (_to_pixels(images, device).float() - mean) / deviation
    return x.contiguous(memory_format=torch.channels_last)


def _to_pixels(images: Pairs, device: torch.device) -> Tensor:
    """uint8 [N, 1, H, W] on the device, of uint8 [N, H, W]."""
    return torch.from_numpy(np.ascontiguousarray(images)).to(device)[:, None]


def _turn(images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Images and masks under one random symmetry of the square."""
    turns = int(torch.randint(4, ()))
    flip = bool(torch.randint(2, ()))
    x = torch.rot90(images, turns, (2, 3))
    y = torch.rot90(masks, turns, (2, 3))
    if flip:
        return x.flip(3), y.flip(3)
    return x, y
