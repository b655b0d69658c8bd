"""The image generator and its critic: style-based, plain torch operations, one dial for size.

In: latents `z` [N, latent] or codes W+ [N, L, latent], L = 2·log2(size_px) − 2 (10, 12, 14, 16 at 64, 128, 256, 512 px).
Out: images [N, channels, size_px, size_px], float32, trained towards [−1, 1] and not clamped (`to_uint8` clamps).
Guaranteed: no buffer, no state that a forward pass changes, no randomness that is not passed in; the critic couples no
two items of a batch (GroupNorm), so a per-patient gradient is well defined and `private_step.check_model` accepts it.
Not: no compiled extension, no path-length or style-mixing regularisation; nothing here is differentially private.

Sources: StyleGAN2 (Karras et al. 2020), with activation modulation instead of per-sample weights
(methods/ksalsa.md 3.1: y = conv(x·s, W)·d, d = rsqrt(s² · ΣW² + 1e-8)) and the first convolution of a block applied
before the upsampling (a quarter of the work); critic: methods/dp-training.md section 6.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import ConfigurationError, RefusedError
from common.models.winograd import conv3x3

Noise = Literal["random"] | torch.Generator | None
GAIN = math.sqrt(2)
SIZES_PX = (16, 32, 64, 128, 256, 512)


class GeneratorSize(Protocol):
    """What a plan says about the generator and critic (`common.study.training.GanPlan`, `server.pretrain.gan_plan.PretrainPlan`)."""

    @property
    def width(self) -> int: ...

    @property
    def latent(self) -> int: ...


def layer_count(size_px: int) -> int:
    """Number of style vectors L of a W+ code: 2·log2(size_px) − 2. Raises ConfigurationError for other sizes."""
    if size_px not in SIZES_PX:
        raise ConfigurationError(f"size_px: expected one of {SIZES_PX}, got {size_px}")
    return 2 * int(math.log2(size_px)) - 2


class ModulatedConv(nn.Module):
    """Convolution whose input channels are scaled by a style, [N, cin, H, W], [N, latent] → [N, cout, H, W]."""

    def __init__(
        self, cin: int, cout: int, latent: int, kernel: int = 3, *, demodulate: bool = True
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(
            torch.randn(cout, cin, kernel, kernel) / math.sqrt(cin * kernel * kernel)
        )
        self.style = nn.Linear(latent, cin)
        nn.init.normal_(self.style.weight, std=1 / math.sqrt(latent))
        nn.init.ones_(self.style.bias)
        self.demodulate = demodulate

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        style = self.style(w)
        if self.weight.shape[-1] == 1:
            return self._pointwise(x, style)
        y = conv3x3(x * style[:, :, None, None], self.weight)
        return y * self.gain(style)[:, :, None, None] if self.demodulate else y

    def gain(self, style: Tensor) -> Tensor:
        """What demodulation multiplies each output channel with, [N, cout]."""
        return torch.rsqrt(style.square() @ self.weight.square().sum((2, 3)).T + 1e-8)

    def _pointwise(self, x: Tensor, style: Tensor) -> Tensor:
        """1×1: the style goes into the few weights, not into the many pixels."""
        weight = self.weight[:, :, 0, 0] * style[:, None, :]  # [N, cout, cin]
        if self.demodulate:
            weight = weight * self.gain(style)[:, :, None]
        return torch.bmm(weight, x.flatten(2)).view(len(x), -1, *x.shape[2:])


class StyledLayer(nn.Module):
    """Modulated 3×3 convolution, optional ×2 upsampling, noise, bias and LeakyReLU(0.2)·√2."""

    def __init__(self, cin: int, cout: int, latent: int, *, upsample: bool = False) -> None:
        super().__init__()
        self.conv = ModulatedConv(cin, cout, latent)
        self.bias = nn.Parameter(torch.zeros(cout))
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.upsample = upsample

    def forward(self, x: Tensor, w: Tensor, noise: Noise) -> Tensor:
        style = self.conv.style(w)
        y = conv3x3(x * style[:, :, None, None], self.conv.weight)
        # √2 here and in the shift: LeakyReLU is homogeneous
        gain = (GAIN * self.conv.gain(style))[:, :, None, None]
        shift = GAIN * self.bias[None, :, None, None]
        if self.upsample:
            y = upsample(y * gain)
        if noise is not None:
            generator = noise if isinstance(noise, torch.Generator) else None
            maps = torch.randn((len(y), 1, *y.shape[2:]), generator=generator, dtype=y.dtype)
            shift = shift + GAIN * self.noise_strength * maps.to(y.device)
        return F.leaky_relu(
            y + shift if self.upsample else torch.addcmul(shift, y, gain), 0.2, inplace=True
        )


def upsample(x: Tensor) -> Tensor:
    """Twice the height and width, bilinear."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


