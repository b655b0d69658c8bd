"""The losses of pretraining on public images [N, C, S, S] in [−1, 1].

Textures are compared by windows: differences of pixels punish a spot at the wrong place twice as
much as a missing spot, so they teach a generator to erase lesions. A window's Gram matrix (Gatys et
al. 2016) only asks that the spot be somewhere in the window.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from common.models.draws import draw_integers, draw_normal, draw_uniform
from common.models.stylegan import Critic

TEXTURE_SEED = 20_231
TEXTURE_CHANNELS = 16
WINDOWS = 4  # along each side
SPOT_PARTS = 64  # of `spots`: at 64 px a part is 4 pixels, one spot of 2×2
SCALES = 2  # full and half size
DETAIL_GAIN = 2.0  # of the colour differences, beside the random filters
NEVER_0 = 1e-8
QUIET = 0.1  # of the mean texture: a window with less than this does not count in full
BLACK = -0.9  # a brighter pixel is no surround
REACH = 4  # texture counts at more than this many pixels from the surround


def augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """Return `x` with random brightness, saturation, contrast and shift (Zhao et al. 2020)."""
    bright, colour, contrast = draw_uniform((3, len(x), 1, 1, 1), generator, x.device)
    x = x + (bright - 0.5) * 0.1
    grey = x.mean(1, keepdim=True)
    x = (x - grey) * (0.8 + 0.4 * colour) + grey
    middle = x.mean((1, 2, 3), keepdim=True)
    x = (x - middle) * (0.9 + 0.2 * contrast) + middle
    reach = max(1, x.shape[3] // 10)
    dy, dx = draw_integers(-reach, reach + 1, 2, generator).cpu().tolist()
    return torch.roll(x, (dy, dx), (2, 3))


def reconstruction_loss(
    x: Tensor, y: Tensor, sharp: float = 1.0, counts: Tensor | None = None
) -> Tensor:
    """Return the L1 distance of `x` and `y`, with the differences of neighbouring pixels.

    Only where `counts` [N, 1, S, S] is 1; None counts everything.

    - Pixels at a quarter of the size count with weight 1/2.
    - Pixels and their differences count with weight `sharp` at full size and with 1 − `sharp` at a
      quarter of the size. The differences count double, for vessels.
    """
    difference = y - x
    if counts is not None:
        difference = difference * counts
    coarse = F.avg_pool2d(difference, 4)
    loss = 0.5 * coarse.abs().mean()
    for share, part in ((sharp, difference), (1 - sharp, coarse)):
        if share > 0:
            edges = part.diff(dim=3).abs().mean() + part.diff(dim=2).abs().mean()
            loss = loss + share * (part.abs().mean() + 2 * edges)
    return loss


def textures(x: Tensor, shift: tuple[int, int] = (0, 0), surround: Tensor | None = None) -> Tensor:
    """Return Gram matrices [N, P, F, F] of the windows of `x` [N, C, S, S].

    P = 2·16 windows, at two scales. F = 16 + 2·C features: 16 random filters as in the style
    alignment, and in each colour what is brighter and what is darker than its surroundings.

    The image is first rolled by `shift` (rows, columns), so that a window's edge lies elsewhere.
    Shifts inside a window change nothing if they are even and stay 4 px off its edge.

    Nothing counts near the black of `surround` [N, any, S, S], by default `x` itself: its edge
    would outweigh everything. A generated image must not be its own surround, because a black one
    would then have nothing to match.
    """
    if surround is None:
        surround = x.detach()
    grams = [_grams(_texture_features(y) * inside) for y, inside in _scales(x, shift, surround)]
    return torch.cat(grams, 1)


def texture_distance(made: Tensor, wanted: Tensor) -> Tensor:
    """Return how far textures `made` are from `wanted`, both [N, P, F, F].

    It is 0 if they are equal and about 1 if `made` has no texture. Both are divided by the root of
    their own size: so twice the amplitude counts twice, not four times, and the gradient does not
    vanish where there is no texture yet. The size of the difference counts, not its square, so that
    no single window decides.
    """
    a = _amplitude(made)
    b = _amplitude(wanted)
    size = _norm(b)
    return ((_norm(a - b) - NEVER_0) / (size + QUIET * size.mean())).mean()


def spots(x: Tensor, shift: tuple[int, int] = (0, 0), surround: Tensor | None = None) -> Tensor:
    """Return what stands out in the windows of `x` [N, C, S, S], in order of its strength, [N, K].

    These are differences from the surroundings in each colour and between neighbouring colours,
    2·C − 1 in all. They are sorted within each of 16 windows and averaged in 64 equal parts, at two
    scales. A Gram matrix cannot tell a few strong spots from much weak grain; the first and the
    last part can. `shift` and `surround` are as in `textures`.
    """
    parts = []
    if surround is None:
        surround = x.detach()
    for y, inside in _scales(x, shift, surround):
        detail = (y - F.avg_pool2d(y, 5, stride=1, padding=2, count_include_pad=False)) * inside
        detail = torch.cat([detail, detail.diff(dim=1)], 1)
        ordered = _cells(detail).sort(2).values  # [N·16, 2·C − 1, h·w]
        cells, colours, pixels = ordered.shape
        mean = ordered.reshape(cells, colours, min(SPOT_PARTS, pixels), -1).mean(3)
        parts.append(mean.reshape(len(x), -1))
    return torch.cat(parts, 1)


def sliced_wasserstein(
    a: Tensor, b: Tensor, generator: torch.Generator, directions: int = 128
) -> Tensor:
    """Return the mean squared 1-d Wasserstein distance of a, b [N, d] over random directions."""
    axes = F.normalize(draw_normal((a.shape[1], directions), generator, a.device), dim=0)
    return ((a @ axes).sort(0).values - (b @ axes).sort(0).values).square().mean()


def gradient_penalty(critic: Critic, x: Tensor) -> Tensor:
    """Return the critic's mean squared gradient at real images: R1 of Mescheder et al. 2018."""
    x = x.detach().requires_grad_(True)
    (slope,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    return slope.square().sum((1, 2, 3)).mean()


def _texture_features(x: Tensor) -> Tensor:
    """[N, 16 + 2·C, S, S] of [N, C, S, S]."""
    first, second = _texture_filters(x.shape[1], x.device)
    y = F.relu(F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), first))
    y = F.relu(F.conv2d(F.pad(y, (1, 1, 1, 1), mode="replicate"), second))
    detail = DETAIL_GAIN * (x - F.avg_pool2d(x, 5, stride=1, padding=2, count_include_pad=False))
    return torch.cat([y, F.relu(detail), F.relu(-detail)], 1)


