"""Fits the mapping network to the codes that public photographs have: the last step of pretraining.

In: photographs and their codes, generator and encoder.
Out: centred layers, and a mapping network whose outputs are distributed as the photographs' w.
Guarantees: `centre` changes no image; `flat_codes` leaves the generator as it is.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.models.draws import draw_integers, draw_normal
from common.models.encoder import Encoder
from common.models.stylegan import Generator, MappingNetwork
from server.pretrain.losses import reconstruction_loss, sliced_wasserstein
from server.public_data.augmentation import shown

MOMENT_WEIGHT = 5.0  # of `moment_distance` in `fit_prior`
# of `flat_codes`: Adam steps, learning rate, photographs at once
FLAT_STEPS = 12
FLAT_RATE = 0.03
FLAT_BATCH = 64


@torch.no_grad()
def centre(generator: Generator, encoder: Encoder, offset: Tensor) -> None:
    """Move a constant `offset` [L, latent] from the encoder's codes into the generator's biases.

    G(code) before equals G(code − offset) after, up to rounding. Afterwards one w in every layer
    decodes to an average image.
    """
    encoder.start.sub_(offset)
    for conv, layer in generator.modulated_convolutions():
        conv.style.bias.add_(conv.style.weight @ offset[layer])


def flat_codes(
    generator: Generator, photographs: Tensor, start: Tensor, counts: Tensor | None = None
) -> Tensor:
    """Return the w [M, latent] that, used in every layer, come closest to `photographs`.

    `photographs` are uint8 [M, C, S, S]; Adam begins at `start` [M, latent]. Pixels count where
    `counts` [M, 1, S, S] is 1, or everywhere. The mean over a code's
    layers would not do: it decodes to two thirds of the variance.
    """
    found = []
    if counts is None:
        counts = torch.ones((len(photographs), 1, 1, 1), device=start.device)
    for x, w, part in zip(
        torch.split(photographs, FLAT_BATCH),
        torch.split(start, FLAT_BATCH),
        torch.split(counts, FLAT_BATCH),
        strict=True,
    ):
        # Adam on the w of some photographs; the generator gets no gradient
        x = shown(x.to(start.device))
        w = w.detach().clone().requires_grad_(True)
        optimiser = torch.optim.Adam([w], lr=FLAT_RATE)
        for _ in range(FLAT_STEPS):
            made = generator.synthesis(generator.broadcast(w))
            loss = len(x) * reconstruction_loss(x, made, counts=part)
            (w.grad,) = torch.autograd.grad(loss, w)
            optimiser.step()
        found.append(w.detach())
    return torch.cat(found)


class Principal(NamedTuple):
    """Mean [d], principal axes [r, d] and the deviation on each axis [r] of codes [M, d], M > 1."""

    mean: Tensor
    axes: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, codes: Tensor) -> Principal:
        """Return the principal axes of `codes` [M, d], by singular values."""
        _, size, axes = torch.linalg.svd(codes - codes.mean(0), full_matrices=False)
        return cls(codes.mean(0), axes, size / math.sqrt(max(1, len(codes) - 1)) + 1e-6)


def moment_distance(made: Tensor, codes: Principal) -> Tensor:
    """Return how far mean and deviation of `made` [N, d] are from those of `codes`.

    They are compared along the codes' principal axes, in units of the deviation on each axis. The
    axes' variances are the weights. It is 0 if both agree on each axis.
    """
    seen = (made - codes.mean) @ codes.axes.T / codes.deviation
    weight = codes.deviation.square() / codes.deviation.square().sum()
    return (weight * (seen.mean(0).square() + (seen.std(0) - 1).square())).sum()


def fit_prior(mapping: MappingNetwork, codes: Tensor, steps: int, draw: torch.Generator) -> None:
    """Train `mapping` so that its outputs are distributed as `codes` [M, latent], in `steps` steps.

    This is a small GAN in the latent space, on codes scaled to unit variance. Its loss is logistic
    with a gradient penalty. The sliced Wasserstein distance is added, and `moment_distance`,
    without which the samples vary less than the codes.
    """
    # scale the codes, and build a critic of codes
    latent = codes.shape[1]
    mean = codes.mean(0)
    scale = codes.std(0).mean() + 1e-8
    judge = nn.Sequential(
        nn.Linear(latent, 256),
        nn.LeakyReLU(0.2),
        nn.Linear(256, 256),
        nn.LeakyReLU(0.2),
        nn.Linear(256, 1),
    ).to(codes.device)
    wanted = Principal.of((codes - mean) / scale)
    makers = torch.optim.Adam(mapping.parameters(), lr=1e-3, betas=(0.5, 0.99))
    judges = torch.optim.Adam(judge.parameters(), lr=1e-3, betas=(0.5, 0.99))
    for step in range(steps):
        # generated and real codes; the rate falls in the second half
        makers.param_groups[0]["lr"] = 1e-3 * max(0.02, min(1.0, 2 - 2 * step / steps))
        made = (mapping(draw_normal((256, latent), draw, codes.device)) - mean) / scale
        rows = draw_integers(0, len(codes), 256, draw).to(codes.device)
        real = (codes[rows] - mean) / scale
        real = real + 0.1 * draw_normal(real.shape, draw, codes.device)
        real.requires_grad_(True)

        # train the critic, with the gradient penalty at every fourth step
        scores = judge(real)
        loss = F.softplus(-scores).mean() + F.softplus(judge(made.detach())).mean()
        if step % 4 == 0:
            (slope,) = torch.autograd.grad(scores.sum(), real, create_graph=True)
            loss = loss + 0.2 * slope.square().sum(1).mean()
        judges.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        judges.step()

        # train the mapping
        loss = F.softplus(-judge(made)).mean() + sliced_wasserstein(made, real.detach(), draw)
        loss = loss + MOMENT_WEIGHT * moment_distance(made, wanted)
        makers.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        makers.step()
