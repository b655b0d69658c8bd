"""The features that the alignment compares: window Grams (style), activations (content).

Guarantees: the style filters are public constants, the same on every site.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor
from torch.nn import functional as F

from common.errors import ConfigurationError
from common.models.stylegan import Critic

# of the style filters, which are public constants
STYLE_CHANNELS = 24
STYLE_SEED = 20220
CONTENT_CELLS = 4  # a side of the grid of content


def style_features(x: Tensor) -> Tensor:
    """Return style features [N, 24, H, W] of images [N, C, H, W] in [-1, 1].

    Two 3×3 convolutions with fixed random filters and ReLU. The first filters have mean zero:
    brightness would dominate the texture in a Gram.
    """
    first, second = _filters(x.shape[1], x.device)
    x = F.relu(F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), first))
    return F.relu(F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), second))


def window_grams(features: Tensor, windows: int) -> Tensor:
    """Return the Gram matrices [N, P, C, C] of features [N, C, H, W], divided by C·h·w.

    P = windows² equal windows of h × w. Raises ConfigurationError when `windows` does not divide
    height and width.
    """
    n, c, height, width = features.shape
    if height % windows or width % windows:
        raise ConfigurationError(
            f"alignment: windows is {windows}; expected a divisor of {height} and {width}"
        )
    # windows as rows: [N·P, C, h·w]
    h = height // windows
    w = width // windows
    cells = features
    if features.dtype == torch.bfloat16:
        cells = features.float()
    cells = cells.reshape(n, c, windows, h, windows, w).permute(0, 2, 4, 1, 3, 5)
    cells = cells.reshape(n * windows**2, c, h * w)

    # their products, never in bfloat16
    with torch.autocast(features.device.type, enabled=False):
        return torch.bmm(cells, cells.transpose(1, 2)).div(c * h * w).reshape(n, windows**2, c, c)


def content_features(critic: Critic, x: Tensor) -> Tensor:
    """Return unit vectors [N, D]: the critic's last two activations on a 4×4 grid.

    Each is centred over the grid and normalised. Without centring, what all images share would hide
    where the disc and the vessels are.
    """
    taps = [F.adaptive_avg_pool2d(tap, CONTENT_CELLS) for tap in critic.features(x)[-2:]]
    centred = [(tap - tap.mean((2, 3), keepdim=True)).flatten(1) for tap in taps]
    return torch.cat([F.normalize(tap, dim=1) for tap in centred], dim=1) / math.sqrt(len(taps))


@functools.cache
def _filters(channels: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The fixed filters [24, C, 3, 3], each of mean zero over its window, and [24, 24, 3, 3].

    They are drawn on the CPU, the same on every site, and kept on the device.
    """
    random = torch.Generator().manual_seed(STYLE_SEED)
    shapes = ((STYLE_CHANNELS, channels, 3, 3), (STYLE_CHANNELS, STYLE_CHANNELS, 3, 3))
    filters = []
    for shape in shapes:
        empty = torch.empty(shape)
        filters.append(torch.nn.init.orthogonal_(empty, math.sqrt(2), generator=random))
    first = filters[0] - filters[0].mean((2, 3), keepdim=True)
    return first.to(device), filters[1].to(device)


def cosines(own: Tensor, grams: Tensor) -> Tensor:
    """Return cosines [M, P, P'] of one image's Grams [P, C, C] and each patient's [M, P', C, C]."""
    theirs = F.normalize(grams.flatten(2), dim=2)
    return F.normalize(own.flatten(1), dim=1) @ theirs.transpose(1, 2)
