"""The encoder that inverts images into W+ codes by iterated residuals.

In: images [N, C, S, S] in [-1, 1].
Out: codes [N, L, latent] for `Generator.synthesis`, and their reconstructions.
Guarantees: no buffer, nothing random, no two images of a batch influence each other.
Not covered: an exact inverse. A code is an approximation; the caller judges its error.
Source: ReStyle (Alaluf et al. 2021), w_t = w_{t-1} + E(x, G(w_{t-1})). Deviations: a trunk of a
hundredth of the size; the residual is one shared w and a small part for each layer.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.arrays import Weights
from common.models.sizes import encoded_px, map_sides, style_count
from common.models.stylegan import Generator
from common.models.weights import load_weights


class Inverted(NamedTuple):
    """Codes W+ [N, L, latent] and the images [N, C, S, S] that the generator makes of them."""

    codes: Tensor
    reconstructions: Tensor


class Encoder(nn.Module):
    """The residual of the W+ code, [N, L, latent], from the image and its current reconstruction.

    Both are read at 64 px or less (sizes.py); finer layers are then the refinement's to find.
    1.4 M parameters at 64 px, width 32.
    """

    def __init__(self, size_px: int, channels: int, width: int, latent: int) -> None:
        super().__init__()
        self.layer_count = style_count(size_px)
        self.latent = latent
        self.width = width

        # the trunk: image and reconstruction down to 4×4 px (6×6 px of 96 px)
        read_px = encoded_px(size_px)
        self.shrink = size_px // read_px
        sides = map_sides(read_px)
        depth = len(sides) - 1
        wide = [2 * channels] + [min(width * 2**i, 4 * width) for i in range(depth)]
        blocks = [_block(cin, cout, i) for i, (cin, cout) in enumerate(itertools.pairwise(wide))]
        self.trunk = nn.Sequential(*blocks)

        # the heads: one w for all layers, and a small part for each layer
        hidden = 6 * width
        self.project = nn.Sequential(
            nn.Flatten(), nn.Linear(wide[-1] * sides[0] ** 2, hidden), nn.LeakyReLU(0.2)
        )
        self.shared = nn.Linear(hidden, latent)
        self.detail = nn.Linear(hidden, self.layer_count * latent)
        self.start = nn.Parameter(torch.zeros(self.layer_count, latent))
        for head, gain in ((self.shared, 1.0), (self.detail, 0.3)):
            nn.init.normal_(head.weight, std=gain / math.sqrt(hidden))
            nn.init.zeros_(head.bias)

    def forward(self, x: Tensor, reconstruction: Tensor) -> Tensor:
        seen = torch.cat([x, reconstruction], 1)
        if self.shrink > 1:
            seen = F.avg_pool2d(seen, self.shrink)
        hidden = self.project(self.trunk(seen))
        detail = self.detail(hidden).view(-1, self.layer_count, self.latent)
        return self.shared(hidden)[:, None, :] + detail  # type: ignore[no-any-return]

    def start_codes(self, count: int) -> Tensor:
        """Return the code that every inversion starts from, [count, L, latent]."""
        return self.start.expand(count, -1, -1)

    def invert(
        self,
        x: Tensor,
        generator: Generator,
        iterations: int,
        keep_best: bool = False,
        fields: Tensor | None = None,
    ) -> Inverted:
        """Return codes and reconstructions of `x` after `iterations` >= 1 residual steps.

        The generator runs without noise maps. `keep_best` takes the step of least squared error for
        each image, because for a few photographs later steps are worse; the error counts where
        `fields` [N, 1, S, S] is 1, or everywhere. Training takes the last step, because its output
        is the next step's input.
        """
        codes = self.start_codes(len(x))
        image = generator.synthesis(codes[:1]).expand(len(x), -1, -1, -1)
        best = Inverted(codes, image)
        for step in range(iterations):
            codes = codes + self(x, image)
            image = generator.synthesis(codes)
            now = Inverted(codes, image)
            if step == 0 or not keep_best:
                best = now
            else:
                best = _choose_nearer(x, best, now, fields)
        return best


def _choose_nearer(x: Tensor, before: Inverted, now: Inverted, fields: Tensor | None) -> Inverted:
    """Of each image of `x` the nearer of the two; `before` where an error is not a number."""
    better = _squared_error(x, now, fields) < _squared_error(x, before, fields)
    return Inverted(
        torch.where(better[:, None, None], now.codes, before.codes),
        torch.where(better[:, None, None, None], now.reconstructions, before.reconstructions),
    )


def _squared_error(x: Tensor, inverted: Inverted, fields: Tensor | None) -> Tensor:
    """Mean squared error [N] of the reconstructions, clamped to the range of images."""
    difference = inverted.reconstructions.clamp(-1, 1) - x
    if fields is not None:
        difference = difference * fields
    return difference.square().mean((1, 2, 3))


def _block(cin: int, cout: int, index: int) -> nn.Sequential:
    """A block that halves the resolution.

    All but the first normalise; the second and third add a convolution at the same scale.
    """
    layers: list[nn.Module] = [nn.Conv2d(cin, cout, 4, stride=2, padding=1)]
    if index:
        layers.append(nn.GroupNorm(math.gcd(8, cout), cout))
    layers.append(nn.LeakyReLU(0.2))
    if index in (1, 2):
        layers += [nn.Conv2d(cout, cout, 3, padding=1), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers)


def load_encoder(weights: Weights, width: int, latent: int, size_px: int, channels: int) -> Encoder:
    """Return an encoder with `encoder.*` of `weights`.

    Raises RefusedError if they do not fit the planned sizes.
    """
    encoder = Encoder(size_px, channels, width, latent)
    load_weights(encoder, weights, "encoder.")
    return encoder
