"""The look of a photograph: the mean and the deviation of each channel inside its field.

In: images [N, C, S, S] in [-1, 1], black (-1) where nothing was photographed.
Out: the field, the look, and the same images in another look.
Guarantees: no image influences another; a field without pixels has a look without effect.
Not covered: light that falls from one side.

One camera's photographs differ from another's above all in colour and contrast. A network that
reads every photograph in one look need not learn them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

BLACK = -1 + 2 * 6 / 255  # a channel above this was lit
LEAST_DEVIATION = 0.03  # in [-1, 1]: a flatter channel is noise, which no look may enlarge more


class Look(NamedTuple):
    """Mean and deviation of each channel inside the field, both [N, C], of images in [-1, 1]."""

    mean: Tensor
    deviation: Tensor


def field_of(x: Tensor) -> Tensor:
    """Return 1 where a pixel was photographed and 0 elsewhere, [N, 1, S, S].

    Lit pixels count, small dark spots among them too, and the outermost pixel of the field not: it
    is mixed with the black around it.
    """
    lit = (x.amax(1, keepdim=True) > BLACK).to(x.dtype)
    # close gaps of up to two pixels; then take one pixel off the border, the picture's own too
    closed = _shrink(F.max_pool2d(lit, 3, stride=1, padding=1), 1.0)
    return _shrink(closed, 0.0)


def look_of(x: Tensor, field: Tensor) -> Look:
    """Return the look of images [N, C, S, S] inside their fields [N, 1, S, S].

    The deviation is at least `LEAST_DEVIATION`. Where a field has no pixel, the look is that of a
    black image.
    """
    pixels = field.sum((2, 3)).clamp(min=1)
    mean = (x * field).sum((2, 3)) / pixels
    mean = torch.where(field.sum((2, 3)) > 0, mean, torch.full_like(mean, -1.0))
    squares = ((x - mean[:, :, None, None]).square() * field).sum((2, 3)) / pixels
    return Look(mean, squares.sqrt().clamp(min=LEAST_DEVIATION))


def in_look(x: Tensor, lit: Tensor, own: Look, wanted: Look) -> Tensor:
    """Return images [N, C, S, S] of look `own` in the look `wanted`, where `lit` [N, 1, S, S] is 1.

    Elsewhere they stay as they are. `wanted` may have one row for all. Not clamped: clamp to
    [-1, 1] what is shown.
    """
    gain = (wanted.deviation / own.deviation)[:, :, None, None]
    moved = (x - own.mean[:, :, None, None]) * gain + wanted.mean[:, :, None, None]
    return torch.where(lit > 0, moved, x)


def average_looks(looks: Look) -> Look:
    """Return the mean of N looks as one row: [1, C]; deviations are averaged in logarithms."""
    mean = looks.mean.mean(0, keepdim=True)
    return Look(mean, looks.deviation.log().mean(0, keepdim=True).exp())


def _shrink(mask: Tensor, beyond: float) -> Tensor:
    """The mask without its outermost pixel; `beyond` is what lies beyond the picture's border."""
    return -F.max_pool2d(F.pad(-mask, (1, 1, 1, 1), value=-beyond), 3, stride=1)
