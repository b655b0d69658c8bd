"""What image + mask pairs are worth: a segmentation network trained on them, tested on real patients.

In: training pairs (synthetic, or real for comparison), a recipe, a seed; later the real test patients. Out: a `Utility`: overlap
and distances as means over patients, with a 95 % bootstrap interval over patients.
Guaranteed: `fit` chooses dropout, learning rate and epoch on a part of the training pairs, and no test patient is among its
arguments; the test patients are opened once, afterwards, by `measure`; images are standardised with the training pairs' mean and
deviation; the same inputs and seed give the same numbers on one machine. Not: privacy (the caller says whose pairs these are).

Dice is of all images of a patient together, as of a volume; distances are of each image, averaged over the patient's images.
Sources: methods/dp-training.md 9; Kossen et al. 2022; common/measure/segmentation.py for the measures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.arrays import Pairs
from common.errors import ConfigurationError
from common.measure.segmentation import agreement
from common.measure.unet import MULTIPLE_PX, UNet, dice_loss
from common.models.adam import Adam

Progress = Callable[[int, int], None]
BOOTSTRAP_DRAWS, INTERVAL = 2000, (2.5, 97.5)
PREDICTED_AT_ONCE = 128
STARTS, SEED_STRIDE, DEAD_MARGIN = 4, 1_000_003, 0.01


@dataclass(frozen=True)
class Choice:
    """One configuration of the grid."""

    dropout: float
    learning_rate: float


GRID = tuple(Choice(dropout, rate) for dropout in (0.0, 0.1) for rate in (1e-4, 8e-5))


@dataclass(frozen=True)
class Recipe:
    """How the network is trained; all are constants. `augment`: one of the eight flips and quarter turns for each batch."""

    width: int = 32
    epochs: int = 15
    batch_size: int = 64
    grid: tuple[Choice, ...] = GRID
    validation_share: float = 0.2
    augment: bool = False


SMALL = Recipe(
    width=8, epochs=12, batch_size=8, grid=(Choice(0.0, 1e-3),)
)  # for a processor and some hundred pairs


@dataclass(frozen=True)
class Segmenter:
    """A trained network with what it was standardised by and what was chosen; `validation_dsc` is on training pairs."""

    network: UNet
    mean: float
    deviation: float
    choice: Choice
    epoch: int
    validation_dsc: float

    def masks(self, images: Pairs) -> NDArray[np.bool_]:
        """Return masks [N, H, W] of uint8 images [N, H, W]."""
        device = next(self.network.parameters()).device
        parts = []
        with torch.no_grad():
            for start in range(0, len(images), PREDICTED_AT_ONCE):
                x = _standardised(
                    images[start : start + PREDICTED_AT_ONCE], self.mean, self.deviation
                )
                parts.append((self.network(x.to(device)) > 0)[:, 0].cpu().numpy())
        found: NDArray[np.bool_] = np.concatenate(parts)
        return found


@dataclass(frozen=True)
class Utility:
    """Means over patients: `dsc` in [0, 1] with its 95 % interval, distances in mm. `penalised` counts the images in which one
    mask was empty and the other was not (their distances are the diagonal).
    """

    dsc: float
    dsc_interval: tuple[float, float]
    bahd_mm: float
    hd95_mm: float
    images: int
    penalised: int
    dsc_by_patient: tuple[float, ...]
    choice: Choice
    epoch: int
    validation_dsc: float


@dataclass(frozen=True)
class Ratio:
    """Trained on synthetic over trained on real, the same test patients, with a 95 % interval of paired resamples."""

    value: float
    interval: tuple[float, float]


def utility(
    train: Pairs,
    test: Pairs,
    patient_of: Sequence[int] | NDArray[np.int64],
    *,
    recipe: Recipe | None = None,
    seed: int = 0,
    group_of: Sequence[int] | NDArray[np.int64] | None = None,
    spacing_mm: float = 1.0,
    device: str = "cpu",
    progress: Progress = lambda done, total: None,
) -> Utility:
    """Return what `train` is worth on `test`, both uint8 [N, S, S, 2] (image, mask 0 or 255); `patient_of` [len(test)].

    `fit` first, `measure` last. `group_of` [len(train)]: who of the training pairs belong together (real patients), so that
    validation is by patient. Raises ConfigurationError for unusable pairs.
    """
    _checked(test, patient_of, "test pairs")
    segmenter = fit(
        train, recipe or Recipe(), seed, group_of=group_of, device=device, progress=progress
    )
    return measure(segmenter, test, patient_of, spacing_mm=spacing_mm, seed=seed)


def fit(
    pairs: Pairs,
    recipe: Recipe,
    seed: int,
    *,
    group_of: Sequence[int] | NDArray[np.int64] | None = None,
    device: str = "cpu",
    progress: Progress = lambda done, total: None,
) -> Segmenter:
    """Return the network of the configuration and epoch with the best Dice on the validation part of `pairs`.

    A start that died (masks empty or vessel throughout, as Dice loss sometimes ends) is made again from another seed.
    `progress(done, total)` counts epochs over the whole grid.
    """
    groups = np.arange(len(pairs)) if group_of is None else np.asarray(group_of)
    _checked(pairs, groups, "training pairs")
    kept, held = _split(groups, recipe.validation_share, seed)
    total = len(recipe.grid) * recipe.epochs
    trivial = (
        _dsc(np.ones(pairs[held].shape[:3], np.bool_), pairs[held]) + DEAD_MARGIN
    )  # of a mask that is vessel throughout
    best: Segmenter | None = None
    for i, choice in enumerate(recipe.grid):

        def count(epoch: int, before: int = i * recipe.epochs) -> None:
            progress(before + epoch, total)

        for start in range(STARTS):
            found = _trained(
                pairs[kept], pairs[held], recipe, choice, seed + start * SEED_STRIDE, device, count
            )
            if found.validation_dsc > trivial:
                break
        if best is None or found.validation_dsc > best.validation_dsc:
            best = found
    if best is None:
        raise ConfigurationError("recipe: the grid is empty")
    return best


def _trained(
    train: Pairs,
    validation: Pairs,
    recipe: Recipe,
    choice: Choice,
    seed: int,
    device: str,
    count: Callable[[int], None],
) -> Segmenter:
    """One configuration: all epochs, the weights of the best one."""
    mean, deviation = float(train[..., 0].mean()), max(float(train[..., 0].std()), 1.0)
    images = _standardised(train[..., 0], mean, deviation).to(device)
    masks = torch.from_numpy((train[..., 1] > 127).astype(np.float32))[:, None].to(device)
    with torch.random.fork_rng([] if device == "cpu" else [device]):
        torch.manual_seed(
            seed
        )  # initial weights, order and dropout draw from torch's own generator
        network = (
            UNet(recipe.width, choice.dropout).to(device).to(memory_format=torch.channels_last)
        )
        parameters = dict(network.named_parameters())
        adam = Adam(parameters, choice.learning_rate, betas=(0.9, 0.999))
        best_dsc, best_epoch, best_weights = (
            -1.0,
            0,
            {name: p.detach().clone() for name, p in parameters.items()},
        )
        for epoch in range(1, recipe.epochs + 1):
            # one pass over the training part
            network.train()
            order: Tensor = torch.randperm(len(train))
            for rows in torch.chunk(order, -(-len(train) // recipe.batch_size)):
                x, y = (
                    _turned(images[rows], masks[rows])
                    if recipe.augment
                    else (images[rows], masks[rows])
                )
                loss = dice_loss(network(x.contiguous(memory_format=torch.channels_last)), y)
                adam.step(
                    dict(
                        zip(
                            parameters,
                            torch.autograd.grad(loss, list(parameters.values())),
                            strict=True,
                        )
                    )
                )
            # the validation part decides which epoch stays
            network.eval()
            dsc = _dsc(
                Segmenter(network, mean, deviation, choice, epoch, 0.0).masks(validation[..., 0]),
                validation,
            )
            if dsc > best_dsc:
                best_dsc, best_epoch = dsc, epoch
                best_weights = {name: p.detach().clone() for name, p in parameters.items()}
            count(epoch)
        network.load_state_dict(best_weights)
    return Segmenter(network, mean, deviation, choice, best_epoch, best_dsc)


def measure(
    segmenter: Segmenter,
    test: Pairs,
    patient_of: Sequence[int] | NDArray[np.int64],
    *,
    spacing_mm: float = 1.0,
    seed: int = 0,
) -> Utility:
    """Return the measures of a finished network on the test patients: the only place that opens them."""
    patients = np.asarray(patient_of)
    _checked(test, patients, "test pairs")
    predicted, true = segmenter.masks(test[..., 0]), test[..., 1] > 127
    each = [agreement(p, g, spacing_mm) for p, g in zip(predicted, true, strict=True)]
    rows = [np.flatnonzero(patients == name) for name in np.unique(patients)]
    overlaps = np.array([_dsc(predicted[r], test[r]) for r in rows])
    bahd = [np.mean([each[i].balanced_hausdorff_mm for i in r]) for r in rows]
    hd95 = [np.mean([each[i].hausdorff95_mm for i in r]) for r in rows]
    return Utility(
        dsc=float(overlaps.mean()),
        dsc_interval=_interval(overlaps[_resamples(len(rows), seed)].mean(axis=1)),
        bahd_mm=float(np.mean(bahd)),
        hd95_mm=float(np.mean(hd95)),
        images=len(test),
        penalised=sum(a.penalised for a in each),
        dsc_by_patient=tuple(map(float, overlaps)),
        choice=segmenter.choice,
        epoch=segmenter.epoch,
        validation_dsc=segmenter.validation_dsc,
    )


def ratio(synthetic: Utility, real: Utility, seed: int = 0) -> Ratio:
    """Return TSTR/TRTR: Dice of the network trained on synthetic pairs over that of the one trained on real pairs.

    The interval resamples the same patients for both. Raises ValueError if they were tested on different numbers of patients.
    """
    above, below = np.array(synthetic.dsc_by_patient), np.array(real.dsc_by_patient)
    if len(above) != len(below):
        raise ValueError(
            f"ratio: tested on {len(above)} and {len(below)} patients, expected the same ones"
        )
    rows = _resamples(len(above), seed)
    drawn = above[rows].mean(axis=1) / np.maximum(below[rows].mean(axis=1), 1e-9)
    return Ratio(synthetic.dsc / max(real.dsc, 1e-9), _interval(drawn))


def _dsc(predicted: NDArray[np.bool_], pairs: Pairs) -> float:
    """Dice of all images together; 1 if there is no foreground at all."""
    true = pairs[..., 1] > 127
    total = int(predicted.sum()) + int(true.sum())
    return 2 * int((predicted & true).sum()) / total if total else 1.0


def _resamples(count: int, seed: int) -> NDArray[np.int64]:
    """Row numbers [BOOTSTRAP_DRAWS, count], drawn with replacement."""
    return np.random.default_rng(seed).integers(0, count, (BOOTSTRAP_DRAWS, count))


def _interval(drawn: NDArray[np.float64]) -> tuple[float, float]:
    """The middle 95 %."""
    low, high = np.percentile(drawn, INTERVAL)
    return float(low), float(high)


def _split(
    groups: NDArray[np.int64], share: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions of the training and of the validation part; no group is in both, both have at least one."""
    names = np.random.default_rng(seed).permutation(np.unique(groups))
    if len(names) < 2:
        raise ConfigurationError(
            "training pairs: expected at least two patients (or pairs), one for validation"
        )
    count = min(max(1, round(share * len(names))), len(names) - 1)
    held = np.isin(groups, names[:count])
    return np.flatnonzero(~held), np.flatnonzero(held)


