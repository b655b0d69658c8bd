"""Public fundus photographs as other cameras would take them, all in one look.

In: framed photographs [N, C, T, T], of the size of the network or twice that.
Out: a `Batch`: what the encoder sees, what is to be reconstructed, and where it is known.
Guarantees: outside the inscribed disc everything is black. What a camera's field cuts away is
unknown: `field` is 0 there. Inside, each photograph has the wanted look up to a small jitter.
Not covered: a camera whose field is squeezed, text in the field.

  1. turn, enlarge or reduce about the middle of the field, and move towards the optic disc
  2. cut the field: by the disc, and by straight edges above and below
  3. light from one side, haze, blur, and a bent tone curve
  4. one look (common/models/look.py), with a jitter
  5. grain, which the encoder sees and the generator need not draw
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from common.arrays import Floats
from common.models.draws import draw_normal, draw_uniform
from common.models.images import to_levels, to_unit
from common.models.look import Look, field_of, in_look, look_of

# ranges over which measured cameras differ
ANGLE = 12.0  # degrees, to both sides
LEAST_ZOOM, MOST_ZOOM = 0.85, 1.35
NEAR_SHIFT = 0.1  # of the radius, in every direction
DISC_SHIFT = 0.5  # of the radius, towards the optic disc
DISC_SHARE = 0.3  # share of photographs with the optic disc nearer to the middle
CUT = 0.12  # of the height, above and below
CUT_SHARE = 0.5
LIGHT = 0.35  # brighter on one side and darker on the other
HAZE = 0.5  # share of the haze in the picture, at most
HAZE_SHARE = 0.3
HAZE_TINT = (0.75, 0.65, 0.45)  # a cataract's, in [0, 1]
BLUR_SHARE = 0.3
CURVE = 0.3  # the tone curve's exponent is e^±0.3
GRAIN = 0.04  # deviation, of the range [−1, 1]
JITTER = 0.05  # of the look
ALL = 0.999  # a pixel is known where it was made of known pixels alone


class Batch(NamedTuple):
    """Photographs as networks are trained on them, in [−1, 1], black outside their fields."""

    seen: Tensor  # [N, C, S, S], what the encoder sees
    wanted: Tensor  # [N, C, S, S], what the generator is to draw
    field: Tensor  # [N, 1, S, S], 1 where a photograph says what is wanted


def inscribed_disc(size_px: int, device: torch.device | None = None) -> Tensor:
    """Return 1 in the disc that touches the borders, without its outermost pixel, [1, 1, S, S]."""
    at = torch.linspace(-1, 1, size_px + 1, device=device)
    at = (at[1:] + at[:-1]) / 2
    radius = (at[:, None].square() + at[None, :].square()).sqrt()
    return (radius <= 1 - 2 / size_px).to(torch.float32)[None, None]


def cut(x: Tensor, field: Tensor) -> Tensor:
    """Return images [N, C, S, S], black (−1) where `field` [N, 1, S, S] is 0."""
    return torch.where(field > 0, x, -1.0)


def known_part(field: Tensor) -> Tensor:
    """Return 1 where a generated image is told what to be, [N, 1, S, S].

    This is the field and all that lies outside the inscribed disc, which is black for everyone. The
    disc's outermost pixels are neither.
    """
    size_px = field.shape[-1]
    outside = 1 - F.max_pool2d(inscribed_disc(size_px, field.device), 5, stride=1, padding=2)
    return torch.maximum(field, outside.expand_as(field))


def mean_look(images: NDArray[np.uint8], shares: Floats) -> Look:
    """Return the look, one row, that photographs [N, S, S, C] have on average.

    Each counts by its share. Deviations are averaged in their logarithm.
    """
    x = to_unit(images)
    own = look_of(x, field_of(x))
    weights = torch.as_tensor(shares / shares.sum(), dtype=torch.float32)[:, None]
    mean = (weights * own.mean).sum(0, keepdim=True)
    deviation = (weights * own.deviation.log()).sum(0, keepdim=True).exp()
    return Look(mean, deviation)


def all_in_look(images: NDArray[np.uint8], look: Look, size_px: int) -> NDArray[np.uint8]:
    """Return photographs [N, S, S, C] in `look`, at `size_px`, black outside the disc."""
    x = to_unit(images)
    x = F.adaptive_avg_pool2d(x, size_px)
    lit = (x.amax(1, keepdim=True) > -1).to(x.dtype) * inscribed_disc(size_px)
    moved = in_look(x, lit, look_of(x, field_of(x)), look).clamp(-1, 1)
    return np.asarray(to_levels(cut(moved, lit)))


def other_cameras(
    x: Tensor, side: Tensor, size_px: int, look: Look, draw: torch.Generator
) -> Batch:
    """Return photographs `x` [N, C, T, T] as other cameras would take them, at `size_px`.

    `side` [N]: 1 where the optic disc lies to the right.
    """
    # (1) geometry, of the photograph and of its field
    grid = _geometry(side.to(x.device), size_px, x.shape, draw)
    field = field_of(x)
    both = torch.cat([x, field], 1)
    moved = F.grid_sample(both, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    # (2) the field
    field = (moved[:, -1:] > ALL).to(x.dtype)
    field = field * inscribed_disc(size_px, x.device)
    field = field * _straight_cuts(len(x), size_px, draw, x.device)
    light = (moved[:, :-1].clamp(-1, 1) + 1) / 2 * field
    # (3) light, haze, blur, tone
    light = _light_from_one_side(light, draw)
    light = _haze_and_blur(light, field, draw)
    light = light.clamp(0, 1.5) ** (CURVE * _signed(len(x), draw, x.device)).exp()
    # (4) one look
    wanted = cut(_jittered_look(2 * light - 1, field, look, draw).clamp(-1, 1), field)
    # (5) grain
    seen = cut((wanted + _grain(wanted, draw)).clamp(-1, 1), field)
    return Batch(seen, wanted, field)


def _uniform(count: int, draw: torch.Generator, device: torch.device) -> Tensor:
    """Uniform numbers in [0, 1), [N, 1, 1, 1]."""
    return draw_uniform((count, 1, 1, 1), draw, device)


def _signed(count: int, draw: torch.Generator, device: torch.device) -> Tensor:
    """Uniform numbers in [−1, 1), [N, 1, 1, 1]."""
    return 2 * _uniform(count, draw, device) - 1


def _geometry(side: Tensor, size_px: int, shape: torch.Size, draw: torch.Generator) -> Tensor:
    """Where each pixel of the new picture comes from, [N, S, S, 2]."""
    device = side.device
    count = len(side)
    angle = ANGLE * math.pi / 180 * _signed(count, draw, device).flatten()
    span = math.log(MOST_ZOOM / LEAST_ZOOM)
    zoom = LEAST_ZOOM * (span * _uniform(count, draw, device).flatten()).exp()
    right = NEAR_SHIFT * _signed(count, draw, device).flatten()
    down = NEAR_SHIFT * _signed(count, draw, device).flatten()
    # some have the optic disc nearer to the middle
    to_disc = DISC_SHIFT * _uniform(count, draw, device).flatten()
    chosen = _uniform(count, draw, device).flatten() < DISC_SHARE
    towards = 2.0 * side.to(right.dtype) - 1
    right = torch.where(chosen, towards * to_disc, right)
    cos, sin = angle.cos() / zoom, angle.sin() / zoom
    first = torch.stack([cos, -sin, right], 1)
    second = torch.stack([sin, cos, down], 1)
    size = [count, shape[1], size_px, size_px]
    return F.affine_grid(torch.stack([first, second], 1), size, align_corners=False)


def _straight_cuts(count: int, size_px: int, draw: torch.Generator, device: torch.device) -> Tensor:
    """1 between two horizontal edges, [N, 1, S, 1]; half of them cut nothing away."""
    depth = 2 * CUT * _uniform(count, draw, device)
    depth = depth * (_uniform(count, draw, device) < CUT_SHARE)
    at = torch.linspace(-1, 1, size_px + 1, device=device)
    at = ((at[1:] + at[:-1]) / 2).abs().reshape(1, 1, size_px, 1)
    return (at <= 1 - depth).to(torch.float32)


def _light_from_one_side(light: Tensor, draw: torch.Generator) -> Tensor:
    """`light` [N, C, S, S], brighter on one side and darker on the other."""
    n, _, size_px, _ = light.shape
    strength = LIGHT * _uniform(n, draw, light.device)
    angle = 2 * math.pi * _uniform(n, draw, light.device)
    at = torch.linspace(-1, 1, size_px, device=light.device)
    slope = angle.cos() * at.reshape(1, 1, 1, -1) + angle.sin() * at.reshape(1, 1, -1, 1)
    return light * (1 + strength * slope)


def _haze_and_blur(light: Tensor, field: Tensor, draw: torch.Generator) -> Tensor:
    """`light` [N, C, S, S], some of it behind haze, some of it out of focus, all within `field`."""
    n, channels, _, _ = light.shape
    haze = HAZE * _uniform(n, draw, light.device)
    haze = haze * (_uniform(n, draw, light.device) < HAZE_SHARE)
    blur = _uniform(n, draw, light.device)
    blur = blur * (_uniform(n, draw, light.device) < BLUR_SHARE)
    # haze blurs too; black around the field must not be blurred into it
    amount = torch.maximum(blur, haze)
    share = F.avg_pool2d(field, 3, stride=1, padding=1).clamp(min=1e-3)
    soft = F.avg_pool2d(light * field, 3, stride=1, padding=1) / share
    light = (light + amount * (soft - light)) * field
    tint = torch.tensor(HAZE_TINT, device=light.device)
    if channels != len(HAZE_TINT):
        tint = tint.mean().expand(channels)
    return (light + haze * (tint.reshape(1, -1, 1, 1) - light)) * field


def _jittered_look(x: Tensor, field: Tensor, look: Look, draw: torch.Generator) -> Tensor:
    """`x` [N, C, S, S] in `look`, whose brightness and deviation change a little for each."""
    n, channels = x.shape[:2]
    brighter = 1 + JITTER * (2 * draw_uniform((n, channels), draw, x.device) - 1)
    stronger = 1 + JITTER * (2 * draw_uniform((n, 1), draw, x.device) - 1)
    wanted = Look(
        (look.mean.to(x.device) + 1) * brighter - 1, look.deviation.to(x.device) * stronger
    )
    return in_look(x, field, look_of(x, field), wanted)


def _grain(x: Tensor, draw: torch.Generator) -> Tensor:
    """Noise for `x` [N, C, S, S]: of single pixels and of 2×2, half and half."""
    strength = GRAIN * _uniform(len(x), draw, x.device)
    n, channels, height, width = x.shape
    fine = draw_normal((n, channels, height, width), draw, x.device)
    coarse = draw_normal((n, channels, height // 2, width // 2), draw, x.device)
    coarse = coarse.repeat_interleave(2, 2).repeat_interleave(2, 3)
    return strength * (fine + coarse) / math.sqrt(2)
