"""The image + mask WGAN: a generator of pairs and a critic (Kossen et al. 2022, corrected).

In: latents [N, z]; or pairs [N, 2, S, S] in [-1, 1], channel 0 the image, channel 1 the mask.
Out: pairs of the same form; or scores [N].
Guarantees: no module couples the items of a batch or keeps a buffer, so the critic may be trained
with per-patient gradients.

The plan chooses one of three architectures:
  small       4x4 convolutions of stride 2 with GroupNorm; 4x4 patches are scored and averaged.
              The critic of width 24 has 391,945 parameters at 64 px.
  kossen2022  the paper's shape: five convolutions with instance norm, one score for a pair.
              The critic of width 96 has 25.1 M parameters. Deviations: nothing in place; GroupNorm
              in place of BatchNorm in the generator; both channels in [-1, 1], threshold 0.
  mask-first  the critic of `small`, which also knows the look of real pairs
              (common/models/pair_look.py); the generator draws a mask of -1 and 1, then the image
              of that mask, so an image shows no vessel that its mask lacks (`MaskFirst`).

Global names: `generator.*`, `critic.*`, and `average.*` for the generator's exponential moving
average, from which pairs are sampled.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from common.arrays import Weights
from common.models.sizes import (
    CONTEXT_PX,
    FOLLOWS_REST,
    FOLLOWS_SHARE,
    KEEPS_PAINT,
    KOSSEN,
    LOOK_NUMBERS,
    MASK_FIRST,
    pair_halvings,
)
from common.models.weights import load_weights

PLANES = 2
GROUPS = 8
SLOPE = 0.2  # of LeakyReLU
GRAIN = 0.1  # of the image's range [-1, 1]: deviation of the first grain
LIFT = 0.05  # and of an image, and of what is marked in it, from one to the next


class PairSize(Protocol):
    """What a plan says about the generator and critic."""

    @property
    def architecture(self) -> str:
        """`small`, `kossen2022` or `mask-first`."""
        ...

    @property
    def width(self) -> int:
        """Channels of the critic's first layer."""
        ...

    @property
    def generator_width(self) -> int:
        """Channels of the generator's last layer but one."""
        ...

    @property
    def latent(self) -> int:
        """The length of a latent."""
        ...


class Critic(nn.Module):
    """Scores [N] of pairs [N, 2, S, S]; S is 32 (not `kossen2022`), 64, 96, 128 or 256.

    Of `mask-first`, `look` [6] is the mean look of real pairs, in its units.
    """

    def __init__(self, size_px: int, width: int, architecture: str = "small") -> None:
        super().__init__()
        kossen = architecture == KOSSEN
        levels = pair_halvings(size_px, architecture)

        # convolutions that halve the map and double the channels
        layers: list[nn.Module] = []
        before = PLANES
        for level in range(levels):
            after = width << level
            layers.append(nn.Conv2d(before, after, 4, stride=2, padding=1))
            if level:
                layers.append(_norm(after, kossen))
            layers.append(nn.LeakyReLU(SLOPE))
            before = after

        # the score: of the whole map, or of its 4x4 patches
        last = (size_px >> levels) if kossen else 4
        layers.append(nn.Conv2d(before, 1, last))
        self.layers = nn.Sequential(*layers)
        if kossen:
            _draw_weights(self)
        if architecture == MASK_FIRST:
            self.look = nn.Parameter(torch.zeros(LOOK_NUMBERS))

    def forward(self, pairs: Tensor) -> Tensor:
        scores: Tensor = self.layers(pairs)
        return scores.mean(dim=(1, 2, 3))