def _standardised(images: Pairs, mean: float, deviation: float) -> Tensor:
    """uint8 [N, H, W] → float32 [N, 1, H, W], channels last."""
    x = (torch.from_numpy(np.ascontiguousarray(images)).float() - mean) / deviation
    return x[:, None].contiguous(memory_format=torch.channels_last)


def _turned(images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Both under one of the eight symmetries of the square."""
    turns, flip = int(torch.randint(4, ())), bool(torch.randint(2, ()))
    x, y = (torch.rot90(t, turns, (2, 3)) for t in (images, masks))
    return (x.flip(3), y.flip(3)) if flip else (x, y)


def _checked(pairs: Pairs, groups: Sequence[int] | NDArray[np.int64], what: str) -> None:
    """Refuse what cannot be trained or tested on, in words."""
    square = pairs.ndim == 4 and pairs.shape[1] == pairs.shape[2] and pairs.shape[3] == 2
    if pairs.dtype != np.uint8 or not square or not len(pairs) or pairs.shape[1] % MULTIPLE_PX:
        raise ConfigurationError(
            f"{what}: expected uint8 [N, S, S, 2] with S divisible by {MULTIPLE_PX}, got {pairs.dtype} {pairs.shape}"
        )
    if len(groups) != len(pairs):
        raise ConfigurationError(
            f"{what}: {len(pairs)} pairs, but patients are named for {len(groups)}"
        )
