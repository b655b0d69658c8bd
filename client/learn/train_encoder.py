"""Trains the inversion encoder on samples of the private generator, on site.

In: the generator's weights (differentially private, or public), the encoder's starting weights, the
plan.
Out: the encoder's weights, float32 `encoder.*`; they stay on the site.
Guarantees: post-processing. No argument holds a cohort, and every training pair is (w, G(w)) for a
fresh latent. So the encoder costs no privacy budget and can remember no patient.
Not covered: exactness on photographs, which are off its training distribution (invert.py measures
it).

Loss of a pair with ŵ the code found: ‖w − ŵ‖² + L1 of pixels + L1 of their differences between
neighbours. The neighbour term stands for the critic's features.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from common.arrays import Weights
from common.devices import CPU
from common.errors import ConfigurationError
from common.models.adam import Adam
from common.models.draws import draw_integers
from common.models.encoder import Encoder, load_encoder
from common.models.stylegan import Generator, load_generator
from common.models.weights import numpy_weights
from common.study.plan import Study

BATCH = 8
BETAS = (0.9, 0.99)
LARGEST_AVERAGE = 5  # codes in a mean
# of the three terms of the loss
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
    device: torch.device = CPU,
) -> dict[str, NDArray[np.float32]]:
    """Return the encoder's weights, `encoder.*`, after the plan's steps from `encoder_weights`.

    Empty `encoder_weights` mean torch's random values. `draw`: the stream of latents, by default a
    fresh one on `device`, where all of it is computed. Raises ConfigurationError for a plan without
    generator or encoder, RefusedError for weights that do not fit it.
    """
    gan = study.models.gan
    plan = study.models.encoder
    intake = study.intake
    if gan is None or plan is None:
        raise ConfigurationError("train_encoder: the plan needs models.gan and models.encoder")

    # the generator stays as it is; the encoder starts from the plan's weights, or at random
    generator = load_generator(
        generator_weights, gan, intake.size_px, intake.channels
    ).requires_grad_(False)
    if encoder_weights:
        encoder = load_encoder(
            encoder_weights, plan.width, gan.latent, intake.size_px, intake.channels
        )
    else:
        encoder = Encoder(intake.size_px, intake.channels, plan.width, gan.latent)

    generator.to(device)
    encoder.to(device)

    # the stream of latents, and Adam
    draw = draw or torch.Generator(device).manual_seed(torch.seed())
    parameters = dict(encoder.named_parameters())
    adam = Adam(parameters, plan.learning_rate, BETAS)

    for step in range(plan.steps):
        # draw codes from the prior, and their images
        codes, images = draw_pairs(generator, draw)

        # one residual step, from the start code or from where earlier iterations led
        iterations = int(torch.randint(plan.iterations, (), generator=draw, device=draw.device))
        start, seen = iterate(encoder, generator, images, iterations)
        found = start + encoder(images, seen)
        loss = pair_loss(codes, found, images, generator.synthesis(found))

        # update the encoder
        gradients = torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
        adam.step(dict(zip(parameters, gradients, strict=True)))
        progress(step + 1, plan.steps)
    return numpy_weights(encoder, "encoder.")


@torch.no_grad()
def draw_pairs(generator: Generator, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return codes [B, L, latent] and their images.

    Half are drawn from the prior, half are means of 2 to 5 of its codes.
    """
    counts = draw_integers(2, LARGEST_AVERAGE + 1, BATCH // 2, draw).cpu().tolist()
    singles = BATCH - len(counts)
    z = torch.randn(singles + sum(counts), generator.latent, generator=draw, device=draw.device)
    single, *several = generator.mapping(z).split([singles, *counts])
    means = [part.mean(0, keepdim=True) for part in several]
    codes = generator.broadcast(torch.cat([single, *means]))
    return codes, generator.synthesis(codes, draw)


@torch.no_grad()
def iterate(
    encoder: Encoder, generator: Generator, images: Tensor, iterations: int
) -> tuple[Tensor, Tensor]:
    """Return codes and reconstructions after `iterations` ≥ 0 residual steps."""
    if iterations:
        inverted = encoder.invert(images, generator, iterations)
        return inverted.codes, inverted.reconstructions
    start = encoder.start_codes(len(images))
    return start, generator.synthesis(start[:1]).expand_as(images)


def pair_loss(codes: Tensor, found: Tensor, images: Tensor, rebuilt: Tensor) -> Tensor:
    """Return the loss of a pair (module docstring), averaged over the batch."""
    gap = rebuilt - images
    neighbours = gap.diff(dim=2).abs().mean() + gap.diff(dim=3).abs().mean()
    return (
        CODE_WEIGHT * F.mse_loss(found, codes)
        + PIXEL_WEIGHT * gap.abs().mean()
        + NEIGHBOUR_WEIGHT * neighbours
    )