class Generator(nn.Module):
    """Pairs [N, 2, S, S] in about [-1, 1] of latents [N, z].

    It takes no other input, so no patient's data can enter here.
    """

    latent: int  # numbers in the latent of one pair

    def __init__(self, size_px: int, width: int, latent: int, architecture: str = "small") -> None:
        super().__init__()
        kossen = architecture == KOSSEN
        levels = pair_halvings(size_px, architecture)
        self.latent = latent
        self._side = size_px >> levels
        widest = width << (levels - 1)
        self.start = nn.Linear(latent, widest * self._side**2)
        layers = _transposed_layers if kossen else _upsampling_layers
        self.layers = nn.Sequential(*layers(width, levels))
        if kossen:
            _draw_weights(self)

    def scored(self) -> dict[str, Tensor]:
        """Return by name the parameters that follow the critic's scores."""
        return dict(self.named_parameters())

    def looking(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return by name the parameters that follow the critic's look: its share, and the rest.

        Only `mask-first` has some.
        """
        return {}, {}

    def forward(self, z: Tensor) -> Tensor:
        x = self.start(z)
        pairs: Tensor = self.layers(x.view(len(z), -1, self._side, self._side))
        return pairs


class MaskFirst(Generator):
    """Pairs [N, 2, S, S] of latents [N, z + S*S]: a mask of -1 and 1, then the image of that mask.

    The first z numbers of a latent become the mask and, blurred, what surrounds it; the other S*S
    are the grain of the image. The image knows the mask as it is drawn and all else through a
    window of `CONTEXT_PX` alone, so whatever is fine in it and no grain follows the mask.
    The critic's scores move the masks alone. Its look moves how much is marked, the tone of marked
    and unmarked pixels, and the grain.
    """

    def __init__(self, size_px: int, width: int, latent: int) -> None:
        super().__init__(size_px, width, latent)
        self.code = latent
        self.latent = latent + size_px**2
        self.layers = self.layers[:-1]
        self.mask = nn.Conv2d(width, 1, 3, padding=1)
        self.paint = nn.Sequential(
            nn.Conv2d(1 + width, width, 3, padding=1),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(width, width, 3, padding=1),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(width, 1, 3, padding=1),
        )
        self.grain = nn.Conv2d(1, 1, 3, padding=1, bias=False)
        self.tone = nn.Conv2d(4, 1, 1)  # of mask, both lifts and grain
        with torch.no_grad():
            self.grain.weight.zero_()
            self.grain.weight[0, 0, 1, 1] = GRAIN
            self.tone.weight.copy_(torch.tensor([0.0, LIFT, LIFT, 1.0]).view(1, 4, 1, 1))
            nn.init.zeros_(self.tone.bias)  # type: ignore[arg-type]

    def forward(self, z: Tensor) -> Tensor:
        features = self.features(z[:, : self.code])
        mask = _one_of_two(self.mask(features))
        numbers = z[:, self.code :].reshape(len(z), 1, *features.shape[2:])
        return torch.cat([self.painted(mask, features, numbers), mask], dim=1)

    def scored(self) -> dict[str, Tensor]:
        return {n: p for n, p in self.named_parameters() if not n.startswith(KEEPS_PAINT)}

    def looking(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return self._beginning(FOLLOWS_SHARE), self._beginning(FOLLOWS_REST)

    def _beginning(self, prefixes: tuple[str, ...]) -> dict[str, Tensor]:
        """The parameters whose names begin with one of these."""
        return {name: p for name, p in self.named_parameters() if name.startswith(prefixes)}

    def features(self, code: Tensor) -> Tensor:
        """Return features [N, width, S, S] of codes [N, z]."""
        x = self.start(code)
        features: Tensor = self.layers(x.view(len(code), -1, self._side, self._side))
        return features

    def painted(self, mask: Tensor, features: Tensor, numbers: Tensor | None = None) -> Tensor:
        """Return images [N, 1, S, S] of masks [N, 1, S, S] in [-1, 1].

        `numbers` [N, 1, S, S], normal, become the grain. Their sums over the upper and the lower
        half, which are normal too, lift or lower a whole image, and all that is marked in it. None
        stands for zeros.
        """
        context = _mean_around(features)
        if numbers is None:
            numbers = torch.zeros_like(mask)
        upper, lower = (half.mean((2, 3), keepdim=True) for half in numbers.chunk(2, dim=2))
        scale = mask.shape[-1] / math.sqrt(2)
        lifts = (scale * upper).expand_as(mask), scale * lower * (mask + 1) / 2
        tone = self.tone(torch.cat([mask, *lifts, self.grain(numbers)], dim=1))
        image: Tensor = self.paint(torch.cat([mask, context], dim=1)) + tone
        return image


def _mean_around(x: Tensor) -> Tensor:
    """Mean of maps [..., S, S] over the window of `CONTEXT_PX` around each pixel.

    As far as it is in the picture. Two products of matrices take a fraction of a pooling's time.
    """
    places = torch.arange(x.shape[-1], device=x.device)
    near = ((places - places[:, None]).abs() <= CONTEXT_PX // 2).to(x)
    window = near / near.sum(1, keepdim=True)
    return window @ x @ window.T


def _one_of_two(scores: Tensor) -> Tensor:
    """-1 or 1 by the sign of a score; its slope is that of tanh, or nothing could be learned."""
    soft = scores.tanh()
    hard = torch.where(scores > 0, 1.0, -1.0).to(soft)
    return hard + (soft - soft.detach())


def _norm(channels: int, kossen: bool) -> nn.Module:
    """The critic's normalisation."""
    if kossen:
        return nn.InstanceNorm2d(channels)
    return nn.GroupNorm(GROUPS, channels)


def _upsampling_layers(width: int, levels: int) -> Iterator[nn.Module]:
    """Nearest-neighbour upsampling and 3x3 convolutions, which leave no checkerboard.

    The last layer is linear, because a Tanh on the mask saturates and stops learning.
    """
    yield nn.GroupNorm(GROUPS, width << (levels - 1))
    yield nn.LeakyReLU(SLOPE)
    for level in reversed(range(levels)):
        after = width << max(level - 1, 0)
        yield nn.Upsample(scale_factor=2)
        yield nn.Conv2d(width << level, after, 3, padding=1)
        yield nn.GroupNorm(GROUPS, after)
        yield nn.LeakyReLU(SLOPE)
    yield nn.Conv2d(width, PLANES, 3, padding=1)


def _transposed_layers(width: int, levels: int) -> Iterator[nn.Module]:
    """The paper's transposed 4x4 convolutions and Tanh."""
    yield nn.GroupNorm(GROUPS, width << (levels - 1))
    yield nn.ReLU()
    for level in reversed(range(1, levels)):
        after = width << (level - 1)
        yield nn.ConvTranspose2d(width << level, after, 4, stride=2, padding=1)
        yield nn.GroupNorm(GROUPS, after)
        yield nn.ReLU()
    yield nn.ConvTranspose2d(width, PLANES, 4, stride=2, padding=1)
    yield nn.Tanh()


def _draw_weights(module: nn.Module) -> None:
    """Start every weight as N(0, 0.05), as the paper's code does."""
    for part in module.modules():
        if isinstance(part, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            nn.init.normal_(part.weight, 0.0, 0.05)


def build(plan: PairSize, size_px: int) -> tuple[Generator, Critic]:
    """Return the plan's generator and critic with random starting values."""
    generator = build_generator(size_px, plan.generator_width, plan.latent, plan.architecture)
    critic = Critic(size_px, plan.width, plan.architecture)
    return generator, critic


def build_generator(size_px: int, width: int, latent: int, architecture: str) -> Generator:
    """Return a generator of this architecture with random starting values."""
    if architecture == MASK_FIRST:
        return MaskFirst(size_px, width, latent)
    return Generator(size_px, width, latent, architecture)


def parameters_by_name(
    generator: Generator, average: Generator, critic: Critic
) -> dict[str, Tensor]:
    """Return all parameters by global name."""
    found: dict[str, Tensor] = {}
    for prefix, module in (("generator.", generator), ("average.", average), ("critic.", critic)):
        for name, parameter in module.named_parameters():
            found[prefix + name] = parameter
    return found


def load(weights: Weights, plan: PairSize, size_px: int) -> tuple[Generator, Generator, Critic]:
    """Return (generator, average, critic) of global weights.

    Raises RefusedError when they do not fit.
    """
    generator, critic = build(plan, size_px)
    average, _ = build(plan, size_px)
    for prefix, module in (("generator.", generator), ("average.", average), ("critic.", critic)):
        load_weights(module, weights, prefix)
    return generator, average, critic


def load_average(weights: Weights, plan: PairSize, size_px: int) -> Generator:
    """Return the generator that is sampled and released: `average.*`."""
    average, _ = build(plan, size_px)
    load_weights(average, weights, "average.")
    return average