@cache
def _texture_filters(channels: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Fixed random filters [16, C, 3, 3] and [16, 16, 3, 3], the same on every device.

    The first have mean zero, because brightness is no texture.
    """
    random = torch.Generator().manual_seed(TEXTURE_SEED)
    shapes = ((TEXTURE_CHANNELS, channels, 3, 3), (TEXTURE_CHANNELS, TEXTURE_CHANNELS, 3, 3))
    first, second = (
        torch.nn.init.orthogonal_(torch.empty(s), math.sqrt(2), generator=random) for s in shapes
    )
    return (first - first.mean((2, 3), keepdim=True)).to(device), second.to(device)


def _scales(x: Tensor, shift: tuple[int, int], surround: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield `x` [N, C, S, S], rolled by `shift`, and a mask [N, 1, S, S]; then both at half size.

    The mask is 0 near black and 1 elsewhere.
    """
    if any(shift):
        x = torch.roll(x, shift, (2, 3))
        surround = torch.roll(surround, shift, (2, 3))
    for _ in range(SCALES):
        black = (surround.amax(1, keepdim=True) < BLACK).to(x.dtype)
        yield x, 1 - F.max_pool2d(black, 2 * REACH + 1, stride=1, padding=REACH)
        x = F.avg_pool2d(x, 2)
        surround = F.avg_pool2d(surround, 2)


def _cells(features: Tensor) -> Tensor:
    """The windows [N·16, F, h·w] of [N, F, S, S]."""
    n, f, height, width = features.shape
    h = height // WINDOWS
    w = width // WINDOWS
    return (
        features.reshape(n, f, WINDOWS, h, WINDOWS, w)
        .permute(0, 2, 4, 1, 3, 5)
        .reshape(-1, f, h * w)
    )


def _grams(features: Tensor) -> Tensor:
    """[N, 16, F, F] of [N, F, S, S]: each window's Gram matrix, divided by F·h·w."""
    cells = _cells(features)
    f = features.shape[1]
    return (
        torch.bmm(cells, cells.transpose(1, 2)).div(cells[0].numel()).reshape(-1, WINDOWS**2, f, f)
    )


def _amplitude(grams: Tensor) -> Tensor:
    """Matrices divided by the square root of their Frobenius norm."""
    return grams / _norm(grams).sqrt()[..., None, None]


def _norm(matrices: Tensor) -> Tensor:
    """Frobenius norms [N, P] of [N, P, F, F], at least `NEVER_0`: at 0 the root has no slope."""
    return (matrices.square().sum((2, 3)) + NEVER_0**2).sqrt()
