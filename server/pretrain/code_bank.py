"""The latest codes of public photographs, from which pretraining draws averages."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from server.pretrain.losses import (
    spots,
    texture_distance,
    textures,
)


class CodeBank:
    """The latest codes of public photographs, [M, L, latent], by side.

    Where photographs are given, it also keeps their textures [M, P, F, F], spots [M, K] and
    brightest channels [M, 1, S, S]. The brightest channels show where the black surround is.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.codes: list[Tensor] = []
        self.sides: list[int] = []
        self.textures: list[Tensor] = []
        self.spots: list[Tensor] = []
        self.brightest: list[Tensor] = []

    def add(self, codes: Tensor, sides: Tensor, photographs: Tensor | None = None) -> None:
        """Add codes [N, L, latent] and sides [N]; the oldest ones leave.

        Give `photographs` [N, C, S, S] in every call or in none.
        """
        self.codes = (self.codes + list(codes.detach()))[-self.size :]
        self.sides = (self.sides + sides.tolist())[-self.size :]
        if photographs is not None:
            brightest = list(photographs.amax(1, keepdim=True))
            self.textures = (self.textures + list(textures(photographs)))[-self.size :]
            self.spots = (self.spots + list(spots(photographs)))[-self.size :]
            self.brightest = (self.brightest + brightest)[-self.size :]

    def groups(self, count: int, largest: int, random: np.random.Generator) -> list[np.ndarray]:
        """Draw `count` groups of 2 to `largest` rows of one side, with replacement."""
        sides = np.array(self.sides)
        groups = []
        for _ in range(count):
            same = np.flatnonzero(sides == sides[random.integers(len(sides))])
            groups.append(random.choice(same, random.integers(2, largest + 1)))
        return groups

    def means(self, groups: list[np.ndarray]) -> Tensor:
        """Return the mean code of each group, [len(groups), L, latent]."""
        return _means(self.codes, groups)

    def texture_distance(self, made: Tensor, groups: list[np.ndarray]) -> Tensor:
        """Return how far the textures of `made` are from each group's mean texture.

        `made` is [len(groups), C, S, S]. k-SALSA's alignment compares a group's average in the same
        way (Jeon et al. 2022).
        """
        surround = _means(self.brightest, groups)
        return texture_distance(textures(made, surround=surround), _means(self.textures, groups))

    def spot_distance(self, made: Tensor, groups: list[np.ndarray]) -> Tensor:
        """Return the mean absolute difference of `spots` from each group's mean."""
        return F.l1_loss(
            spots(made, surround=_means(self.brightest, groups)), _means(self.spots, groups)
        )


def _means(of: list[Tensor], groups: list[np.ndarray]) -> Tensor:
    """The mean over each group's rows."""
    return torch.stack([torch.stack([of[i] for i in rows]).mean(0) for rows in groups])
