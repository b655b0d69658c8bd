"""GLOW: an exactly invertible image model (Kingma & Dhariwal 2018, arXiv 1807.03039).

In: float images [N, C, H, W] in [-1/2, 1/2] (glow_pixels.py).
Out: standardised latent parts, finest level first and top level last, and log p in nats.
Guarantees:
  - `decode` is the inverse of `encode`, to 1e-5 in float32 and 1e-12 in float64;
  - no buffers, no batch statistics: an image enters the weights through training steps alone.
Not covered: a bound on the Lipschitz constant of the whole map; conditioning on labels; privacy.
Deviations from the paper: mixing without signs or permutations, bounded log-scales.
"""

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import ConfigurationError
from common.models.draws import device_of, draw_normal
from common.models.glow_coupling import Coupling, Split, Top
from common.models.glow_mixing import Mixing, compose_mixings
from common.models.reversible import apply_steps

LOG_2PI = math.log(2 * math.pi)


class Level(nn.Module):
    """Squeeze, then `steps` times mixing and coupling."""

    def __init__(
        self, channels: int, steps: int, width: int, index: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.mixings = nn.ModuleList(Mixing(channels, index + step) for step in range(steps))
        self.couplings = nn.ModuleList(Coupling(channels, width, generator) for _ in range(steps))

    def forward(self, x: Tensor, reverse: bool = False) -> tuple[Tensor, Tensor]:
        """Return (y, log-determinant [N]) for x [N, c/4, 2H, 2W].

        With `reverse` the activations are not stored; the backward pass rebuilds them.
        """
        # all mixings of the level at once
        x = F.pixel_unshuffle(x, 2)
        mixings = cast(Sequence[Mixing], self.mixings)
        matrices, biases, log_scale = compose_mixings(mixings)
        total = log_scale.sum() * (x.shape[-1] * x.shape[-2])

        # the steps
        if reverse:
            inverses = torch.stack([mixing.inverse_matrix() for mixing in mixings]).to(x)
            x, each = apply_steps(x, matrices, biases, inverses, list(self.couplings))
            return x, total + each
        for matrix, bias, coupling in zip(
            matrices.unbind(), biases.unbind(), self.couplings, strict=True
        ):
            x, each = coupling(F.conv2d(x, matrix, bias))
            total = total + each
        return x, total

    def inverse(self, y: Tensor) -> Tensor:
        """Return x for y, the exact inverse of `forward`."""
        for mixing, coupling in zip(reversed(self.mixings), reversed(self.couplings), strict=True):
            y = cast(Mixing, mixing).inverse(cast(Coupling, coupling).inverse(y))
        return F.pixel_shuffle(y, 2)


class Glow(nn.Module):
    """The flow for square images of `size_px` with 1 or 3 channels.

    `levels` (L) squeezes, `steps_per_level` (K) pairs of mixing and coupling each, coupling
    networks of `width` channels. A side that 2^L does not divide is padded with black inside
    `encode` and cropped by `decode`. Raises ValueError for an impossible layout.

    `reversible` = True takes a third more time and stores one tensor a level for the backward pass.
    It is for public pretraining only.
    """

    reversible: bool = False

    def __init__(
        self, size_px: int, channels: int, levels: int, steps_per_level: int, width: int
    ) -> None:
        super().__init__()
        if channels not in (1, 3) or min(levels, steps_per_level, width) < 1 or size_px < 2**levels:
            raise ValueError(f"no flow of {levels} levels for {channels} channels of {size_px} px")
        self.size_px: int = size_px
        self.channels: int = channels
        self.padded_px: int = -(-size_px // 2**levels) * 2**levels

        # Each level squeezes; half of its channels leave at a split, the last level keeps all.
        generator = torch.Generator().manual_seed(0)  # public: every machine builds the same start
        blocks: list[Level] = []
        splits: list[Split] = []
        shapes: list[tuple[int, int, int]] = []
        c = channels
        px = self.padded_px
        for level in range(levels):
            c *= 4
            px //= 2
            blocks.append(Level(c, steps_per_level, width, level * steps_per_level, generator))
            if level < levels - 1:
                splits.append(Split(c))
                c //= 2
            shapes.append((c, px, px))
        self.levels = nn.ModuleList(blocks)
        self.splits = nn.ModuleList(splits)
        self.top = Top(c, (px, px))
        self.part_shapes: tuple[tuple[int, int, int], ...] = tuple(shapes)

    @property
    def dimension(self) -> int:
        """D, the coordinates of one image's latent code (and of the padded image)."""
        return self.channels * self.padded_px**2

    @property
    def top_dimension(self) -> int:
        """The coordinates of the top level, the last part."""
        channels, height, width = self.part_shapes[-1]
        return channels * height * width

    def forward(self, x: Tensor) -> Tensor:
        """Return log p(x) in nats, [N]."""
        return self.encode(x)[1]

    def encode(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return (latent parts, log p(x) in nats [N]) for x [N, C, H, W].

        The parts [N, c, h, w] stand finest first and top last. Raises ConfigurationError for
        another size or number of channels.
        """
        self._check_shape(x)
        x = self.pad(x)
        parts: list[Tensor] = []
        log_p = x.new_zeros(x.shape[0])
        for level, split in zip(self.levels, [*self.splits, None], strict=True):
            x, log_determinant = level(x, self.reversible and torch.is_grad_enabled())
            if split is None:
                # The last level: every coordinate has a mean and a scale of its own.
                log_scale = self.top.log_scale()
                part = (x - self.top.mean) * (-log_scale).exp()
                log_p = log_p + log_determinant - log_scale.sum()
            else:
                # Half of the channels leave, standardised by the half that stays.
                x, y = x.chunk(2, dim=1)
                mean, log_scale = cast(Split, split).moments(x)
                part = (y - mean) * (-log_scale).exp()
                log_p = log_p + log_determinant - log_scale.sum(dim=(1, 2, 3))
            # The density of a standard normal at the part.
            squares = 0.5 * part.square().sum(dim=(1, 2, 3))
            log_p = log_p - squares - 0.5 * LOG_2PI * math.prod(part.shape[1:])
            parts.append(part)
        return parts, log_p

    @torch.no_grad()
    def decode(self, parts: Sequence[Tensor]) -> Tensor:
        """Return x [N, C, H, W] for latent parts: `decode(encode(x)[0])` is x.

        Raises ValueError when the parts have other shapes.
        """
        if [tuple(part.shape[1:]) for part in parts] != list(self.part_shapes):
            found = [tuple(part.shape) for part in parts]
            raise ValueError(f"latent parts {found}, expected {list(self.part_shapes)}")
        # from the top level down, each level gets back the half that left
        x = parts[-1] * self.top.log_scale().exp() + self.top.mean
        x = cast(Level, self.levels[-1]).inverse(x)
        for level, split, part in zip(
            reversed(self.levels[:-1]), reversed(self.splits), reversed(parts[:-1]), strict=True
        ):
            mean, log_scale = cast(Split, split).moments(x)
            x = cast(Level, level).inverse(torch.cat([x, part * log_scale.exp() + mean], dim=1))
        return x[..., : self.size_px, : self.size_px]

    def prior(self, n: int, temperature: float, generator: torch.Generator) -> list[Tensor]:
        """Return latent parts of `n` images: temperature * N(0, 1), float32, on the flow's device.

        They are drawn where the generator is.
        """
        device = device_of(self)
        return [
            temperature * draw_normal((n, *shape), generator, device) for shape in self.part_shapes
        ]

    def bits_per_dimension(self, log_p: Tensor, depth: int = 8) -> Tensor:
        """Return -log_p / (D ln 2) + depth: bits per dimension of images of `depth` bits."""
        return -log_p / (self.dimension * math.log(2)) + depth

    def pad(self, x: Tensor) -> Tensor:
        """Return x with black on the right and below, up to a side that 2^L divides."""
        missing = self.padded_px - self.size_px
        if not missing:
            return x
        return F.pad(x, (0, missing, 0, missing), value=-0.5)

    def _check_shape(self, x: Tensor) -> None:
        if tuple(x.shape[1:]) == (self.channels, self.size_px, self.size_px):
            return
        raise ConfigurationError(
            f"flow: images {list(x.shape)}, "
            f"expected [N, {self.channels}, {self.size_px}, {self.size_px}]",
            hint="resize them as the study's intake does; "
            "another size or number of channels is another flow",
        )


def find_unfamiliar(parts: Sequence[Tensor], limit: float = 1e4) -> Tensor:
    """Return bool [N]: images with a latent that is not finite or beyond `limit` in absolute value.

    The flow has not learned such images, for example of another modality or contrast. A clipped
    latent of one would show the border of the clip's ball, not the image.
    """
    inside = [(part.abs() <= limit).flatten(1).all(1) for part in parts]  # NaN compares false
    return ~torch.stack(inside).all(0)
