"""What the flow is built of: levels, and the doublings of its size.

Guarantees: each is exactly invertible, and its log-determinant is exact.
Not covered: the parts that leave and their density (common/models/glow.py).
"""

import math
from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.arrays import Floats
from common.models.glow_coupling import Coupling, Split
from common.models.glow_mixing import Mixing, compose_mixings
from common.models.reversible import apply_steps

# of a square of 2 × 2 pixels, row by row: across, down, and along the diagonals
DIFFERENCES = ((1, -1, 1, -1), (1, 1, -1, -1), (1, -1, -1, 1))


class Level(nn.Module):
    """Squeeze, then `steps` times mixing and coupling.

    The first `kept` channels are mixed with nothing and moved by nothing.
    """

    def __init__(
        self,
        channels: int,
        steps: int,
        width: int,
        index: int,
        generator: torch.Generator,
        kept: int = 0,
    ) -> None:
        super().__init__()
        self.kept: int = kept
        self.mixings = nn.ModuleList(Mixing(channels - kept, index + step) for step in range(steps))
        self.couplings = nn.ModuleList(Coupling(channels, width, generator) for _ in range(steps))

    def forward(self, x: Tensor, reverse: bool = False) -> tuple[Tensor, Tensor]:
        """Return (y, log-determinant [N]) for x [N, c/4, 2H, 2W].

        With `reverse` the activations are not stored; the backward pass rebuilds them.
        """
        return self.transform(F.pixel_unshuffle(x, 2), reverse)

    def inverse(self, y: Tensor) -> Tensor:
        """Return x for y, the exact inverse of `forward`."""
        return F.pixel_shuffle(self.restore(y), 2)

    def transform(self, x: Tensor, reverse: bool = False) -> tuple[Tensor, Tensor]:
        """Return (y, log-determinant [N]) for the squeezed x [N, c, H, W]."""
        # all mixings of the level at once
        mixings = cast(Sequence[Mixing], self.mixings)
        matrices, biases, log_scale = compose_mixings(mixings)
        total = log_scale.sum() * (x.shape[-1] * x.shape[-2])
        if self.kept:
            matrices, biases = beside_identity(matrices, self.kept), F.pad(biases, (self.kept, 0))

        # the steps
        if reverse:
            inverses = torch.stack([mixing.inverse_matrix() for mixing in mixings]).to(x)
            inverses = beside_identity(inverses[..., None, None], self.kept)[..., 0, 0]
            x, each = apply_steps(x, matrices, biases, inverses, list(self.couplings))
            return x, total + each
        for matrix, bias, coupling in zip(
            matrices.unbind(), biases.unbind(), self.couplings, strict=True
        ):
            x, each = coupling(F.conv2d(x, matrix, bias))
            total = total + each
        return x, total

    def restore(self, y: Tensor) -> Tensor:
        """Return x for y, the exact inverse of `transform`."""
        for mixing, coupling in zip(reversed(self.mixings), reversed(self.couplings), strict=True):
            y = cast(Coupling, coupling).inverse(y)
            mixed = cast(Mixing, mixing).inverse(y[:, self.kept :])
            y = torch.cat([y[:, : self.kept], mixed], dim=1)
        return y


class Doubling(nn.Module):
    """What an image has beside its means of 2 × 2 pixels, given those means.

    The means [N, C, H, W] are an image of half the size for the flow inside. The three differences
    of each square go through `steps` times mixing and coupling that know the means, and leave.
    Source: Yu, Derpanis & Brubaker 2020 (Wavelet Flow), here with means instead of sums, so that
    the image inside has the range of the one outside.
    """

    def __init__(
        self, channels: int, steps: int, width: int, index: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.level = Level(4 * channels, steps, width, index, generator, kept=channels)
        self.split = Split(channels, 3 * channels)
        self.haar = torch.from_numpy(haar_matrix(channels))  # a plain attribute: never stored

    def forward(self, x: Tensor, reverse: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Return (means [N, C, H, W], part [N, 3C, H, W], log-determinant [N]).

        x is [N, C, 2H, 2W].
        """
        y, total = self.level.transform(self.analyse(x), reverse)
        means, differences = torch.split(y, [x.shape[1], 3 * x.shape[1]], dim=1)
        mean, log_scale = self.split.moments(means)
        part = (differences - mean) * (-log_scale).exp()
        # a mean is half of an orthonormal coefficient
        halved = math.log(2) * math.prod(means.shape[1:])
        return means, part, total - log_scale.sum(dim=(1, 2, 3)) - halved

    def inverse(self, means: Tensor, part: Tensor) -> Tensor:
        """Return x for its means and part, the exact inverse of `forward`."""
        mean, log_scale = self.split.moments(means)
        y = torch.cat([means, part * log_scale.exp() + mean], dim=1)
        y = self.level.restore(y)
        back = torch.linalg.inv(self.haar).to(y)
        return F.pixel_shuffle(F.conv2d(y, back[..., None, None]), 2)

    def analyse(self, x: Tensor) -> Tensor:
        """Return means and differences [N, 4C, H, W] of x [N, C, 2H, 2W]."""
        return F.conv2d(F.pixel_unshuffle(x, 2), self.haar.to(x)[..., None, None])


def beside_identity(kernels: Tensor, kept: int) -> Tensor:
    """Return kernels [K, kept + c, kept + c, 1, 1] of which the first `kept` channels stay.

    `kernels`: [K, c, c, 1, 1].
    """
    ones = torch.ones(kept, dtype=kernels.dtype, device=kernels.device)
    ones = F.pad(ones, (0, kernels.shape[1]))
    return F.pad(kernels, (0, 0, 0, 0, kept, 0, kept, 0)) + ones.diag()[..., None, None]


def haar_matrix(channels: int) -> Floats:
    """Return float64 [4C, 4C]: from squeezed pixels to C means, then three differences of each.

    The differences are orthonormal.
    """
    matrix = np.zeros((4 * channels, 4 * channels))
    for channel in range(channels):
        pixels = slice(4 * channel, 4 * channel + 4)
        matrix[channel, pixels] = 0.25
        first = channels + 3 * channel
        matrix[first : first + 3, pixels] = 0.5 * np.array(DIFFERENCES)
    return matrix