class MappingNetwork(nn.Module):
    """z [N, latent] → w [N, latent]: z normalised to unit mean square, then four linear layers, the last one bare."""

    def __init__(self, latent: int, layers: int = 4) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(latent, latent) for _ in range(layers))
        for layer in self.layers:
            assert isinstance(layer, nn.Linear)
            nn.init.normal_(layer.weight, std=math.sqrt(2 / latent))
            nn.init.zeros_(layer.bias)

    def forward(self, z: Tensor) -> Tensor:
        x = z * torch.rsqrt(z.square().mean(1, keepdim=True) + 1e-8)
        for layer in self.layers[:-1]:
            x = F.leaky_relu(layer(x), 0.2)
        return self.layers[-1](x)  # type: ignore[no-any-return]


class Generator(nn.Module):
    """Style-based generator with skip connections to RGB.

    `width` is the number of channels at full resolution; it doubles with every halving of the resolution up to
    4·`width`. At 64 px, width 32, latent 128: 1.1 M parameters, 0.17 GMAC an image.
    """

    def __init__(self, size_px: int, channels: int, width: int, latent: int) -> None:
        super().__init__()
        self.size_px, self.channels, self.width, self.latent = size_px, channels, width, latent
        self.layer_count = layer_count(size_px)
        self.mapping = MappingNetwork(latent)
        resolutions = [2**i for i in range(2, int(math.log2(size_px)) + 1)]
        wide = [min(width * size_px // r, 4 * width) for r in resolutions]
        self.constant = nn.Parameter(torch.randn(1, wide[0], 4, 4))
        self.first = StyledLayer(wide[0], wide[0], latent)
        self.up = nn.ModuleList(
            StyledLayer(a, b, latent, upsample=True) for a, b in itertools.pairwise(wide)
        )
        self.same = nn.ModuleList(StyledLayer(b, b, latent) for b in wide[1:])
        self.to_image = nn.ModuleList(
            ModulatedConv(b, channels, latent, 1, demodulate=False) for b in wide
        )
        self.image_bias = nn.Parameter(torch.zeros(channels))

    def broadcast(self, w: Tensor) -> Tensor:
        """The W+ code [N, L, latent] that uses one w [N, latent] in every layer."""
        return w[:, None, :].expand(-1, self.layer_count, -1)

    def synthesis(self, wplus: Tensor, noise: Noise = None) -> Tensor:
        """Images [N, channels, S, S] for codes [N, L, latent].

        `noise`: None (no noise maps: the mean texture), "random" (torch's global generator) or a torch.Generator;
        the maps are drawn on the CPU, fresh for each image. Raises ConfigurationError for a code of another shape.
        """
        if wplus.ndim != 3 or wplus.shape[1:] != (self.layer_count, self.latent):
            expected = f"[N, {self.layer_count}, {self.latent}]"
            raise ConfigurationError(
                f"generator.synthesis: expected a code {expected}, got {list(wplus.shape)}"
            )
        x = self.first(self.constant.expand(len(wplus), -1, -1, -1), wplus[:, 0], noise)
        image: Tensor = self.to_image[0](x, wplus[:, 1])
        for i, (up, same) in enumerate(zip(self.up, self.same, strict=True)):
            x = up(x, wplus[:, 2 * i + 1], noise)
            x = same(x, wplus[:, 2 * i + 2], noise)
            image = upsample(image) + self.to_image[i + 1](x, wplus[:, 2 * i + 3])
        return image + self.image_bias[None, :, None, None]

    def styled(self) -> Iterator[tuple[ModulatedConv, int]]:
        """Every modulated convolution with the layer of W+ that styles it (`synthesis`)."""
        layers = {"first.conv": 0, "to_image.0": 1}
        for i in range(len(self.up)):
            layers |= {
                f"up.{i}.conv": 2 * i + 1,
                f"same.{i}.conv": 2 * i + 2,
                f"to_image.{i + 1}": 2 * i + 3,
            }
        for name, layer in layers.items():
            part = self.get_submodule(name)
            assert isinstance(part, ModulatedConv)
            yield part, layer

    def forward(self, z: Tensor, noise: Noise = None) -> Tensor:
        """Images [N, channels, S, S] for latents z [N, latent] ~ N(0, I)."""
        return self.synthesis(self.broadcast(self.mapping(z)), noise)


class Critic(nn.Module):
    """Scores [N] of images [N, channels, S, S]; 4×4 stride-2 convolutions, GroupNorm from the second on.

    It sees each image twice: as it is, and its fine structure five times enlarged (`with_detail`). Without that a small
    critic took a blurred photograph for a sharp one for thousands of steps: vessels are 1–2 % of the grey range.
    The base n is 3/4 of the plan's `width` (223 k parameters at 64 px, width 24), doubled per layer up to 8n.
    """

    def __init__(self, size_px: int, channels: int, width: int) -> None:
        super().__init__()
        layer_count(size_px)  # refuses an unknown size
        base = max(1, 3 * width // 4)
        depth = int(math.log2(size_px)) - 2
        wide = [2 * channels] + [min(base * 2**i, 8 * base) for i in range(depth)]
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(cin, cout, 4, stride=2, padding=1),
                *([nn.GroupNorm(math.gcd(8, cout), cout)] if i else []),
                nn.LeakyReLU(0.2, inplace=False),
            )
            for i, (cin, cout) in enumerate(itertools.pairwise(wide))
        )
        self.score = nn.Conv2d(wide[-1], 1, 4)
        for conv in (part for part in self.modules() if isinstance(part, nn.Conv2d)):
            nn.init.kaiming_normal_(conv.weight, a=0.2)
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)

    @staticmethod
    def with_detail(x: Tensor) -> Tensor:
        """[N, 2·channels, S, S]: the images, and five times their difference from a local mean (4×4 px, bilinear)."""
        mean = F.interpolate(
            F.avg_pool2d(x, 4), scale_factor=4, mode="bilinear", align_corners=False
        )
        return torch.cat([x, 5.0 * (x - mean)], 1)

    def features(self, x: Tensor) -> list[Tensor]:
        """Activations after each block, from [N, n, S/2, S/2] down to [N, ·, 4, 4]."""
        taps, x = [], self.with_detail(x)
        for block in self.blocks:
            x = block(x)
            taps.append(x)
        return taps

    def forward(self, x: Tensor) -> Tensor:
        return self.score(self.features(x)[-1]).mean((1, 2, 3))  # type: ignore[no-any-return]


