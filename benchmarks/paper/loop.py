"""The alignment of Jeon et al. 2022 as a loop: one group, one source, one window at a time.

Written from the paper, nothing is copied. benchmarks/align.py measures its speed, and
tests/benchmarks/paper/test_alignment.py compares losses.
Per step: per-sample modulated weights, two 1-D filter passes, all of VGG-19, four passes of the
content network per source, a match with a synchronisation per source window.
Per group: the feature networks loaded anew, the sources passed through all of VGG-19.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.paper.alignment import PaperPlan
from benchmarks.paper.stylegan2 import PaperGenerator, PaperImage, PaperLayer

CONV1_2 = 3  # index of the ReLU after conv1_2 in VGG-19, which works in place


# --- StyleGAN2's synthesis with a kernel of its own for every sample ------------------------------


def synthesis(generator: PaperGenerator, wplus: Tensor) -> Tensor:
    """Images [N, 3, S, S] by weight modulation; the weights are part of the graph, as in the public
    implementation.
    """
    x = generator.constant.repeat(len(wplus), 1, 1, 1)
    image: Tensor | None = None
    for position, (layer, row) in enumerate(generator.layers()):
        x = styled(layer, x, wplus[:, row], up=position % 2 == 1)
        if position % 2 == 0:
            part = generator.to_image[position // 2]
            assert isinstance(part, PaperImage)
            seen = to_image(part, x, wplus[:, row + 1])
            image = seen if image is None else upsampled(image) + seen
    assert image is not None
    return image


def styled(layer: PaperLayer, x: Tensor, w: Tensor, *, up: bool) -> Tensor:
    """Modulate, demodulate, convolve in groups (one a sample), filter, noise, bias,
    LeakyReLU(0.2)·√2.
    """
    n, cin, height, width = x.shape
    kernel = layer.weight[None] * layer.style(w)[:, None, :, None, None]
    kernel = kernel * torch.rsqrt(kernel.square().sum((2, 3, 4), keepdim=True) + 1e-8)
    x = x.reshape(1, n * cin, height, width)
    if up:
        y = F.conv_transpose2d(
            x, kernel.transpose(1, 2).reshape(n * cin, -1, 3, 3), stride=2, groups=n
        )
        y = low_pass(y.reshape(n, -1, *y.shape[2:]), 4.0, 1)
    else:
        y = F.conv2d(x, kernel.reshape(-1, cin, 3, 3), padding=1, groups=n)
        y = y.reshape(n, -1, *y.shape[2:])
    y = y + layer.noise * layer.noise_strength
    return F.leaky_relu(y + layer.bias[None, :, None, None], 0.2) * math.sqrt(2)


def to_image(part: PaperImage, x: Tensor, w: Tensor) -> Tensor:
    """RGB by a modulated 1×1 convolution in groups, not demodulated."""
    n, c, height, width = x.shape
    kernel = part.weight[None] * part.style(w)[:, None, :]
    y = F.conv2d(x.reshape(1, n * c, height, width), kernel.reshape(n * 3, c, 1, 1), groups=n)
    return y.reshape(n, 3, height, width) + part.bias[None, :, None, None]


def low_pass(x: Tensor, gain: float, padding: int) -> Tensor:
    """The [1, 3, 3, 1] filter along rows, then along columns."""
    taps = x.new_tensor([1.0, 3.0, 3.0, 1.0]) / 8 * math.sqrt(gain)
    across = taps.view(1, 1, 1, 4).repeat(x.shape[1], 1, 1, 1)
    x = F.conv2d(x, across, padding=(0, padding), groups=x.shape[1])
    return F.conv2d(x, across.transpose(2, 3), padding=(padding, 0), groups=x.shape[1])


def upsampled(x: Tensor) -> Tensor:
    """Twice the size: zeros between the pixels, then the filter."""
    n, c, height, width = x.shape
    spread = F.pad(x.reshape(n, c, height, 1, width, 1), (0, 1, 0, 0, 0, 1)).reshape(
        n, c, 2 * height, 2 * width
    )
    return low_pass(F.pad(spread, (2, 1, 2, 1)), 4.0, 0)


# --- the loss -------------------------------------------------------------------------------------


@dataclass
class PaperLoop:
    """One group's optimisation.

    `load` gives VGG-19's layers (a Sequential) and the headless ResNet, anew for each group.
    """

    generator: PaperGenerator
    load: Callable[[], tuple[nn.Sequential, nn.Module]]
    plan: PaperPlan = field(default_factory=PaperPlan)

    def start(self, real: Tensor, inverted: Tensor) -> None:
        """Once a group: load the networks, keep each source's window Grams.

        Sources [k, 3, H, W].
        """
        self.vgg, self.resnet = self.load()
        self.real = F.adaptive_avg_pool2d(real, self.plan.image_px)
        self.inverted = F.adaptive_avg_pool2d(inverted, self.plan.image_px)
        self.source_grams = []
        for i in range(len(real)):
            with torch.no_grad():
                self.source_grams.append(self.grams(self.real[i : i + 1]))

    def grams(self, image: Tensor) -> list[Tensor]:
        """A Gram [C, C] for each of the windows of one image [1, 3, H, W]; all of VGG-19 is run."""
        seen = image
        for index, layer in enumerate(self.vgg):
            seen = layer(seen)
            if index == CONV1_2:
                features = seen
        p = self.plan.windows
        found = []
        size = features.shape[2] // p
        for row in range(p):
            for column in range(p):
                rows, columns = (slice(i * size, (i + 1) * size) for i in (row, column))
                window = features[0, :, rows, columns].reshape(features.shape[1], -1)
                found.append(window @ window.T)
        return found

    def content(self, image: Tensor) -> Tensor:
        """The unit feature [D] of one image [1, 3, H, W]."""
        small = F.interpolate(image, size=self.plan.content_px, mode="nearest")
        return F.normalize(self.resnet(small).flatten(1), dim=1)[0]

    def loss(self, code: Tensor) -> Tensor:
        """The loss of one code [L, d_w]."""
        image = F.adaptive_avg_pool2d(synthesis(self.generator, code[None]), self.plan.image_px)
        k = len(self.real)
        content = code.new_zeros(())
        for i in range(k):
            with torch.no_grad():
                self.content(self.real[i : i + 1])  # the paper's loop only logs its similarity
                target = self.content(self.inverted[i : i + 1])
            content = content + 1 - self.content(image) @ target
        own = self.grams(image)
        rows = torch.stack([c.detach().flatten() for c in own])
        style = code.new_zeros(())
        for i in range(k):
            mine = code.new_zeros(())
            for target in self.source_grams[i]:
                j = int(F.cosine_similarity(rows, target.flatten()[None], dim=1).argmax())
                mine = mine + (own[j] - target).square().sum()
            style = style + mine / len(own)
        return self.plan.content_weight * content / k + self.plan.style_weight * style / k

    def run(self, centroid: Tensor) -> tuple[Tensor, list[float]]:
        """The code after all steps, and the loss before each; torch's Adam with the paper's
        schedule.
        """
        code = centroid.clone().requires_grad_()
        history = []
        adam = torch.optim.Adam([code], betas=(0.9, 0.999), lr=self.plan.learning_rate)
        for step in range(self.plan.steps):
            t = step / self.plan.steps
            ramp = 0.5 - 0.5 * math.cos(math.pi * min(1.0, (1 - t) / 0.25))
            adam.param_groups[0]["lr"] = self.plan.learning_rate * ramp * min(1.0, t / 0.05)
            value = self.loss(code)
            adam.zero_grad()
            value.backward()
            adam.step()
            history.append(float(value.detach()))
        return code.detach(), history
