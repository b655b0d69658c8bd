"""Shows a group's generated images with its members' mean residual, in their mean look.

In: groups, who is on the roster, what the inversion kept of each image.
Out: an `Appearance` a group, and with it generated images as they are released.
Guarantees:
  1. an `Appearance` exists only for a `Group`, with at least k distinct patients behind every
     number
  2. each patient weighs 1, whatever the number of images; a cell of the residual that fewer than k
     of the patients know is 0
  3. what carries an epsilon has no appearance: anchors.py renders in the generator's own look
Not covered: whoever knows k-1 members can subtract them from the mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from client.state.group_store import Group
from client.synthesize.coarse import add_residual, mean_known
from client.synthesize.group import Roster
from client.synthesize.invert import Inversion
from client.synthesize.looks import average_looks, look_from, show_in
from common.errors import Bug, PolicyError
from common.models.look import Look, field_of


@dataclass(frozen=True)
class Appearance:
    """A group's mean look, one row: [1, C], and its mean coarse residual [C, G, G].

    `support`: how many distinct patients are behind the look. `known` [G, G]: how many are behind
    each cell; 0 where it is not used.
    Raises PolicyError below k, Bug for what is not a `Group` or not finite.
    """

    group: Group
    look: Look
    support: int
    residual: Tensor
    known: Tensor

    def __post_init__(self) -> None:
        if not isinstance(self.group, Group):
            raise Bug("appearance: expected a Group; nothing else proves k distinct patients")
        used = self.known[self.residual.abs().amax(0) > 0].tolist()
        if min([self.support, *used]) < self.group.k:
            raise PolicyError(
                f"appearance: expected at least k={self.group.k} distinct patients; got fewer",
                code="E-GROUP-SIZE",
            )
        if not all(bool(torch.isfinite(value).all()) for value in (*self.look, self.residual)):
            raise Bug("appearance: not finite; inversion must reject such an image")


@dataclass(frozen=True)
class Shown:
    """How G groups' images are shown: from the common look of the generator to each group's."""

    common: Look
    groups: tuple[Appearance, ...]

    def show(self, row: int, images: Tensor) -> Tensor:
        """Return images [N, C, S, S] of the group at `row`, as the generator made them, shown."""
        wanted = self.groups[row].look
        on_device = Look(wanted.mean.to(images.device), wanted.deviation.to(images.device))
        fields = field_of(images)
        whole = add_residual(images, self.groups[row].residual, fields)
        return show_in(whole, self.common, on_device, fields)


def gather_appearances(
    groups: Sequence[Group], who: Roster, inversion: Inversion
) -> tuple[Appearance, ...]:
    """Return the appearance of each group: all that leaves this function about its members.

    Raises Bug where an image on the roster was rejected by the inversion.
    """
    rows_of = dict(zip(who.pseudonyms, who.images, strict=True))
    gathered: list[Appearance] = []
    for group in groups:
        # each patient's means, then the members'
        looks: list[Look] = []
        coarse: list[Tensor] = []
        for name in group.members:
            rows = list(rows_of[name])
            if not inversion.accepted[rows].all():
                raise Bug("appearance: a rejected image on the roster")
            looks.append(average_looks(look_from(inversion.looks[rows])))
            own, images = mean_known(torch.from_numpy(inversion.coarse[rows]))
            coarse.append(torch.cat([own, (images > 0).to(own)[None]]))
        each = Look(*(torch.cat(column) for column in zip(*looks, strict=True)))
        residual, known = mean_known(torch.stack(coarse))
        enough = known >= group.k
        gathered.append(
            Appearance(group, average_looks(each), len(looks), residual * enough, known * enough)
        )
    return tuple(gathered)