def to_unit(images: np.ndarray | Tensor) -> Tensor:
    """float32 [N, C, H, W] in [−1, 1] of uint8 [N, H, W, C]."""
    tensor = torch.as_tensor(
        np.require(images, requirements=["C", "W"]) if isinstance(images, np.ndarray) else images
    )
    return tensor.permute(0, 3, 1, 2).to(torch.float32).div(127.5).sub(1.0)


def to_uint8(images: Tensor) -> np.ndarray:
    """uint8 [N, H, W, C] of float [N, C, H, W]; values beyond [−1, 1] are clamped, non-finite ones become 0 (black)."""
    finite = torch.nan_to_num(images.detach().float(), nan=-1.0).clamp(-1, 1)
    return np.asarray(
        finite.add(1).mul(127.5).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu()
    )


def numpy_weights(module: nn.Module, prefix: str) -> dict[str, np.ndarray]:
    """The module's parameters as float32 arrays named `prefix` + name (`generator.`, `critic.`, `encoder.`)."""
    return {
        prefix + name: p.detach().to("cpu", torch.float32).numpy().copy()
        for name, p in module.named_parameters()
    }


def load_weights(module: nn.Module, weights: Mapping[str, np.ndarray], prefix: str) -> None:
    """Copies `weights[prefix + name]` into the module; other prefixes are ignored.

    Raises RefusedError, before anything is copied, for weights that are missing, unknown, of another shape or not finite.
    """
    own = dict(module.named_parameters())
    given = {
        name[len(prefix) :]: value for name, value in weights.items() if name.startswith(prefix)
    }
    problems = [f"{prefix}{name}: missing" for name in sorted(own.keys() - given.keys())]
    problems += [
        f"{prefix}{name}: not part of this model" for name in sorted(given.keys() - own.keys())
    ]
    for name in sorted(own.keys() & given.keys()):
        if tuple(given[name].shape) != tuple(own[name].shape):
            problems.append(
                f"{prefix}{name}: expected {tuple(own[name].shape)}, got {tuple(given[name].shape)}"
            )
        elif not np.isfinite(np.asarray(given[name], dtype=np.float32)).all():
            problems.append(f"{prefix}{name}: not finite")
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise RefusedError(
            f"checkpoint does not fit the planned model: {'; '.join(problems[:3])}{more}",
            hint="the plan's size_px, channels, width and latent must be those that the checkpoint was trained with",
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(torch.as_tensor(np.asarray(given[name], dtype=np.float32)))


def load_generator(
    weights: Mapping[str, np.ndarray], plan: GeneratorSize, size_px: int, channels: int
) -> Generator:
    """The planned generator with `generator.*` of `weights`; raises RefusedError if they do not fit."""
    generator = Generator(size_px, channels, plan.width, plan.latent)
    load_weights(generator, weights, "generator.")
    return generator


def load_critic(
    weights: Mapping[str, np.ndarray], plan: GeneratorSize, size_px: int, channels: int
) -> Critic:
    """The planned critic with `critic.*` of `weights`; raises RefusedError if they do not fit."""
    critic = Critic(size_px, channels, plan.width)
    load_weights(critic, weights, "critic.")
    return critic
