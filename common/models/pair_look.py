"""The look of pairs of image and mask: six numbers in which sources of pairs differ.

In: pairs [..., 2, S, S] in [-1, 1], channel 0 the image, channel 1 the mask.
Out: looks [..., 6], which may be averaged, and what such an average says (`Tone`).
Guarantees: a look depends on its own pair alone. Each of its numbers is a mean over the pixels of
the pair, so an average of looks counts every pixel once; each is in a unit of its own, a public
constant of about twice what patients of one source differ by, so that a clip norm of 1 suits.

With s the share of a pair's pixels that are marked, u the mean of the others, and c the contrast,
which is the mean of the marked pixels less u, the numbers are:
  share     s
  contrast  s c, and s c^2
  ground    (1 - s) u, and (1 - s) u^2
  grain     mean difference of neighbours, right and below, of which neither is marked
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

UNITS = (0.15, 0.1, 0.1, 0.15, 0.1, 0.03)
SCALES = (0.1, 0.1, 0.1, 0.1, 0.1, 0.03)  # of the parts of a tone
LEAST_SHARE = 1e-3
LEAST_SPREAD = 1e-2


class Tone(NamedTuple):
    """What an average of looks says; scalars, images in [-1, 1].

    `share`: of marked pixels. `contrast`: the mean of these less that of the others in their pair.
    `ground`: the mean of the others. `contrast_varies`, `ground_varies`: their standard deviations
    from pair to pair. `grain`: how much neighbours outside the mask differ.
    """

    share: Tensor
    contrast: Tensor
    contrast_varies: Tensor
    ground: Tensor
    ground_varies: Tensor
    grain: Tensor


def look_of(pairs: Tensor) -> Tensor:
    """Return the looks [..., 6] of pairs [..., 2, S, S]; images are clamped to [-1, 1].

    The gradient of the share runs to the mask, those of the others to the image alone.
    """
    image = pairs[..., 0, :, :].clamp(-1, 1)
    mask = pairs[..., 1, :, :]
    marked = (mask > 0).to(image)
    share = marked.mean((-2, -1))
    rest = 1 - share
    ground = (image * (1 - marked)).mean((-2, -1)) / rest.clamp(min=LEAST_SHARE)
    level = (image * marked).mean((-2, -1)) / share.clamp(min=LEAST_SHARE)
    contrast = level - ground
    found = (
        (mask.mean((-2, -1)) + 1) / 2,
        share * contrast,
        share * contrast.square(),
        rest * ground,
        rest * ground.square(),
        _unevenness(image, 1 - marked),
    )
    return torch.stack(found, -1) / torch.tensor(UNITS).to(image)


def tone_of(look: Tensor) -> Tone:
    """Return what a mean look [6] says.

    Noise may have moved it anywhere: a share is taken as at least 0.001 and at most 0.999, and a
    deviation as at least 0.01.
    """
    share, *sums, grain = (look * torch.tensor(UNITS).to(look)).unbind()
    some = share.detach().clamp(LEAST_SHARE, 1 - LEAST_SHARE)
    contrast = _moments(sums[0], sums[1], some)
    ground = _moments(sums[2], sums[3], 1 - some)
    return Tone(share, *contrast, *ground, grain)


def _moments(total: Tensor, squares: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation from weighted sums."""
    mean = total / weight
    return mean, (squares / weight - mean.square()).clamp(min=LEAST_SPREAD**2).sqrt()


def pulls(pairs: Tensor, look: Tensor) -> Tensor:
    """Return losses [6] that pull what made the pairs [N, 2, S, S] towards a look [6].

    One is of each part of a tone, in their order. N is even. A gradient is that of half the squared
    miss, in units of `SCALES`, but the miss comes from one half of the pairs and its slope from the
    other: of one batch the square also pulls to where batches differ less.
    """
    wanted = torch.stack(tone_of(look.detach()))
    halves = [torch.stack(tone_of(look_of(half).mean(0))) for half in pairs.chunk(2)]
    scales = torch.tensor(SCALES).to(pairs)
    pulled = torch.zeros_like(wanted)
    for one, other in (halves, halves[::-1]):
        pulled = pulled + (one - wanted).detach() * other / scales.square() / 2
    return pulled


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
