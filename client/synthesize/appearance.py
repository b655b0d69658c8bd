"""Shows a group's generated images with its members' mean residual, field and look.

In: groups, who is on the roster, the images, what the inversion kept of each.
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

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from client.state.group_store import Group
from client.synthesize.coarse import add_residual, mean_known
from client.synthesize.group import Roster
from client.synthesize.invert import Inversion
from client.synthesize.looks import look_from, show_in
from common.errors import Bug, PolicyError
from common.models.images import to_unit
from common.models.look import Look, average_looks, field_of

# How lit a pixel beside a field is, as a share of its neighbours in the field, by their number
# among nine: medians of the public photographs of IDRiD and CSDI. At the picture's own border a
# field is touched along a few pixels, or it ends.
LIT_BESIDE = (0.0, 0.4, 0.8, 0.9, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
LIT_AT_BORDER = (0.0, 0.0, 0.0, 0.65, 0.65, 0.65, 0.65, 0.65, 0.65, 0.65)
SEEN_BY = 0.5  # of a group's patients: what fewer of their cameras see is black


@dataclass(frozen=True)
class Appearance:
    """A group's mean look, one row: [1, C], its mean coarse residual [C, G, G], and its field.

    `field` [1, S, S]: 1 where at least half of the patients' cameras see. `support`: how many
    distinct patients are behind look and field. `known` [G, G]: how many are behind each cell; 0
    where it is not used.
    Raises PolicyError below k, Bug for what is not a `Group` or not finite.
    """

    group: Group
    look: Look
    support: int
    residual: Tensor
    known: Tensor
    field: Tensor

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

    def complete(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return images [N, C, S, S] with the residual, and the part of each that is shown.

        The generator paints the whole disc of an eye; most cameras cut it.
        """
        seen = field_of(images)
        whole = add_residual(images, self.residual, seen).clamp(-1, 1)
        return whole, seen * self.field.to(images)[None]


@dataclass(frozen=True)
class Shown:
    """How G groups' images are shown: from the common look of the generator to each group's."""

    common: Look
    groups: tuple[Appearance, ...]

    def show(self, row: int, images: Tensor) -> Tensor:
        """Return images [N, C, S, S] of the group at `row`, as the generator made them, shown."""
        wanted = self.groups[row].look
        on_device = Look(wanted.mean.to(images.device), wanted.deviation.to(images.device))
        whole, fields = self.groups[row].complete(images)
        shown = show_in(whole, self.common, on_device, fields)
        return end_softly(shown, self.groups[row].field)


def end_softly(images: Tensor, field: Tensor) -> Tensor:
    """Return images [N, C, S, S], black outside `field` [1, S, S], with an edge as a camera's.

    The field's outermost pixels, where a generator's own disc ends, take the mean colour of their
    neighbours further in. A pixel beside the field has its neighbours' there, times `LIT_BESIDE`.
    A field that fills the picture, as a radiograph's does, has no edge.
    """
    inside = field.to(images)[None]
    if bool((inside[..., 1:-1, 1:-1] > 0).all()):
        return images
    inner = 1 - F.max_pool2d(1 - inside, 3, stride=1, padding=1)
    lit = (images + 1) * inner
    lit = lit + (inside - inner) * _mean_beside(lit, inner)
    count = (9 * F.avg_pool2d(inside, 3, stride=1, padding=1)).round().long()
    brightness = torch.tensor(LIT_BESIDE).to(images)[count]
    at_border = torch.tensor(LIT_AT_BORDER).to(images)[count]
    at_border[..., 1:-1, 1:-1] = brightness[..., 1:-1, 1:-1]
    return lit + (1 - inside) * at_border * _mean_beside(lit, inside) - 1


def _mean_beside(lit: Tensor, field: Tensor) -> Tensor:
    """The mean over each pixel's neighbours in the field, outside of which `lit` is 0."""
    share = F.avg_pool2d(field, 3, stride=1, padding=1)
    return F.avg_pool2d(lit, 3, stride=1, padding=1) / share.clamp(min=1 / 9)


def gather_appearances(
    groups: Sequence[Group], who: Roster, images: NDArray[np.uint8], inversion: Inversion
) -> tuple[Appearance, ...]:
    """Return the appearance of each group: all that leaves this function about its members.

    `images`: the cohort's, uint8 [N, H, W, C].

    Raises Bug where an image on the roster was rejected by the inversion.
    """
    rows_of = dict(zip(who.pseudonyms, who.images, strict=True))
    gathered: list[Appearance] = []
    for group in groups:
        # each patient's means, then the members'
        looks: list[Look] = []
        coarse: list[Tensor] = []
        fields: list[Tensor] = []
        for name in group.members:
            rows = list(rows_of[name])
            if not inversion.accepted[rows].all():
                raise Bug("appearance: a rejected image on the roster")
            looks.append(average_looks(look_from(inversion.looks[rows])))
            own, count = mean_known(torch.from_numpy(inversion.coarse[rows]))
            coarse.append(torch.cat([own, (count > 0).to(own)[None]]))
            fields.append(field_of(to_unit(np.asarray(images[rows]))).mean(0))
        each = Look(*(torch.cat(column) for column in zip(*looks, strict=True)))
        residual, known = mean_known(torch.stack(coarse))
        enough = known >= group.k
        field = (torch.stack(fields).mean(0) >= SEEN_BY).float()
        gathered.append(
            Appearance(
                group, average_looks(each), len(looks), residual * enough, known * enough, field
            )
        )
    return tuple(gathered)
