"""The image + mask WGAN: a generator of pairs and a critic (Kossen et al. 2022, corrected).

In: latents [N, z]; or pairs [N, 2, S, S] in [-1, 1], channel 0 the image, channel 1 the mask.
Out: pairs of the same form; or scores [N].
Guarantees: no module couples the items of a batch or keeps a buffer, so the critic may be trained
with per-patient gradients.

The plan chooses one of two architectures:
  small       4x4 convolutions of stride 2 with GroupNorm; 4x4 patches are scored and averaged.
              The critic of width 24 has 391,945 parameters at 64 px.
  kossen2022  the paper's shape: five convolutions with instance norm, one score for a pair.
              The critic of width 96 has 25.1 M parameters. Deviations: nothing in place; GroupNorm
              in place of BatchNorm in the generator; both channels in [-1, 1], threshold 0.

Global names: `generator.*`, `critic.*`, and `average.*` for the generator's exponential moving
average, from which pairs are sampled.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from torch import Tensor, nn

from common.arrays import Weights
from common.models.sizes import KOSSEN, pair_halvings
from common.models.weights import load_weights

PLANES = 2
GROUPS = 8


class PairSize(Protocol):
    """What a plan says about the generator and critic."""

    @property
    def architecture(self) -> str:
        """`small` or `kossen2022`."""
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
    """Scores [N] of pairs [N, 2, S, S]; S is 32 (`small` alone), 64, 96, 128 or 256."""

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
            layers.append(nn.LeakyReLU(0.2))
            before = after

        # the score: of the whole map, or of its 4x4 patches
        last = (size_px >> levels) if kossen else 4
        layers.append(nn.Conv2d(before, 1, last))
        self.layers = nn.Sequential(*layers)
        if kossen:
            _draw_weights(self)

    def forward(self, pairs: Tensor) -> Tensor:
        scores: Tensor = self.layers(pairs)
        return scores.mean(dim=(1, 2, 3))


class Generator(nn.Module):
    """Pairs [N, 2, S, S] in about [-1, 1] of latents [N, z].

    It takes no other input, so no patient's data can enter here.
    """

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

    def forward(self, z: Tensor) -> Tensor:
        x = self.start(z)
        pairs: Tensor = self.layers(x.view(len(z), -1, self._side, self._side))
        return pairs


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
    yield nn.LeakyReLU(0.2)
    for level in reversed(range(levels)):
        after = width << max(level - 1, 0)
        yield nn.Upsample(scale_factor=2)
        yield nn.Conv2d(width << level, after, 3, padding=1)
        yield nn.GroupNorm(GROUPS, after)
        yield nn.LeakyReLU(0.2)
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
    generator = Generator(size_px, plan.generator_width, plan.latent, plan.architecture)
    critic = Critic(size_px, plan.width, plan.architecture)
    return generator, critic


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
