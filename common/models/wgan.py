"""The image + mask WGAN: a generator of pairs and a critic, with their losses (Kossen et al. 2022, faults corrected).

In: latents float32 [N, z]; or pairs float32 [N, 2, S, S] in [-1, 1], channel 0 the image, channel 1 the mask. Out: pairs of
the same form; or scores [N]. Two architectures, `build` picks by the plan:
  small       critic 2-n-2n-4n-8n of 4x4 convolutions with stride 2, GroupNorm, LeakyReLU; the last map is scored by a 4x4
              convolution and averaged. n = 24: 391,945 parameters at 64 px
  kossen2022  the seed's shape: five convolutions 2-n-...-16n (n = 96: 25.1 M parameters) with instance norm, one score a
              pair; weights start as N(0, 0.05). Not in place, GroupNorm instead of BatchNorm in the generator, both channels in
              [-1, 1] with threshold 0 (the seed: mask in [0, 1], threshold 0.8)
Guaranteed: no module couples the items of a batch or keeps a buffer, so the critic may stand inside the private step.
Not: training (client/learn/train_wgan.py on site, server/pretrain/wgan.py on public pairs).

Global names: `generator.*`, `average.*` (the generator's exponential moving average: what is sampled), `critic.*`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import grad
from torch.nn import functional as F

from common.errors import Bug, ConfigurationError
from common.models.stylegan import load_weights

PLANES = 2
GROUPS = 8
PENALTY = 10.0
SAMPLE_BATCH = 64


class PairSize(Protocol):
    """What a plan says about the generator and critic."""

    @property
    def architecture(self) -> str: ...

    @property
    def width(self) -> int: ...

    @property
    def generator_width(self) -> int: ...

    @property
    def latent(self) -> int: ...


class Critic(nn.Module):
    """Scores [N] of pairs [N, 2, S, S]; S is 32 (`small` alone), 64, 96 or 128."""

    def __init__(self, size_px: int, width: int, architecture: str = "small") -> None:
        super().__init__()
        seed = architecture == "kossen2022"
        levels = _levels(size_px, architecture)
        layers: list[nn.Module] = []
        for level in range(levels):
            before, after = PLANES if level == 0 else width << (level - 1), width << level
            layers.append(nn.Conv2d(before, after, 4, stride=2, padding=1))
            if level:
                layers.append(nn.InstanceNorm2d(after) if seed else nn.GroupNorm(GROUPS, after))
            layers.append(nn.LeakyReLU(0.2))
        last = (size_px >> levels) if seed else 4
        layers.append(nn.Conv2d(width << (levels - 1), 1, last))
        self.layers = nn.Sequential(*layers)
        _start(self, seed)

    def forward(self, pairs: Tensor) -> Tensor:
        scores: Tensor = self.layers(pairs)
        return scores.mean(dim=(1, 2, 3))


class Generator(nn.Module):
    """Pairs [N, 2, S, S] of latents [N, z], in about [-1, 1]. It takes nothing else: no patient can enter here."""

    def __init__(self, size_px: int, width: int, latent: int, architecture: str = "small") -> None:
        super().__init__()
        seed = architecture == "kossen2022"
        levels = _levels(size_px, architecture)
        self.latent, self._side = latent, size_px >> levels
        widest = width << (levels - 1)
        self.start = nn.Linear(latent, widest * self._side**2)
        self.layers = nn.Sequential(
            *(_transposed(width, levels) if seed else _upsampled(width, levels))
        )
        _start(self, seed)

    def forward(self, z: Tensor) -> Tensor:
        x = self.start(z)
        pairs: Tensor = self.layers(x.view(len(z), -1, self._side, self._side))
        return pairs


def _upsampled(width: int, levels: int) -> Iterator[nn.Module]:
    """Nearest neighbour and 3x3 convolutions: no checkerboard; a linear end, since a mask's Tanh saturates and stops learning."""
    yield from (nn.GroupNorm(GROUPS, width << (levels - 1)), nn.LeakyReLU(0.2))
    for level in reversed(range(levels)):
        after = width << max(level - 1, 0)
        yield from (nn.Upsample(scale_factor=2), nn.Conv2d(width << level, after, 3, padding=1))
        yield from (nn.GroupNorm(GROUPS, after), nn.LeakyReLU(0.2))
    yield nn.Conv2d(width, PLANES, 3, padding=1)


def _transposed(width: int, levels: int) -> Iterator[nn.Module]:
    """The seed's transposed 4x4 convolutions and Tanh."""
    yield from (nn.GroupNorm(GROUPS, width << (levels - 1)), nn.ReLU())
    for level in reversed(range(levels)):
        after = width << (level - 1) if level else PLANES
        yield nn.ConvTranspose2d(width << level, after, 4, stride=2, padding=1)
        yield from (nn.GroupNorm(GROUPS, after), nn.ReLU()) if level else (nn.Tanh(),)


def _levels(size_px: int, architecture: str) -> int:
    """How often the picture is halved: to a map of 4 (6 at 96 px, 8 at 128 px), the seed's to 3 at 96 px."""
    if size_px not in (32, 64, 96, 128) or architecture not in ("small", "kossen2022"):
        raise ConfigurationError(
            f"wgan: expected 32, 64, 96 or 128 px, small or kossen2022; got {size_px}, {architecture}"
        )
    if architecture == "kossen2022" and size_px == 32:
        raise ConfigurationError(
            "wgan: kossen2022 at 32 px: its instance norm would see one pixel",
            hint="64 px or more, or small",
        )
    if architecture == "kossen2022":
        return 5
    return 3 if size_px == 32 else 4


