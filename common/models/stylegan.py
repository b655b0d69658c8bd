"""The style-based image generator and its critic, scaled by one size.

In: latents z [N, latent] or codes W+ [N, L, latent], L by `style_count` (sizes.py).
Out: images [N, channels, S, S] in about [-1, 1], not clamped; scores [N].
Guarantees: no buffer, and no state that a forward pass changes. The critic couples no two items of
a batch, so a per-patient gradient is well defined.
Not covered: differential privacy; path-length and style-mixing regularisation.
Source: Karras et al. 2020 (StyleGAN2). Deviations: activations are modulated, not per-sample
weights; a block's first convolution comes before the upsampling, at a quarter of the work.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.arrays import Weights
from common.errors import ConfigurationError
from common.models.draws import draw_normal
from common.models.sizes import generator_channels, map_sides, style_count
from common.models.weights import load_weights
from common.models.winograd import conv3x3

Noise = Literal["random"] | torch.Generator | None
GAIN = math.sqrt(2)


class GeneratorSize(Protocol):
    """What a plan says about the generator and critic."""

    @property
    def width(self) -> int:
        """Channels at full resolution."""
        ...

    @property
    def latent(self) -> int:
        """The length of a latent."""
        ...


class ModulatedConv(nn.Module):
    """A convolution whose input channels are scaled by a style.

    [N, cin, H, W] and [N, latent] give [N, cout, H, W]: y = conv(x·s, W)·d with
    d = rsqrt(s² · ΣW² + 1e-8).
    """

    def __init__(
        self, cin: int, cout: int, latent: int, kernel: int = 3, *, demodulate: bool = True
    ) -> None:
        super().__init__()
        fan_in = cin * kernel * kernel
        self.weight = nn.Parameter(torch.randn(cout, cin, kernel, kernel) / math.sqrt(fan_in))
        self.style = nn.Linear(latent, cin)
        nn.init.normal_(self.style.weight, std=1 / math.sqrt(latent))
        nn.init.ones_(self.style.bias)
        self.demodulate = demodulate

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        style = self.style(w)
        if self.weight.shape[-1] == 1:
            return self._pointwise(x, style)
        y = conv3x3(x * style[:, :, None, None], self.weight)
        if not self.demodulate:
            return y
        return y * self.gain(style)[:, :, None, None]

    def gain(self, style: Tensor) -> Tensor:
        """Return the factor of each output channel that demodulation applies, [N, cout]."""
        return torch.rsqrt(style.square() @ self.weight.square().sum((2, 3)).T + 1e-8)

    def _pointwise(self, x: Tensor, style: Tensor) -> Tensor:
        """The 1×1 case: the style scales the few weights, not the many pixels."""
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
        # the modulated convolution; √2 may stand before LeakyReLU, in the gain and in the shift
        style = self.conv.style(w)
        y = conv3x3(x * style[:, :, None, None], self.conv.weight)
        gain = (GAIN * self.conv.gain(style))[:, :, None, None]
        shift = GAIN * self.bias[None, :, None, None]
        if self.upsample:
            y = upsample(y * gain)

        # noise and bias
        if noise is not None:
            generator = noise if isinstance(noise, torch.Generator) else None
            maps = draw_normal((len(y), 1, *y.shape[2:]), generator, y.device, y.dtype)
            shift = shift + GAIN * self.noise_strength * maps
        y = y + shift if self.upsample else torch.addcmul(shift, y, gain)
        return F.leaky_relu(y, 0.2, inplace=True)


def upsample(x: Tensor) -> Tensor:
    """Return x at twice the height and width, bilinear."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


