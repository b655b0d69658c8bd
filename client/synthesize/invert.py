"""Inverts images into W+ codes: the encoder's iterations, then optimisation, each with an error.

In: uint8 images [N, H, W, C], the study's generator and encoder, a `Reference`.
Out: an `Inversion`: codes, reconstructions, an error per image and which images are accepted.
Guarantees:
  1. the rule of acceptance (reference.py) is computed from generator samples before an image of the
     cohort is seen
  2. rejected: a constant or black image; one above the threshold; one that does not invert better
     upright than turned by a quarter; one with a code that is not finite. A rejected image does not
     count to k: pass `accepted` to `group.roster`
  3. no image influences another's code beyond rounding; nothing is random; the generator is not
     changed
Not covered: a small error is no proof that the medical content survived; an image turned by 180
degrees.

Source: ReStyle (Alaluf et al. 2021) for the encoder; optimisation in W+ by Karras et al. 2020,
appendix D.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from client.synthesize.descent import CodeDescent
from client.synthesize.reference import (
    InversionPlan,
    Reference,
    check_fit,
    find_turned,
    freeze,
    rmse,
)
from common.errors import ConfigurationError
from common.models.encoder import Encoder
from common.models.images import to_unit
from common.models.stylegan import Generator

Progress = Callable[[int, int], None]
BLANK_DEVIATION = 0.02  # standard deviation of grey values in [0, 1]; below it an image is blank


@dataclass(frozen=True)
class Inversion:
    """The inversion of N images. Group by `encoded`, average `codes`.

    `encoded` (by the encoder) and `codes` (refined): float32 [N, L, d_w]. `reconstructions`:
    float32 [N, C, H, W]. `errors`: float64 [N], RMSE in the image range [0, 1]. `accepted`: bool
    [N].
    """

    encoded: Tensor
    codes: Tensor
    reconstructions: Tensor
    errors: NDArray[np.float64]
    accepted: NDArray[np.bool_]


def invert(
    images: NDArray[np.uint8],
    generator: Generator,
    encoder: Encoder,
    plan: InversionPlan,
    known: Reference,
    progress: Progress = lambda done, total: None,
) -> Inversion:
    """Return the inversion of uint8 images [N, H, W, C], `plan.batch` at a time.

    `known`: the reference, made before. Raises ConfigurationError when there is no image, or when
    its size or the encoder's is not the generator's.
    """
    check_fit(generator, encoder)
    expected = (generator.size_px, generator.size_px, generator.channels)
    if len(images) == 0 or images.shape[1:] != expected or images.dtype != np.uint8:
        raise ConfigurationError(
            f"inversion: expected uint8 images of {expected}; got {images.dtype} {images.shape[1:]}"
        )
    parts: list[Inversion] = []
    with freeze(generator, encoder):
        for start in range(0, len(images), plan.batch):
            some = np.asarray(images[start : start + plan.batch])
            parts.append(_invert_batch(some, generator, encoder, plan, known))
            progress(min(start + plan.batch, len(images)), len(images))
    return Inversion(
        encoded=torch.cat([part.encoded for part in parts]),
        codes=torch.cat([part.codes for part in parts]),
        reconstructions=torch.cat([part.reconstructions for part in parts]),
        errors=np.concatenate([part.errors for part in parts]),
        accepted=np.concatenate([part.accepted for part in parts]),
    )


def _invert_batch(
    images: NDArray[np.uint8],
    generator: Generator,
    encoder: Encoder,
    plan: InversionPlan,
    known: Reference,
) -> Inversion:
    """Invert one batch; the networks take no gradients."""
    # the encoder's codes, and whether an image lies on its side
    x = to_unit(images)
    with torch.no_grad():
        first = encoder.invert(x, generator, plan.iterations, keep_best=True)
        own = rmse(x, first.reconstructions.clamp(-1, 1))
        lying = np.zeros(len(x), bool)
        if known.upright:
            lying = find_turned(x, own, generator, encoder, plan)

    # the refined codes, and the errors of their images
    codes = _refine(x, first.codes, generator, plan, known.spread)
    with torch.no_grad():
        seen = generator.synthesis(codes).clamp(-1, 1)
    errors = rmse(x, seen)

    # which images are accepted
    finite = torch.isfinite(codes).flatten(1).all(1) & torch.isfinite(first.codes).flatten(1).all(1)
    accepted = finite.numpy() & np.isfinite(errors) & (errors <= known.threshold)
    accepted &= ~blank(images) & ~lying
    return Inversion(first.codes, codes, seen, errors, accepted)


def blank(images: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return bool [N]: True where a uint8 image [N, H, W, C] is black or constant."""
    grey = [float(image.mean(axis=-1, dtype=np.float64).std()) / 255 for image in images]
    return np.array(grey) < BLANK_DEVIATION


def _refine(
    x: Tensor, start: Tensor, generator: Generator, plan: InversionPlan, spread: float
) -> Tensor:
    """Refine codes by `plan.steps` of Adam: pixels at three scales, near the encoder's codes."""
    codes = start.clone().requires_grad_()
    adam = CodeDescent(codes)
    for step in range(plan.steps):
        loss = _pyramid_error(generator.synthesis(codes), x).sum()
        loss = loss + plan.trust_weight * ((codes - start) / spread).square().mean((1, 2)).sum()
        (gradient,) = torch.autograd.grad(loss, [codes])
        adam.step(gradient, plan.learning_rate * spread * (1 - step / plan.steps))
    return codes.detach()


def _pyramid_error(a: Tensor, b: Tensor) -> Tensor:
    """Squared difference [N], averaged over full, half and quarter resolution."""
    difference = a - b
    terms = [difference.square().mean((1, 2, 3))]
    for scale in (2, 4):
        terms.append(F.avg_pool2d(difference, scale).square().mean((1, 2, 3)))
    return torch.stack(terms).mean(0)
