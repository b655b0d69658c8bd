"""Re-identification by a network that learns which two images show one person.

In: several images of each of some patients, to train on; later the distances between an attacked
person's other image and the released images.
Out: `Reidentified`.
Guarantees: the same seed gives the same network. The caller keeps attacked people out of training,
and gives releases of another label an infinite distance.
Not covered: the strongest attack. Packhäuser et al. 2022 train a ResNet-50 on full-size
radiographs; `recognition` says how well this network tells people apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from common.arrays import Flags, Floats, Images, Labels
from common.errors import ConfigurationError
from common.measure import attack_scores, attacks
from common.models.adam import Adam
from common.models.images import to_unit

INPUT_PX = 32
AT_ONCE = 256
CPU = torch.device("cpu")
LEAST_PERSONS = 4


@dataclass(frozen=True)
class Recipe:
    """Constants of the contrastive training (Chen et al. 2020).

    Two images of one person are compared with all others of the batch.
    """

    width: int = 16
    embedding: int = 32  # length of the vectors
    steps: int = 200
    persons: int = 24  # a step
    rate: float = 2e-3
    temperature: float = 0.2


@dataclass(frozen=True)
class Reidentified:
    """How often the nearest release is the person's own (P@1), with interval.

    `chance` is the same for a random candidate. `auc` compares own with other releases.
    """

    precision: float
    interval: tuple[float, float]
    chance: float
    auc: float


@dataclass(frozen=True)
class Siamese:
    """The embedding's weights by name."""

    weights: Mapping[str, Tensor]

    def embed(self, images: Images) -> Floats:
        """Return unit vectors [N, D] of uint8 images [N, S, S, C]."""
        parts = []
        with torch.no_grad():
            for start in range(0, len(images), AT_ONCE):
                x = _normalise(images[start : start + AT_ONCE], self.weights["head"].device)
                parts.append(_embed(self.weights, x))
        return np.asarray(torch.cat(parts).double().cpu().numpy())


def train(
    images: Images,
    person_of: Labels,
    *,
    seed: int,
    recipe: Recipe = Recipe(),
    device: torch.device = CPU,
) -> Siamese:
    """Return the network trained on a device on uint8 images [N, S, S, C] of persons [N].

    Persons with one image do not take part. Raises ConfigurationError when fewer than
    `LEAST_PERSONS` persons have two images.
    """
    # the persons with two images or more
    rng = np.random.default_rng(seed)
    rows_of = {}
    for person in np.unique(person_of):
        rows = np.flatnonzero(person_of == person)
        if len(rows) > 1:
            rows_of[int(person)] = rows
    several = list(rows_of)
    if len(several) < LEAST_PERSONS:
        raise ConfigurationError(
            f"re-identification: {len(several)} persons have two images, expected four or more"
        )

    # train
    x = torch.cat(
        [_normalise(images[at : at + AT_ONCE], device) for at in range(0, len(images), AT_ONCE)]
    )
    weights = _weights(x.shape[1], recipe, torch.Generator().manual_seed(seed), device)
    adam = Adam(weights, recipe.rate, betas=(0.9, 0.99))
    for step in range(recipe.steps):
        # draw two images of each of some persons, and embed them
        persons = rng.permutation(several)[: recipe.persons]
        pairs = np.array([rng.permutation(rows_of[int(p)])[:2] for p in persons])
        first = _embed(weights, _shift(x[pairs[:, 0]], rng))
        second = _embed(weights, _shift(x[pairs[:, 1]], rng))

        # each image should be most like the other of the same person
        likeness = first @ second.T / recipe.temperature
        truth = torch.arange(len(pairs), device=device)
        loss = (F.cross_entropy(likeness, truth) + F.cross_entropy(likeness.T, truth)) / 2

        # take a step; the rate falls to 0 in the second half
        gradients = torch.autograd.grad(loss, list(weights.values()))
        adam.rate = recipe.rate * min(1.0, 2 * (1 - step / recipe.steps))
        adam.step(dict(zip(weights, gradients, strict=True)))
    return Siamese({name: w.detach() for name, w in weights.items()})


def reidentify(apart: Floats, own: Flags) -> Reidentified | None:
    """Return the figures of distances [queries, releases] against the truth `own`.

    A release at an infinite distance is no candidate. Queries without an own release, or with no
    other candidate, do not count; None when no query is left.
    """
    # the queries that count
    possible = np.isfinite(apart)
    kept = (own & possible).any(1) & (~own & possible).any(1)
    if not kept.any():
        return None
    found = attacks.links(apart[kept], own[kept], 1)
    assert found is not None

    # the AUC of each query
    shares = []
    for distances, mine in zip(apart[kept], own[kept], strict=True):
        candidates = np.isfinite(distances)
        shares.append(_auc(distances[mine & candidates], distances[~mine & candidates]))
    return Reidentified(found.precision, found.interval, found.chance, float(np.mean(shares)))


def _auc(own: Floats, others: Floats) -> float:
    """The share of pairs in which the own release is nearer; a tie counts half."""
    nearer = (own[:, None] < others[None]).mean()
    ties = (own[:, None] == others[None]).mean()
    return float(nearer + 0.5 * ties)


def recognition(network: Siamese, images: Images, person_of: Labels) -> Reidentified | None:
    """Return how well the network finds another real image [N, S, S, C] of the same person."""
    seen = network.embed(images)
    apart = attack_scores.distances(seen, seen)
    np.fill_diagonal(apart, np.inf)
    return reidentify(apart, person_of[:, None] == person_of[None])


def _weights(
    channels: int, recipe: Recipe, random: torch.Generator, device: torch.device
) -> dict[str, Tensor]:
    """Fresh weights of three strided convolutions and a linear layer on a 4×4 grid.

    They are the same on every device.
    """
    found: dict[str, Tensor] = {}
    before = channels
    for i, size in enumerate((recipe.width, 2 * recipe.width, 2 * recipe.width)):
        weight = torch.randn(size, before, 3, 3, generator=random)
        found[f"conv{i}"] = weight * (2 / (9 * before)) ** 0.5
        before = size
    head = torch.randn(recipe.embedding, 16 * before, generator=random)
    found["head"] = head * (1 / (16 * before)) ** 0.5
    return {name: w.to(device).requires_grad_() for name, w in found.items()}


def _embed(weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Unit vectors [N, D]."""
    for i in range(3):
        x = F.relu(F.group_norm(F.conv2d(x, weights[f"conv{i}"], stride=2, padding=1), 4))
    return F.normalize(F.linear(F.adaptive_avg_pool2d(x, 4).flatten(1), weights["head"]), dim=1)


def _normalise(images: Images, device: torch.device) -> Tensor:
    """Images [N, C, S, S] of about 32 px on a device, each at mean 0 and deviation 1."""
    x = to_unit(images, device)
    x = F.avg_pool2d(x, max(1, x.shape[2] // INPUT_PX))
    return (x - x.mean((1, 2, 3), keepdim=True)) / (x.std((1, 2, 3), keepdim=True) + 1e-3)


def _shift(x: Tensor, rng: np.random.Generator) -> Tensor:
    """The batch moved by up to two pixels."""
    dy, dx = rng.integers(-2, 3, size=2).tolist()
    return torch.roll(x, (dy, dx), (2, 3))
