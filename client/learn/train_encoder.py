"""Trains the inversion encoder on samples of the private generator, on site.

In: the generator's weights (differentially private, or public), the encoder's starting weights, the plan.
Out: the encoder's weights, float32 `encoder.*`; they stay on the site.
Guaranteed: post-processing. The signature takes no cohort; every training pair is (w, G(w)) for a fresh latent, so the
encoder costs no privacy budget and can remember no patient.
Not: an encoder that is exact on photographs; they are off the distribution that it was trained on (invert.py measures).

Loss of a pair with ŵ the code found: ‖w − ŵ‖² + L1 of pixels + L1 of their differences between neighbours
(methods/ksalsa.md 3.1; the neighbour term stands for the critic's features, which a site may not have).
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from common.arrays import Weights
from common.errors import ConfigurationError
from common.models.adam import Adam
from common.models.encoder import Encoder, load_encoder
from common.models.stylegan import Generator, load_generator
from common.models.weights import numpy_weights
from common.study.plan import Study

BATCH = 8
BETAS = (0.9, 0.99)
LARGEST_AVERAGE = 5
CODE_WEIGHT = 0.1
PIXEL_WEIGHT = 1.0
NEIGHBOUR_WEIGHT = 2.0


def train(
    generator_weights: Weights,
    encoder_weights: Weights,
    study: Study,
    progress: Callable[[int, int], None],
    *,
    draw: torch.Generator | None = None,
) -> dict[str, NDArray[np.float32]]:
    """The encoder's weights, `encoder.*`, after the plan's steps from `encoder_weights` ({} = torch's random values).

    `draw`: the stream of latents, by default a fresh one. Raises ConfigurationError for a plan without generator or
    encoder, RefusedError for weights that do not fit it.
    """
    gan = study.models.gan
    plan = study.models.encoder
    intake = study.intake
    if gan is None or plan is None:
        raise ConfigurationError("train_encoder: the plan needs models.gan and models.encoder")
    generator = load_generator(
        generator_weights, gan, intake.size_px, intake.channels
    ).requires_grad_(False)
    if encoder_weights:
        encoder = load_encoder(
            encoder_weights, plan.width, gan.latent, intake.size_px, intake.channels
        )
    else:
        encoder = Encoder(intake.size_px, intake.channels, plan.width, gan.latent)
    draw = draw or torch.Generator().manual_seed(torch.seed())
    parameters = dict(encoder.named_parameters())
    adam = Adam(parameters, plan.learning_rate, BETAS)

    for step in range(plan.steps):
        # Codes as the prior makes them, mixed by layers' averages, and what the generator makes of them.
        codes, images = pairs(generator, draw)

        # One residual step, from the start code or from where earlier iterations have led.
        start, seen = earlier(
            encoder, generator, images, int(torch.randint(plan.iterations, (), generator=draw))
        )
        found = start + encoder(images, seen)
        loss = pair_loss(codes, found, images, generator.synthesis(found))

        gradients = torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
        adam.step(dict(zip(parameters, gradients, strict=True)))
        progress(step + 1, plan.steps)
    return numpy_weights(encoder, "encoder.")


@torch.no_grad()
def pairs(generator: Generator, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Codes [B, L, latent] and their images: half from the prior, half means of 2 to 5 of its codes, as groups are."""
    counts = torch.randint(2, LARGEST_AVERAGE + 1, (BATCH // 2,), generator=draw).tolist()
    w = generator.mapping(
        torch.randn(BATCH - len(counts) + sum(counts), generator.latent, generator=draw)
    )
    single, *several = w.split([BATCH - len(counts), *counts])
    codes = generator.broadcast(
        torch.cat([single, *(part.mean(0, keepdim=True) for part in several)])
    )
    return codes, generator.synthesis(codes, draw)


@torch.no_grad()
def earlier(
    encoder: Encoder, generator: Generator, images: Tensor, iterations: int
) -> tuple[Tensor, Tensor]:
    """Codes and reconstructions after `iterations` ≥ 0 residual steps."""
    if iterations:
        inverted = encoder.invert(images, generator, iterations)
        return inverted.codes, inverted.reconstructions
    start = encoder.start_codes(len(images))
    return start, generator.synthesis(start[:1]).expand_as(images)


def pair_loss(codes: Tensor, found: Tensor, images: Tensor, rebuilt: Tensor) -> Tensor:
    """The loss of the module's header, averaged over the batch."""
    gap = rebuilt - images
    neighbours = gap.diff(dim=2).abs().mean() + gap.diff(dim=3).abs().mean()
    return (
        CODE_WEIGHT * F.mse_loss(found, codes)
        + PIXEL_WEIGHT * gap.abs().mean()
        + NEIGHBOUR_WEIGHT * neighbours
    )
