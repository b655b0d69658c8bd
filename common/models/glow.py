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
from common.models.glow_coupling import Split, Top
from common.models.glow_level import Doubling, Level

LOG_2PI = math.log(2 * math.pi)


class Glow(nn.Module):
    """The flow for square images of `size_px` with 1 or 3 channels.

    `levels` (L) squeezes, `steps_per_level` (K) pairs of mixing and coupling each, coupling
    networks of `width` channels. With `doublings` (d) the flow inside is of a side smaller by 2^d,
    and each doubling adds what means of 2 × 2 pixels lack. A side that 2^(L+d) does not divide is
    padded with black inside `encode` and cropped by `decode`. Raises ValueError for an impossible
    layout.

    `reversible` = True takes a third more time and stores one tensor a level for the backward pass.
    It is for public pretraining only.
    """

    reversible: bool = False

    def __init__(
        self,
        size_px: int,
        channels: int,
        levels: int,
        steps_per_level: int,
        width: int,
        doublings: int = 0,
    ) -> None:
        super().__init__()
        multiple = 2 ** (levels + doublings)
        least = min(levels, steps_per_level, width, doublings + 1)
        if channels not in (1, 3) or least < 1 or size_px < multiple:
            raise ValueError(
                f"no flow of {levels} levels and {doublings} doublings "
                f"for {channels} channels of {size_px} px"
            )
        self.size_px: int = size_px
        self.channels: int = channels
        self.padded_px: int = -(-size_px // multiple) * multiple

        # Each level squeezes; half of its channels leave at a split, the last level keeps all.
        generator = torch.Generator().manual_seed(0)  # public: every machine builds the same start
        blocks: list[Level] = []
        splits: list[Split] = []
        shapes: list[tuple[int, int, int]] = []
        c = channels
        px = self.padded_px >> doublings
        for level in range(levels):
            c *= 4
            px //= 2
            blocks.append(Level(c, steps_per_level, width, level * steps_per_level, generator))
            if level < levels - 1:
                c //= 2
                splits.append(Split(c, c))
            shapes.append((c, px, px))
        self.levels = nn.ModuleList(blocks)
        self.splits = nn.ModuleList(splits)
        self.top = Top(c, (px, px))

        # The smallest doubling first, so that a checkpoint of half the size has the same names.
        grown: list[Doubling] = []
        for index in range(levels, levels + doublings):
            at = index * steps_per_level
            grown.append(Doubling(channels, steps_per_level, width, at, generator))
            px = self.padded_px >> (levels + doublings - index)
            shapes.insert(0, (3 * channels, px, px))
        self.doublings = nn.ModuleList(grown)
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
        reverse = self.reversible and torch.is_grad_enabled()
        parts: list[Tensor] = []
        log_p = x.new_zeros(x.shape[0])
        for doubling in reversed(self.doublings):
            x, part, log_determinant = doubling(x, reverse)
            log_p = log_p + log_determinant + log_normal(part)
            parts.append(part)
        for level, split in zip(self.levels, [*self.splits, None], strict=True):
            x, log_determinant = level(x, reverse)
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
            log_p = log_p + log_normal(part)
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
        grown = len(self.doublings)
        finest, parts = parts[:grown], parts[grown:]
        x = parts[-1] * self.top.log_scale().exp() + self.top.mean
        x = cast(Level, self.levels[-1]).inverse(x)
        for level, split, part in zip(
            reversed(self.levels[:-1]), reversed(self.splits), reversed(parts[:-1]), strict=True
        ):
            mean, log_scale = cast(Split, split).moments(x)
            x = cast(Level, level).inverse(torch.cat([x, part * log_scale.exp() + mean], dim=1))
        for doubling, part in zip(self.doublings, reversed(finest), strict=True):
            x = cast(Doubling, doubling).inverse(x, part)
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
        """Return x with black on the right and below, up to a side that 2^(L+d) divides."""
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


def log_normal(part: Tensor) -> Tensor:
    """Return the log density [N] of a standard normal at a part [N, c, h, w], in nats."""
    squares = 0.5 * part.square().sum(dim=(1, 2, 3))
    return -squares - 0.5 * LOG_2PI * math.prod(part.shape[1:])


def find_unfamiliar(parts: Sequence[Tensor], limit: float = 1e4) -> Tensor:
    """Return bool [N]: images with a latent that is not finite or beyond `limit` in absolute value.

    The flow has not learned such images, for example of another modality or contrast. A clipped
    latent of one would show the border of the clip's ball, not the image.
    """
    inside = [(part.abs() <= limit).flatten(1).all(1) for part in parts]  # NaN compares false
    return ~torch.stack(inside).all(0)