def _start(module: nn.Module, seed: bool) -> None:
    """The seed's N(0, 0.05) for its architecture; torch's own starting values otherwise."""
    if seed:
        for part in module.modules():
            if isinstance(part, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
                nn.init.normal_(part.weight, 0.0, 0.05)


# --- losses -------------------------------------------------------------------------------------------------------------


def critic_loss(real: Tensor, fake: Tensor, kind: str) -> Tensor:
    """Mean over the pairs of scores real [m] and fake [m·K]; raises Bug unless every item has as many fakes.

    `wgan` and `wgan-gp` D(f) - D(x) (the penalty is `gradient_penalty`); `hinge` relu(1 - D(x)) + relu(1 + D(f)); `logistic`
    softplus(-D(x)) + softplus(D(f)). It falls when real scores rise.
    """
    if len(real) == 0 or len(fake) == 0 or len(fake) % len(real):
        raise Bug(f"wgan: {len(real)} items and {len(fake)} fakes cannot be paired")
    if kind == "hinge":
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean()
    if kind == "logistic":
        return F.softplus(-real).mean() + F.softplus(fake).mean()
    if kind in ("wgan", "wgan-gp"):
        return fake.mean() - real.mean()
    raise ConfigurationError(f"wgan: loss: expected wgan, wgan-gp, hinge or logistic, got {kind!r}")


def gradient_penalty(score: Any, items: Tensor, fakes: Tensor, mix: Tensor) -> Tensor:
    """10·mean (|grad D(e·x + (1 - e)·f)| - 1)^2 (Gulrajani et al. 2017) over pairs items, fakes [m, C, H, W], mix e [m].

    `score` maps a batch to scores [m]. By torch.func, so that it can stand inside a per-patient gradient.
    """
    between = mix[:, None, None, None] * items + (1 - mix[:, None, None, None]) * fakes
    slopes: Tensor = grad(lambda x: score(x).sum())(between)
    norms = (slopes.flatten(1).square().sum(1) + 1e-12).sqrt()
    return PENALTY * (norms - 1).square().mean()


def generator_loss(fake: Tensor, kind: str) -> Tensor:
    """-D(f), or softplus(-D(f)) for `logistic`, averaged over scores [n]."""
    return F.softplus(-fake).mean() if kind == "logistic" else -fake.mean()


# --- a plan's networks and their weights ----------------------------------------------------------------------------------


def build(plan: PairSize, size_px: int) -> tuple[Generator, Critic]:
    """The plan's generator and critic with random starting values."""
    return (
        Generator(size_px, plan.generator_width, plan.latent, plan.architecture),
        Critic(size_px, plan.width, plan.architecture),
    )


def named(generator: Generator, average: Generator, critic: Critic) -> dict[str, Tensor]:
    """All parameters by global name."""
    parts = {"generator.": generator, "average.": average, "critic.": critic}
    return {
        prefix + name: p
        for prefix, module in parts.items()
        for name, p in module.named_parameters()
    }


def load(
    weights: Mapping[str, NDArray[Any]], plan: PairSize, size_px: int
) -> tuple[Generator, Generator, Critic]:
    """(generator, average, critic) of global weights. Raises RefusedError when a tensor is missing or of another shape."""
    generator, critic = build(plan, size_px)
    average, _ = build(plan, size_px)
    for prefix, module in (("generator.", generator), ("average.", average), ("critic.", critic)):
        load_weights(module, weights, prefix)
    return generator, average, critic


def load_average(weights: Mapping[str, NDArray[Any]], plan: PairSize, size_px: int) -> Generator:
    """The generator that is sampled and released: `average.*`."""
    average, _ = build(plan, size_px)
    load_weights(average, weights, "average.")
    return average


# --- pairs ----------------------------------------------------------------------------------------------------------------


def to_unit(pairs: NDArray[np.uint8]) -> Tensor:
    """float32 [N, 2, H, W] in [-1, 1] of uint8 pairs [N, H, W, 2] (mask 0 or 255)."""
    return torch.from_numpy(np.ascontiguousarray(pairs)).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pairs(x: Tensor) -> NDArray[np.uint8]:
    """uint8 [N, H, W, 2] of pairs in [-1, 1]: the image to 8 bit, the mask to 0 or 255 at threshold 0."""
    image = ((x[:, 0].clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    mask = (x[:, 1] > 0).to(torch.uint8) * 255
    found: NDArray[np.uint8] = torch.stack([image, mask], dim=-1).cpu().numpy()
    return found


@torch.no_grad()
def sample(generator: Generator, count: int, random: torch.Generator) -> NDArray[np.uint8]:
    """`count` pairs uint8 [count, S, S, 2] of fresh latents."""
    return np.concatenate(
        [to_pairs(generator(z)) for z in _latents(generator.latent, count, random)]
    )


def _latents(latent: int, count: int, random: torch.Generator) -> Iterator[Tensor]:
    """Latents [n, z] in batches."""
    for start in range(0, count, SAMPLE_BATCH):
        yield torch.randn(min(SAMPLE_BATCH, count - start), latent, generator=random)
