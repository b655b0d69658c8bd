"""Brings photographs of every camera into the generator's own look, and averages back.

In: images [N, C, S, S] in [-1, 1]; the common look, which generator samples have on average.
Out: the same images in the common look, their fields and their own looks; relative errors.
Guarantees: no image influences another; the common look depends on the generator alone.
Not covered: light that falls from one side.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from common.models.images import to_unit
from common.models.look import LEAST_DEVIATION, Look, field_of, in_look, look_of

# of an image that has content (docs/decisions/0087-which-photographs-count.md)
LEAST_FIELD = 0.2  # share of the picture that was photographed
LEAST_DETAIL = 0.4  # deviation from the local mean inside the field, in grey levels of 255
MOST_SATURATED = 0.5  # share of the field where every channel is at its end
LOCAL_PX = 5
SATURATED = 0.98  # in [-1, 1]


@dataclass(frozen=True)
class Seen:
    """Images in the common look [N, C, S, S], their fields [N, 1, S, S] and their own looks."""

    images: Tensor
    fields: Tensor
    own: Look


def look_at(x: Tensor, common: Look) -> Seen:
    """Return images [N, C, S, S] as the networks are to see them: in the common look."""
    fields = field_of(x)
    own = look_of(x, fields)
    return Seen(in_look(x, fields, own, common).clamp(-1, 1), fields, own)


def show_in(images: Tensor, common: Look, wanted: Look, fields: Tensor | None = None) -> Tensor:
    """Return generated images [N, C, S, S], of the common look, in the wanted looks, clamped.

    `fields` [N, 1, S, S]: where they show something, if not where they are lit.
    """
    fields = field_of(images) if fields is None else fields
    return _recolour(images, fields, common, wanted)


def _recolour(x: Tensor, fields: Tensor, own: Look, wanted: Look) -> Tensor:
    """Images in another look, clamped; the border of a field, mixed with black, is dyed."""
    inside = in_look(x, fields, own, wanted)
    # how much of a pixel beyond the field is field, by its darkest channel
    lit = (own.mean + 1).clamp(min=LEAST_DEVIATION)[:, :, None, None]
    share = ((x + 1) / lit).amin(1, keepdim=True).clamp(0, 1)
    beyond = share * (wanted.mean + 1)[:, :, None, None] - 1
    return torch.where(fields > 0, inside, beyond).clamp(-1, 1)


def relative_errors(seen: Tensor, x: Tensor, fields: Tensor) -> NDArray[np.float64]:
    """Return [N]: root mean square difference from images `x` inside their fields.

    It is counted in the deviation that `x` has inside its field. What lies outside does not count.
    """
    pixels = fields.sum((1, 2, 3)).clamp(min=1) * x.shape[1]
    errors = ((seen - x).square() * fields).double().sum((1, 2, 3)).div(pixels).sqrt()
    own = look_of(x, fields).deviation.double().square().mean(1).sqrt()
    return np.asarray((errors / own).cpu())


def lack_content(images: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return bool [N]: True where a uint8 image [N, H, W, C] is dark, blurred away or saturated.

    The rule is one for all labels and for every cohort: public constants, nothing fitted.
    """
    x = to_unit(images)
    fields = field_of(x)
    pixels = fields.sum((1, 2, 3))
    saturated = ((x.amin(1, keepdim=True) > SATURATED) * fields).sum((1, 2, 3)) / pixels.clamp(
        min=1
    )
    dark = pixels < LEAST_FIELD * fields[0].numel()
    empty = dark | (measure_detail(x, fields) < LEAST_DETAIL) | (saturated > MOST_SATURATED)
    return np.asarray(empty)


def measure_detail(x: Tensor, fields: Tensor) -> Tensor:
    """Return [N]: deviation from the local mean inside the field, in grey levels of 255.

    The border of the field does not count: the step to black is no detail.
    """
    grey = x.mean(1, keepdim=True)
    margin = LOCAL_PX // 2
    padded = F.pad(grey, (margin,) * 4, mode="replicate")
    fine = grey - F.avg_pool2d(padded, LOCAL_PX, stride=1)
    inner = -F.max_pool2d(-fields, LOCAL_PX, stride=1, padding=margin)
    pixels = inner.sum((1, 2, 3)).clamp(min=1)
    return (fine.square() * inner).sum((1, 2, 3)).div(pixels).sqrt().mul(127.5)


def look_rows(looks: Look) -> NDArray[np.float32]:
    """Return float32 [N, 2, C]: means, then deviations."""
    return np.asarray(torch.stack(looks, dim=1).float().cpu())


def look_from(rows: NDArray[np.floating], device: torch.device | None = None) -> Look:
    """Return the looks of rows [N, 2, C] on a device."""
    pair = torch.from_numpy(np.array(rows, np.float32)).to(device)
    return Look(pair[:, 0], pair[:, 1].clamp(min=LEAST_DEVIATION))
