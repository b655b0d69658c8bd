"""The encoder that inverts images into W+ codes by iterated residuals.

In: images [N, C, S, S] in [−1, 1]. Out: codes [N, L, latent] for `Generator.synthesis` and their reconstructions.
Guaranteed: no buffer, nothing random, no two images of a batch influence each other.
Not: an exact inverse. On a real photograph the code is an approximation, and its error is the caller's to judge.

Source: ReStyle (Alaluf et al. 2021): w_0 = the start code, w_t = w_{t−1} + E(x, G(w_{t−1})), with a trunk a hundredth
the size (methods/ksalsa.md sections 2 and 3.1) and the residual split into one shared w and a small part per layer.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from common.models.stylegan import Generator, layer_count
from common.models.weights import load_weights


class Inverted(NamedTuple):
    """Codes W+ [N, L, latent] and the images [N, C, S, S] that the generator makes of them."""

    codes: Tensor
    reconstructions: Tensor


class Encoder(nn.Module):
    """(x, current reconstruction) → residual of the W+ code, [N, L, latent]; 1.4 M parameters at 64 px, width 32."""

    def __init__(self, size_px: int, channels: int, width: int, latent: int) -> None:
        super().__init__()
        self.layer_count, self.latent, self.width = layer_count(size_px), latent, width
        depth = int(math.log2(size_px)) - 2
        wide = [2 * channels] + [min(width * 2**i, 4 * width) for i in range(depth)]
        self.trunk = nn.Sequential(
            *(_block(a, b, i) for i, (a, b) in enumerate(itertools.pairwise(wide)))
        )
        hidden = 6 * width
        self.project = nn.Sequential(
            nn.Flatten(), nn.Linear(wide[-1] * 16, hidden), nn.LeakyReLU(0.2)
        )
        self.shared = nn.Linear(hidden, latent)
        self.detail = nn.Linear(hidden, self.layer_count * latent)
        self.start = nn.Parameter(torch.zeros(self.layer_count, latent))
        for head, gain in ((self.shared, 1.0), (self.detail, 0.3)):
            nn.init.normal_(head.weight, std=gain / math.sqrt(hidden))
            nn.init.zeros_(head.bias)

    def forward(self, x: Tensor, reconstruction: Tensor) -> Tensor:
        hidden = self.project(self.trunk(torch.cat([x, reconstruction], 1)))
        detail = self.detail(hidden).view(-1, self.layer_count, self.latent)
        return self.shared(hidden)[:, None, :] + detail  # type: ignore[no-any-return]

    def start_codes(self, count: int) -> Tensor:
        """The code every inversion starts from, [count, L, latent]."""
        return self.start.expand(count, -1, -1)

    def invert(
        self, x: Tensor, generator: Generator, iterations: int, keep_best: bool = False
    ) -> Inverted:
        """Codes and reconstructions of `x` after `iterations` ≥ 1 residual steps (no noise maps in the generator).

        `keep_best`: of each image those of the step with the least squared error, because for a few photographs the steps
        lead away again. Training wants the last step, whose output is what the next one will see.
        """
        codes = self.start_codes(len(x))
        image = generator.synthesis(codes[:1]).expand(len(x), -1, -1, -1)
        best = Inverted(codes, image)
        for step in range(iterations):
            codes = codes + self(x, image)
            image = generator.synthesis(codes)
            best = (
                Inverted(codes, image)
                if step == 0 or not keep_best
                else _nearer(x, best, Inverted(codes, image))
            )
        return best


def _nearer(x: Tensor, before: Inverted, now: Inverted) -> Inverted:
    """Of each image of `x` whichever of the two is nearer; `before` where an error is not a number."""
    errors = [
        (one.reconstructions.clamp(-1, 1) - x).square().mean((1, 2, 3)) for one in (before, now)
    ]
    better = errors[1] < errors[0]
    return Inverted(
        torch.where(better[:, None, None], now.codes, before.codes),
        torch.where(better[:, None, None, None], now.reconstructions, before.reconstructions),
    )


def _block(cin: int, cout: int, index: int) -> nn.Sequential:
    """Halves the resolution; all but the first normalise, the second and third look once more at the same scale."""
    layers: list[nn.Module] = [nn.Conv2d(cin, cout, 4, stride=2, padding=1)]
    if index:
        layers.append(nn.GroupNorm(math.gcd(8, cout), cout))
    layers.append(nn.LeakyReLU(0.2))
    if index in (1, 2):
        layers += [nn.Conv2d(cout, cout, 3, padding=1), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers)


def load_encoder(
    weights: Mapping[str, np.ndarray], width: int, latent: int, size_px: int, channels: int
) -> Encoder:
    """An encoder with `encoder.*` of `weights`; raises RefusedError if they do not fit the planned sizes."""
    encoder = Encoder(size_px, channels, width, latent)
    load_weights(encoder, weights, "encoder.")
    return encoder