class MappingNetwork(nn.Module):
    """z [N, latent] to w [N, latent].

    z is normalised to unit mean square; four linear layers follow, the last without activation.
    """

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

    `width` is the number of channels at full resolution; it doubles with every halving of the
    resolution, up to 4·`width`, beyond 64 px further (sizes.py). At 64 px, width 32, latent 128:
    1.1 M parameters, 0.17 GMAC an image.
    """

    def __init__(self, size_px: int, channels: int, width: int, latent: int) -> None:
        super().__init__()
        self.size_px = size_px
        self.channels = channels
        self.width = width
        self.latent = latent
        self.layer_count = style_count(size_px)
        self.mapping = MappingNetwork(latent)

        # channels from the smallest map up to the full resolution
        sides = map_sides(size_px)
        wide = generator_channels(size_px, width)

        # the layers
        self.constant = nn.Parameter(torch.randn(1, wide[0], sides[0], sides[0]))
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
        """Return the W+ code [N, L, latent] that uses one w [N, latent] in every layer."""
        return w[:, None, :].expand(-1, self.layer_count, -1)

    def synthesis(self, wplus: Tensor, noise: Noise = None) -> Tensor:
        """Return images [N, channels, S, S] for codes [N, L, latent].

        `noise` is None (no noise maps: the mean texture), "random" (torch's global generator) or a
        torch.Generator. The maps are drawn where that generator is, fresh for each image.
        Raises ConfigurationError for a code of another shape.
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

    def modulated_convolutions(self) -> Iterator[tuple[ModulatedConv, int]]:
        """Yield every modulated convolution with the layer of W+ that styles it."""
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
        """Return images [N, channels, S, S] for latents z [N, latent] ~ N(0, I)."""
        return self.synthesis(self.broadcast(self.mapping(z)), noise)


class Critic(nn.Module):
    """Scores [N] of images [N, channels, S, S].

    4×4 convolutions of stride 2, GroupNorm from the second on. The base n is 3/4 of the plan's
    `width`; it doubles per layer, up to 8n. At 64 px, width 24: 223 k parameters.

    It sees each image and its fine structure at five times the contrast (`with_detail`). Vessels
    are 1 to 2 % of the grey range: without this, a small critic takes thousands of steps to tell a
    blurred photograph from a sharp one.
    """

    def __init__(self, size_px: int, channels: int, width: int) -> None:
        super().__init__()
        # blocks that halve the resolution, down to 4×4 px (6×6 px of 96 px)
        base = max(1, 3 * width // 4)
        depth = len(map_sides(size_px)) - 1
        wide = [2 * channels] + [min(base * 2**i, 8 * base) for i in range(depth)]
        self.blocks = nn.ModuleList()
        for i, (cin, cout) in enumerate(itertools.pairwise(wide)):
            layers: list[nn.Module] = [nn.Conv2d(cin, cout, 4, stride=2, padding=1)]
            if i:
                layers.append(nn.GroupNorm(math.gcd(8, cout), cout))
            layers.append(nn.LeakyReLU(0.2, inplace=False))
            self.blocks.append(nn.Sequential(*layers))
        self.score = nn.Conv2d(wide[-1], 1, 4)

        # starting values
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, a=0.2)
                assert part.bias is not None
                nn.init.zeros_(part.bias)

    @staticmethod
    def with_detail(x: Tensor) -> Tensor:
        """Return [N, 2·channels, S, S]: the images, and their fine structure.

        The fine structure is five times the difference from a local mean of 4×4 px.
        """
        coarse = F.avg_pool2d(x, 4)
        mean = F.interpolate(coarse, scale_factor=4, mode="bilinear", align_corners=False)
        return torch.cat([x, 5.0 * (x - mean)], 1)

    def features(self, x: Tensor) -> list[Tensor]:
        """Return the activations after each block, from [N, n, S/2, S/2] to the smallest."""
        taps = []
        x = self.with_detail(x)
        for block in self.blocks:
            x = block(x)
            taps.append(x)
        return taps

    def forward(self, x: Tensor) -> Tensor:
        return self.score(self.features(x)[-1]).mean((1, 2, 3))  # type: ignore[no-any-return]


def load_generator(weights: Weights, plan: GeneratorSize, size_px: int, channels: int) -> Generator:
    """Return the planned generator with `generator.*` of `weights`.

    Raises RefusedError if they do not fit.
    """
    generator = Generator(size_px, channels, plan.width, plan.latent)
    load_weights(generator, weights, "generator.")
    return generator


def load_critic(weights: Weights, plan: GeneratorSize, size_px: int, channels: int) -> Critic:
    """Return the planned critic with `critic.*` of `weights`.

    Raises RefusedError if they do not fit.
    """
    critic = Critic(size_px, channels, plan.width)
    load_weights(critic, weights, "critic.")
    return critic
