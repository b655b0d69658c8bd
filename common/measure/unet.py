"""The half U-Net that segments images to measure pairs, and its loss.

In: images [N, 1, H, W] float32, standardised, H and W divisible by 16.
Out: logits [N, 1, H, W]; the mask is logit > 0.
Guarantees: no buffers and no coupling of the items of a batch.
Not covered: normalisation layers, pretrained weights, volumes in 3D.
Sources: Ronneberger et al. 2015 with half the channels. At width 32 it has 7,846,081 parameters, as
the network with which Kossen et al. 2022 measured their pairs (Livne et al. 2019).
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEVELS = 5
MULTIPLE_PX = 2 ** (LEVELS - 1)


class Level(nn.Sequential):
    """Two 3×3 convolutions with ReLU, dropout between them: [N, cin, H, W] to [N, cout, H, W]."""

    def __init__(self, cin: int, cout: int, dropout: float) -> None:
        first = nn.Conv2d(cin, cout, 3, padding=1)
        second = nn.Conv2d(cout, cout, 3, padding=1)
        for layer in (first, second):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
        super().__init__(first, nn.ReLU(), nn.Dropout(dropout), second, nn.ReLU())


class UNet(nn.Module):
    """Half U-Net of five levels: [N, 1, H, W] to logits [N, 1, H, W].

    The first level has `width` channels, each further one twice as many. Upsampling repeats pixels.
    """

    def __init__(self, width: int = 32, dropout: float = 0.0) -> None:
        super().__init__()
        down = [1, *(width * 2**i for i in range(LEVELS))]
        self.down = nn.ModuleList(Level(cin, cout, dropout) for cin, cout in pairwise(down))
        self.up = nn.ModuleList(
            Level(low + high, high, dropout) for high, low in reversed(list(pairwise(down[1:])))
        )
        self.head = nn.Conv2d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits; raises ValueError unless height and width are divisible by 16."""
        if x.shape[-1] % MULTIPLE_PX or x.shape[-2] % MULTIPLE_PX:
            raise ValueError(
                f"UNet: height and width must be divisible by {MULTIPLE_PX}, "
                f"got {tuple(x.shape[-2:])}"
            )
        # down: each level halves the map
        skips: list[Tensor] = []
        for i, level in enumerate(self.down):
            x = level(x if i == 0 else F.max_pool2d(x, 2))
            skips.append(x)

        # up: each level doubles the map and sees that of the way down
        for level, skip in zip(self.up, reversed(skips[:-1]), strict=True):
            x = level(torch.cat([F.interpolate(x, scale_factor=2.0), skip], dim=1))
        logits: Tensor = self.head(x)
        return logits


def dice_loss(logits: Tensor, masks: Tensor, smooth: float = 1.0) -> Tensor:
    """Return 1 - (2Σpg + s)/(Σp + Σg + s) over the whole batch (Milletari et al. 2016).

    p = sigmoid(logits), g = masks in {0, 1}, s = `smooth`. The sums are over the whole batch, so
    that an image without foreground has no gradient of its own scale.
    """
    p = torch.sigmoid(logits)
    return 1 - (2 * (p * masks).sum() + smooth) / (p.sum() + masks.sum() + smooth)
