"""EfficientNet-Lite0 without its classifier, its normalisations folded into the convolutions.

In: float [N, 3, H, W], normalised as ImageNet's images. Out: maps at seven depths.
Guarantees: an image's maps do not depend on its company.
Sources: Tan and Le 2019 (EfficientNet), Table 1; Sandler et al. 2018 (MobileNetV2), Table 1; the
"Lite" variant has ReLU6 and no squeeze-and-excitation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STEM_CHANNELS = 32
HEAD_CHANNELS = 1280
SIDE_MULTIPLE = 32  # every halved map has an even side


@dataclass(frozen=True)
class Stage:
    """Blocks in a row; the first of them has the stride."""

    channels: int
    blocks: int
    kernel: int
    stride: int
    expansion: int


STAGES = (
    Stage(channels=16, blocks=1, kernel=3, stride=1, expansion=1),
    Stage(channels=24, blocks=2, kernel=3, stride=2, expansion=6),
    Stage(channels=40, blocks=2, kernel=5, stride=2, expansion=6),
    Stage(channels=80, blocks=3, kernel=3, stride=2, expansion=6),
    Stage(channels=112, blocks=3, kernel=5, stride=1, expansion=6),
    Stage(channels=192, blocks=4, kernel=5, stride=2, expansion=6),
    Stage(channels=320, blocks=1, kernel=3, stride=1, expansion=6),
)


class Depthwise(nn.Conv2d):
    """Convolves each channel by itself."""

    def __init__(self, channels: int, kernel: int, stride: int) -> None:
        super().__init__(channels, channels, kernel, stride, groups=channels)

    def forward(self, input: Tensor) -> Tensor:
        if input.dtype != torch.float64:
            return super().forward(input)
        # in float64 torch calls each channel by itself, which takes three times as long as this
        assert self.bias is not None
        weight = self.weight[:, 0, :, :, None, None]
        kernel = self.kernel_size[0]
        stride = self.stride[0]
        height, width = ((side - kernel) // stride + 1 for side in input.shape[2:])
        sums = self.bias[:, None, None].repeat(len(input), 1, height, width)
        for row in range(kernel):
            rows = input[:, :, row : row + stride * height : stride][:, :, :height]
            for column in range(kernel):
                shifted = rows[..., column : column + stride * width : stride][..., :width]
                sums = sums.addcmul_(shifted, weight[:, row, column])
        return sums


class InvertedBottleneck(nn.Module):
    """Widen, convolve each channel by itself, narrow; the input is added where shapes allow it."""

    def __init__(self, inputs: int, channels: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        width = inputs * expansion
        self.kernel = kernel
        self.stride = stride
        self.adds_input = stride == 1 and inputs == channels
        self.expand = nn.Conv2d(inputs, width, 1) if expansion > 1 else None
        self.depthwise = Depthwise(width, kernel, stride)
        self.project = nn.Conv2d(width, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        wide: Tensor = x if self.expand is None else F.relu6(self.expand(x))
        wide = F.relu6(self.depthwise(_pad(wide, self.kernel, self.stride)))
        y: Tensor = self.project(wide)
        return x + y if self.adds_input else y


class EfficientNetLite0(nn.Module):
    """The network up to its last convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, STEM_CHANNELS, 3, 2)
        stages = []
        inputs = STEM_CHANNELS
        for stage in STAGES:
            blocks = []
            for position in range(stage.blocks):
                stride = stage.stride if position == 0 else 1
                blocks.append(
                    InvertedBottleneck(
                        inputs, stage.channels, stage.kernel, stride, stage.expansion
                    )
                )
                inputs = stage.channels
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)
        self.head = nn.Conv2d(inputs, HEAD_CHANNELS, 1)

    def forward(self, x: Tensor, depth: int = len(STAGES)) -> list[Tensor]:
        """Return the maps of the stages 1 to `depth`, first stage first.

        Stage d gives [N, `STAGES[d - 1].channels`, side, side]. Raises ValueError for a side that
        is no multiple of 32 and for a depth outside 1 to 7.
        """
        if x.shape[2] % SIDE_MULTIPLE or x.shape[3] % SIDE_MULTIPLE:
            raise ValueError(f"features: expected sides of {SIDE_MULTIPLE}·n, got {x.shape[2:]}")
        if not 1 <= depth <= len(STAGES):
            raise ValueError(f"features: expected a depth of 1 to {len(STAGES)}, got {depth}")
        maps = []
        x = F.relu6(self.stem(_pad(x, 3, 2)))
        for stage in self.stages[:depth]:
            x = stage(x)
            maps.append(x)
        return maps

    def last(self, x: Tensor) -> Tensor:
        """Return the last maps, [N, 1280, H / 32, W / 32]."""
        return F.relu6(self.head(self(x)[-1]))


def _pad(x: Tensor, kernel: int, stride: int) -> Tensor:
    """Zeros around x [N, C, H, W] as TensorFlow's SAME has them; of even sides for stride 2."""
    total = kernel - stride
    before = total // 2
    return F.pad(x, (before, total - before, before, total - before))
