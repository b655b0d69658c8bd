"""StyleGAN2's synthesis network at 64 to 512 px (Karras et al. 2020): the generator of the paper.

In: codes W+ [N, L, latent], L = 2·log2(size_px) - 2. Out: images [N, 3, size_px, size_px].
Guarantees: the function of the weight-modulated form up to rounding, without weights per sample.
Not covered: what kohort trains or ships (common/models/stylegan.py). Noise maps are one fixed set
per model, as in the paper, so every image shares them: do not release such images.

Three savings: one 4×4 filter in place of two 1-D ones, the gain √2 folded into the next style, and
noise·strength + bias added at once.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import ConfigurationError
from common.models.sizes import style_count
from common.models.winograd import conv3x3

GAIN = math.sqrt(2)
CHANNEL_BASE = 32_768
MOST_CHANNELS = 512
LATENT = 512


class PaperLayer(nn.Module):
    """Weights of one styled 3×3 convolution, [cin] → [cout] at `size_px`: kernel, style, bias and a
    fixed noise map.
    """

    noise: Tensor

    def __init__(self, cin: int, cout: int, latent: int, size_px: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(cout, cin, 3, 3) / math.sqrt(9 * cin))
        self.style = nn.Linear(latent, cin)
        nn.init.normal_(self.style.weight, std=1 / math.sqrt(latent))
        nn.init.ones_(self.style.bias)
        self.bias = nn.Parameter(torch.zeros(cout))
        self.noise_strength = nn.Parameter(torch.tensor(0.1))
        self.register_buffer("noise", torch.randn(1, 1, size_px, size_px))


class PaperImage(nn.Module):
    """Weights of a styled 1×1 convolution to RGB."""

    def __init__(self, cin: int, latent: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, cin) / math.sqrt(cin))
        self.style = nn.Linear(latent, cin)
        nn.init.normal_(self.style.weight, std=1 / math.sqrt(latent))
        nn.init.ones_(self.style.bias)
        self.bias = nn.Parameter(torch.zeros(3))


class PaperGenerator(nn.Module):
    """StyleGAN2's synthesis network, 512 channels up to 64 px by default; forward + backward about
    32 GMAC at 64 px and 120 at 512 px (48 and 180 with per-sample weights).
    """

    def __init__(
        self,
        size_px: int,
        latent: int = LATENT,
        base: int = CHANNEL_BASE,
        most_channels: int = MOST_CHANNELS,
    ) -> None:
        super().__init__()
        self.size_px = size_px
        self.latent = latent
        self.layer_count = style_count(size_px)
        resolutions = [2**i for i in range(2, int(math.log2(size_px)) + 1)]
        wide = [max(1, min(base // r, most_channels)) for r in resolutions]
        self.constant = nn.Parameter(torch.randn(1, wide[0], 4, 4))
        self.first = PaperLayer(wide[0], wide[0], latent, 4)
        pairs = list(zip(itertools.pairwise(wide), resolutions[1:], strict=True))
        self.up = nn.ModuleList(PaperLayer(a, b, latent, r) for (a, b), r in pairs)
        self.same = nn.ModuleList(PaperLayer(b, b, latent, r) for (_, b), r in pairs)
        self.to_image = nn.ModuleList(PaperImage(c, latent) for c in wide)

    def layers(self) -> list[tuple[PaperLayer, int]]:
        """The 3×3 layers in order, each with its row of W+."""
        found = [(self.first, 0)]
        for i, (up, same) in enumerate(zip(self.up, self.same, strict=True)):
            assert isinstance(up, PaperLayer) and isinstance(same, PaperLayer)
            found += [(up, 2 * i + 1), (same, 2 * i + 2)]
        return found

    def synthesis(self, wplus: Tensor) -> Tensor:
        """Images [N, 3, S, S] for codes [N, L, latent]; raises ConfigurationError for a code of
        another shape.
        """
        if wplus.ndim != 3 or wplus.shape[1:] != (self.layer_count, self.latent):
            expected = f"[N, {self.layer_count}, {self.latent}]"
            raise ConfigurationError(
                f"paper generator: expected a code {expected}, got {list(wplus.shape)}"
            )
        x = self.constant.expand(len(wplus), -1, -1, -1)
        gain = 1.0
        image = None
        for position, (layer, row) in enumerate(self.layers()):
            x = _styled(layer, x, wplus[:, row], gain, up=position % 2 == 1)
            gain = GAIN  # of the activation before, folded into this layer's style
            if position % 2 == 0:
                part = self.to_image[position // 2]
                assert isinstance(part, PaperImage)
                seen = _to_image(part, x, wplus[:, row + 1])
                image = seen if image is None else _fir(image, 2) + seen
        assert image is not None
        return image


def _styled(layer: PaperLayer, x: Tensor, w: Tensor, gain: float, *, up: bool) -> Tensor:
    """LeakyReLU(0.2) of the styled convolution, without its gain √2, [N, cin, ·, ·] → [N, cout, r,
    r].
    """
    style = layer.style(w)
    scale = torch.rsqrt(style.square() @ layer.weight.square().sum((2, 3)).T + 1e-8)
    x = x * (gain * style)[:, :, None, None]
    if up:
        y = _fir(F.conv_transpose2d(x, layer.weight.transpose(0, 1), stride=2), 0)
    else:
        y = conv3x3(x, layer.weight)
    shift = layer.noise * layer.noise_strength + layer.bias[None, :, None, None]
    return F.leaky_relu(torch.addcmul(shift, y, scale[:, :, None, None]), 0.2, inplace=True)


def _to_image(part: PaperImage, x: Tensor, w: Tensor) -> Tensor:
    """RGB [N, 3, r, r]: a matrix product per image, so the feature map is not copied with its
    style.
    """
    weight = part.weight * (GAIN * part.style(w))[:, None, :]  # [N, 3, C]
    seen = torch.bmm(weight, x.flatten(2)) + part.bias[None, :, None]
    return seen.view(len(x), 3, *x.shape[2:])


def _fir(x: Tensor, stride: int) -> Tensor:
    """The [1, 3, 3, 1] low-pass filter as one depthwise 4×4 convolution; `stride` 2 doubles the
    size, 0 only filters what a transposed convolution made ([2r + 1] → [2r]).
    """
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=x.dtype, device=x.device)
    kernel = (taps[:, None] * taps / 16).expand(x.shape[1], 1, 4, 4)
    if stride:
        return F.conv_transpose2d(x, kernel, stride=stride, padding=1, groups=x.shape[1])
    return F.conv2d(x, kernel, padding=1, groups=x.shape[1])
