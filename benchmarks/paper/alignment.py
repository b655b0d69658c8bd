"""The alignment of Jeon et al. 2022 as its public code has it, batched over groups.

In: inverted and real source images of groups of one size k, a generator, two feature networks.
Out: codes [B, L, d_w] and losses [B].
Guarantees: loss and gradient equal the plain loop of benchmarks/paper/loop.py up to rounding.
Not covered: a way to release. One patient's Gram reaches the optimiser, so no plan can ask for it.

    loss = 1e2·mean_i [1 - <f(G(w)), f(y_i)>] + 1e-6·mean_i mean_t |C_j(i,t) - T_it|²
    j(i,t) = argmax_j cos(C_j, T_it), anew in every step

f: of the inverted source y_i at 224 px, nearest neighbour. C, T: Grams that are not divided, after
the ReLU of conv1_2, of 4×4 windows at 256 px. Three savings:
1. A sum of cosines is the cosine with the sum, so f's mean (not normalised again) is one target.
2. The sources' Grams and their norms are computed once.
3. One matrix product gives all cosines of a step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from client.synthesize.descent import CodeDescent
from client.synthesize.features import window_grams
from common.errors import ConfigurationError

Features = Callable[[Tensor], Tensor]


class Synthesizer(Protocol):
    """What makes images of W+ codes: `Generator` or `PaperGenerator`, frozen."""

    def synthesis(self, wplus: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class PaperPlan:
    """The constants of the paper's README (its argparse defaults differ and are wrong)."""

    steps: int = 100
    windows: int = 4
    content_weight: float = 1e2
    style_weight: float = 1e-6
    learning_rate: float = 0.1
    image_px: int = 256
    content_px: int = 224


@dataclass(frozen=True)
class PaperTargets:
    """What is cached of B groups of k sources: mean content [B, D], Grams [B, k·P, C, C] and unit
    Grams [B, k·P, C²].
    """

    content: Tensor
    grams: Tensor
    units: Tensor


@dataclass(frozen=True)
class PaperLoss:
    """The loss with its networks: `texture` [N, 3, H, W] → [N, C, H, W], `content` [N, 3, H, W] →
    unit vectors [N, D].
    """

    generator: Synthesizer
    texture: Features
    content: Features
    plan: PaperPlan = field(default_factory=PaperPlan)

    def targets(self, real: Tensor, inverted: Tensor) -> PaperTargets:
        """The targets of real and inverted sources [B, k, 3, H, W] in [-1, 1], computed once a
        group.
        """
        if real.shape[:2] != inverted.shape[:2] or real.ndim != 5:
            raise ConfigurationError(
                f"paper mode: expected as many inverted as real sources; got {list(real.shape)}"
            )
        groups, k = real.shape[:2]
        with torch.no_grad():
            content = (
                self._content(self._pooled(inverted.flatten(0, 1))).view(groups, k, -1).mean(1)
            )
            grams = self._grams(self._pooled(real.flatten(0, 1)))  # [B·k, P, C, C]
            grams = grams.view(groups, -1, *grams.shape[2:])
            return PaperTargets(content, grams, F.normalize(grams.flatten(2), dim=2, eps=0))

    def __call__(self, codes: Tensor, targets: PaperTargets) -> Tensor:
        """The loss [B] of codes [B, L, d_w]."""
        image = self._pooled(self.generator.synthesis(codes))
        away = 1 - (self._content(image) * targets.content).sum(1)
        own = self._grams(image)  # [B, P, C, C]
        with torch.no_grad():
            unit = F.normalize(own.flatten(2), dim=2, eps=0)
            cosines = targets.units @ unit.transpose(1, 2)
            best = cosines.argmax(2)  # [B, k·P]: windows of the average
        picked = own[torch.arange(len(own))[:, None], best]
        texture = (picked - targets.grams).square().sum((2, 3)).mean(1)
        return self.plan.content_weight * away + self.plan.style_weight * texture

    def _pooled(self, images: Tensor) -> Tensor:
        """At `image_px`: averaged down, or repeated up (the paper's adaptive pooling)."""
        return F.adaptive_avg_pool2d(images, self.plan.image_px)

    def _content(self, images: Tensor) -> Tensor:
        return self.content(F.interpolate(images, size=self.plan.content_px, mode="nearest"))

    def _grams(self, images: Tensor) -> Tensor:
        """Grams [N, P, C, C], not divided."""
        features = self.texture(images)
        return window_grams(features, self.plan.windows) * (
            features[0].numel() / self.plan.windows**2
        )


def paper_align(centroids: Tensor, targets: PaperTargets, loss: PaperLoss) -> tuple[Tensor, Tensor]:
    """The codes after all steps from the centroids [B, L, d_w], and the losses [steps, B] before
    each step.
    """
    codes = centroids.clone().requires_grad_()
    history = []
    adam = CodeDescent(codes)
    steps = loss.plan.steps
    for step in range(steps):
        value = loss(codes, targets)
        (gradient,) = torch.autograd.grad(value.sum(), [codes])
        adam.step(gradient, loss.plan.learning_rate * paper_learning_rate(step / steps))
        history.append(value.detach())
    return codes.detach(), torch.stack(history)


def keep_nearer(
    aligned: Tensor, centroids: Tensor, real: Tensor, generator: Synthesizer, pooled: Features
) -> Tensor:
    """The aligned code where its image is nearer to its group's sources, else the centroid.

    An option that the paper does not have, and the product's rule (client/synthesize/nearer.py).
    Codes [B, L, d_w]; real sources [B, k, 3, H, W] in [-1, 1]. `pooled`: features
    [N, 3, H, W] -> [N, D] that the alignment does not optimise. A distance that is not finite keeps
    the centroid.
    """
    with torch.no_grad():
        target = pooled(real.flatten(0, 1)).unflatten(0, real.shape[:2]).mean(1)

        def away(codes: Tensor) -> Tensor:
            made = generator.synthesis(codes).clamp(-1, 1)
            return (pooled(made) - target).square().sum(1)

        nearer = away(aligned) < away(centroids)
        return torch.where(nearer[:, None, None], aligned, centroids)


def paper_learning_rate(t: float) -> float:
    """The paper's schedule at t = step/steps: 0 at the first step (which therefore only feeds
    Adam's moments).
    """
    return min(1.0, t / 0.05) * 0.5 * (1 - math.cos(math.pi * min(1.0, (1 - t) / 0.25)))
