"""The look of pairs of image and mask: five numbers in which sources of pairs differ.

In: pairs [..., 2, S, S] in [-1, 1], channel 0 the image, channel 1 the mask.
Out: looks [..., 5], which may be averaged, and what such an average says (`Tone`).
Guarantees: a look depends on its own pair alone. Each of its numbers is a mean over the pixels of
the pair, so an average of looks counts every pixel once; each is in a unit of its own, a public
constant of about twice what patients of one source differ by, so that a clip norm of 1 suits.

With s the share of a pair's pixels that are marked, and t the mean of these, the numbers are:
  share     s
  light     s t
  square    s t^2
  rest      the sum of the unmarked pixels, of all pixels
  grain     mean difference of neighbours, right and below, of which neither is marked
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

UNITS = (0.15, 0.1, 0.1, 0.15, 0.03)
SCALES = (0.1, 0.1, 0.1, 0.1, 0.03)  # of the parts of a tone
LEAST_SHARE = 1e-3
LEAST_SPREAD = 1e-2


class Tone(NamedTuple):
    """What an average of looks says; scalars, images in [-1, 1].

    `share`: of marked pixels. `marked`: their mean; `spread`: by which pairs deviate from it.
    `unmarked`: the mean of the other pixels. `grain`: how much neighbours among them differ.
    """

    share: Tensor
    marked: Tensor
    spread: Tensor
    unmarked: Tensor
    grain: Tensor


def look_of(pairs: Tensor) -> Tensor:
    """Return the looks [..., 5] of pairs [..., 2, S, S]; images are clamped to [-1, 1].

    The gradient of `share` runs to the mask, those of the others to the image alone.
    """
    image = pairs[..., 0, :, :].clamp(-1, 1)
    mask = pairs[..., 1, :, :]
    marked = (mask > 0).to(image)
    share = marked.mean((-2, -1))
    light = (image * marked).mean((-2, -1))
    found = (
        (mask.mean((-2, -1)) + 1) / 2,
        light,
        light.square() / share.clamp(min=LEAST_SHARE),
        (image * (1 - marked)).mean((-2, -1)),
        _unevenness(image, 1 - marked),
    )
    return torch.stack(found, -1) / torch.tensor(UNITS).to(image)


def tone_of(look: Tensor) -> Tone:
    """Return what a mean look [5] says.

    Noise may have moved it anywhere: a share is taken as at least 0.001 and at most 0.999, and a
    spread as at least 0.01.
    """
    share, light, square, rest, grain = (look * torch.tensor(UNITS).to(look)).unbind()
    some = share.detach().clamp(LEAST_SHARE, 1 - LEAST_SHARE)
    marked = light / some
    spread = (square / some - marked.square()).clamp(min=LEAST_SPREAD**2).sqrt()
    return Tone(share, marked, spread, rest / (1 - some), grain)


def pulls(pairs: Tensor, look: Tensor) -> tuple[Tensor, Tensor]:
    """Return two losses that pull what made the pairs [N, 2, S, S] towards a look [5].

    The first is of the share, the second of all else. N is even. A gradient is that of half the
    squared miss, in units of `SCALES`, but the miss comes from one half of the pairs and its slope
    from the other: of one batch the square also pulls to where batches differ less.
    """
    wanted = torch.stack(tone_of(look.detach()))
    halves = [torch.stack(tone_of(look_of(half).mean(0))) for half in pairs.chunk(2)]
    scales = torch.tensor(SCALES).to(pairs)
    pulled = torch.zeros_like(wanted)
    for one, other in (halves, halves[::-1]):
        pulled = pulled + (one - wanted).detach() * other / scales.square() / 2
    return pulled[0], pulled[1:].sum()


def _unevenness(image: Tensor, counted: Tensor) -> Tensor:
    """Mean difference [...] of neighbours in images [..., S, S] that both count; 0 if none do."""
    side = image.shape[-1]
    differences = []
    both = []
    for axis in (-2, -1):
        first, second = (image.narrow(axis, at, side - 1) for at in (0, 1))
        differences.append((second - first).abs().flatten(-2))
        pair = counted.narrow(axis, 0, side - 1) * counted.narrow(axis, 1, side - 1)
        both.append(pair.flatten(-2))
    weights = torch.cat(both, -1)
    total: Tensor = (torch.cat(differences, -1) * weights).sum(-1) / weights.sum(-1).clamp(min=1)
    return total
