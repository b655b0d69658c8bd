"""Public pretraining of the image + mask WGAN: plain, non-private steps on public pairs or phantoms.

In: uint8 pairs [N, S, S, 2] that belong to no patient of the study, the plan's sizes. Out: the three networks' weights under
their global names, at any time while it runs. Guaranteed: deterministic given seed, data and torch version. Not: privacy. Whoever
appears in the pairs is not protected by anything here, so a plan names their source and licence.

Two things that private training cannot have make it short: an encoder, so that the generator first learns to redraw pairs (a
variational autoencoder, Kingma and Welling 2014; Larsen et al. 2016 for the combination), and the R1 penalty on real pairs at
every eighth step (Mescheder et al. 2018). By the game alone, no vessels within 3,000 steps; redrawn, within 500.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from common.models.adam import Adam
from common.models.stylegan import load_weights
from common.models.wgan import (
    PLANES,
    Critic,
    build,
    critic_loss,
    generator_loss,
    load,
    named,
    to_unit,
)
from common.study.plan import WganPlan

BETAS = (0.0, 0.99)
PENALTY_EVERY = 8


@dataclass(frozen=True)
class Recipe:
    """How a public training runs: rates, pairs a step, R1 penalty, the average's decay; `deviation` of a pixel around its redrawn
    value; the weight of the game beside redrawing, which begins after `warm_up` steps."""

    learning_rate: float = 1e-3
    critic_learning_rate: float = 5e-4
    batch: int = 16
    penalty: float = 0.1
    average_decay: float = 0.995
    deviation: float = 0.45
    adversarial: float = 0.01
    warm_up: int = 3000


class Encoder(nn.Module):
    """Mean and log-variance [N, z] of the latents that redraw pairs [N, 2, S, S]; the critic's shape with a linear end."""

    def __init__(self, plan: WganPlan, size_px: int) -> None:
        super().__init__()
        body = Critic(size_px, plan.generator_width).layers[:-1]
        with torch.no_grad():
            features = body(torch.zeros(1, PLANES, size_px, size_px)).numel()
        self.layers = nn.Sequential(*body, nn.Flatten(), nn.Linear(features, 2 * plan.latent))

    def forward(self, pairs: Tensor) -> tuple[Tensor, Tensor]:
        mean, spread = self.layers(pairs).chunk(2, dim=1)
        return mean, spread.clamp(-8, 4)


def pretrain(
    pairs: NDArray[np.uint8],
    plan: WganPlan,
    seed: int,
    recipe: Recipe | None = None,
    start: Mapping[str, NDArray[np.float32]] | None = None,
) -> Iterator[dict[str, NDArray[np.float32]]]:
    """Yield the weights `generator.*`, `average.*`, `critic.*`, `encoder.*` after each step (views: copy them), without end.

    `pairs` uint8 [N, S, S, 2]; `start` continues from such weights, with fresh optimisers; `encoder.*` is not the study's.
    """
    recipe, size_px = recipe or Recipe(), pairs.shape[1]
    random = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # the networks' starting values
    encoder = Encoder(plan, size_px)
    if start is None:
        (generator, critic), (average, _) = build(plan, size_px), build(plan, size_px)
        average.load_state_dict(generator.state_dict())
    else:
        generator, average, critic = load(start, plan, size_px)
        load_weights(encoder, start, "encoder.")
    critic_parameters = dict(critic.named_parameters())
    maker_parameters = {**_prefixed("generator.", generator), **_prefixed("encoder.", encoder)}
    critic_adam = Adam(critic_parameters, recipe.critic_learning_rate, BETAS)
    maker_adam = Adam(maker_parameters, recipe.learning_rate, BETAS)

    def noised(x: Tensor) -> Tensor:
        return x + plan.input_noise * torch.randn(x.shape, generator=random)

    def fakes() -> Tensor:
        return noised(generator(torch.randn(recipe.batch, plan.latent, generator=random)))

    step = 0
    while True:
        # Pairs, mirrored and turned at random.
        chosen = torch.randint(len(pairs), (recipe.batch,), generator=random).numpy()
        real = _turned(to_unit(pairs[chosen]), random)

        # Redraw them: encoder and generator as a variational autoencoder.
        mean, spread = encoder(real)
        redrawn = generator(mean + (spread / 2).exp() * torch.randn(mean.shape, generator=random))
        missed = (real - redrawn).square().sum((1, 2, 3)).mean() / (2 * recipe.deviation**2)
        surplus = (mean.square() + spread.exp() - 1 - spread).sum(1).mean() / 2
        loss = (missed + surplus) * (2 / size_px**2)

        # The game, once there is something to play with: the critic, then the generator against it.
        if start is not None or step >= recipe.warm_up:
            _critic_step(
                critic, critic_adam, noised(real), fakes, plan, recipe, step % PENALTY_EVERY == 0
            )
            loss = loss + recipe.adversarial * generator_loss(critic(fakes()), plan.loss)
        maker_adam.step(_gradients(loss, maker_parameters))

        # The average; early on it follows fast.
        with torch.no_grad():
            decay = (
                min(recipe.average_decay, (1 + step) / (10 + step))
                if start is None
                else recipe.average_decay
            )
            for slow, fast in zip(average.parameters(), generator.parameters(), strict=True):
                slow.lerp_(fast, 1 - decay)
        step += 1
        every = {**named(generator, average, critic), **_prefixed("encoder.", encoder)}
        yield {name: value.detach().numpy() for name, value in every.items()}


def _critic_step(
    critic: Critic,
    adam: Adam,
    real: Tensor,
    fakes: Callable[[], Tensor],
    plan: WganPlan,
    recipe: Recipe,
    penalise: bool,
) -> None:
    """One step of the critic on real pairs and as many fakes, with the gradient penalty where `penalise`."""
    with torch.no_grad():
        fake = fakes()
    real.requires_grad_(penalise)
    scores = critic(torch.cat([real, fake]))
    loss = critic_loss(scores[: len(real)], scores[len(real) :], plan.loss)
    if penalise:
        (slopes,) = torch.autograd.grad(scores[: len(real)].sum(), real, create_graph=True)
        loss = loss + recipe.penalty * PENALTY_EVERY / 2 * slopes.square().sum((1, 2, 3)).mean()
    adam.step(_gradients(loss, dict(critic.named_parameters())))


def _turned(pairs: Tensor, random: torch.Generator) -> Tensor:
    """The batch mirrored and transposed, each with chance 1/2."""
    for axes in ((2,), (3,)):
        if torch.rand((), generator=random) < 0.5:
            pairs = pairs.flip(axes)
    return pairs.transpose(2, 3).contiguous() if torch.rand((), generator=random) < 0.5 else pairs


def _prefixed(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    """A module's parameters by global name."""
    return {prefix + name: p for name, p in module.named_parameters()}


def _gradients(loss: Tensor, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The gradient of `loss` by parameter name."""
    return dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
