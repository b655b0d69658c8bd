"""Keeps an aligned code only where its image is nearer to the members than their average's image.

In: aligned codes [G, L, d_w], each group's `GroupStatistics`, `MeanFeatures` and `Appearance`.
Out: for each group one of the two.
Guarantees:
  1. a `MeanFeatures` exists only for a `Group`, with at least k distinct patients behind it
  2. the features are those of a network that the alignment does not optimise; public weights
  3. each patient weighs 1, whatever the number of images
Not covered: textures that no member has, where the features do not see them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.state.group_store import Group
from client.synthesize.align import GroupStatistics
from client.synthesize.appearance import Appearance, end_softly
from client.synthesize.group import Roster
from client.synthesize.looks import look_at
from common.errors import Bug, PolicyError
from common.models.images import to_unit
from common.models.look import Look
from common.models.pretrained_features import PretrainedFeatures
from common.models.stylegan import Generator


@dataclass(frozen=True)
class MeanFeatures:
    """A group's mean pooled features [D]; `support`: distinct patients behind them.

    Raises PolicyError below k, Bug for what is not a `Group` or not finite.
    """

    group: Group
    mean: Tensor
    support: int

    def __post_init__(self) -> None:
        if not isinstance(self.group, Group):
            raise Bug("mean features: expected a Group; nothing else proves k distinct patients")
        if self.support < self.group.k:
            raise PolicyError(
                f"mean features: expected at least k={self.group.k} distinct patients; got fewer",
                code="E-GROUP-SIZE",
            )
        if not bool(torch.isfinite(self.mean).all()):
            raise Bug("mean features: not finite")


def gather_features(
    images: NDArray[np.uint8],
    groups: Sequence[Group],
    who: Roster,
    network: PretrainedFeatures,
    common: Look,
) -> list[MeanFeatures]:
    """Return each group's mean features of its members' images [N, H, W, C] in the common look."""
    rows_of = dict(zip(who.pseudonyms, who.images, strict=True))
    gathered: list[MeanFeatures] = []
    with torch.no_grad():
        for group in groups:
            each: list[Tensor] = []
            for name in group.members:
                own = np.asarray(images[list(rows_of[name])])
                seen = look_at(to_unit(own, common.mean.device), common).images
                each.append(network.pooled(seen).mean(0))
            gathered.append(MeanFeatures(group, torch.stack(each).mean(0), len(each)))
    return gathered


def keep_nearer(
    aligned: Tensor,
    averages: Sequence[GroupStatistics],
    targets: Sequence[MeanFeatures],
    appearances: Sequence[Appearance],
    generator: Generator,
    network: PretrainedFeatures,
) -> Tensor:
    """Return codes [G, L, d_w]: the aligned one where its image is nearer to the group's mean.

    Both are looked at with the group's residual and in its field, as they are released.
    Elsewhere, and where a distance is not finite, the average's code stays.
    """
    kept: list[Tensor] = []
    with torch.no_grad():
        for own, statistics, target, appearance in zip(
            aligned, averages, targets, appearances, strict=True
        ):
            average = statistics.centroid
            made = generator.synthesis(torch.stack([own, average])).clamp(-1, 1)
            shown = end_softly(appearance.complete(made)[0], appearance.field)
            away = (network.pooled(shown) - target.mean).square().sum(1)
            kept.append(own if bool(away[0] < away[1]) else average)
    return torch.stack(kept)
