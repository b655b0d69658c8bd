"""Public pretraining of the image + mask WGAN: plain, non-private steps on public pairs or phantoms.

In: uint8 pairs [N, S, S, 2] that belong to no patient of the study, the plan's sizes. Out: the three networks' weights under
their global names, at any time while it runs. Guaranteed: deterministic given seed, data and torch version. Not: privacy. Whoever
appears in the pairs is not protected by anything here, so a plan names their source and licence.

The game is the private one (common/models/wgan.py: same losses, same noise on what the critic sees) with one addition that costs
nothing in public: the R1 penalty on real pairs at every eighth step (Mescheder et al. 2018; Karras et al. 2020, lazy
regularisation), which is what lets thin vessels appear at all in short trainings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.models.adam import Adam
from common.models.wgan import build, critic_loss, generator_loss, load, named, to_unit
from common.study import WganPlan

BETAS = (0.0, 0.99)
PENALTY_EVERY = 8


@dataclass(frozen=True)
class Recipe:
    """How a public training runs: rates of both networks, pairs a step, R1 penalty, the average's decay."""

    learning_rate: float = 1e-3
    batch: int = 16
    penalty: float = 0.1
    average_decay: float = 0.995


def pretrain(
    pairs: NDArray[np.uint8],
    plan: WganPlan,
    seed: int,
    recipe: Recipe | None = None,
    start: Mapping[str, NDArray[np.float32]] | None = None,
) -> Iterator[dict[str, NDArray[np.float32]]]:
    """Yield the weights `generator.*`, `average.*`, `critic.*` after each step (views: copy what is kept), without end.

    `pairs` uint8 [N, S, S, 2]; `start` continues from earlier weights, with fresh optimisers.
    """
    recipe, size_px = recipe or Recipe(), pairs.shape[1]
    random = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # the networks' starting values
    if start is None:
        (generator, critic), (average, _) = build(plan, size_px), build(plan, size_px)
        average.load_state_dict(generator.state_dict())
    else:
        generator, average, critic = load(start, plan, size_px)
    critic_parameters, generator_parameters = dict(critic.named_parameters()), dict(generator.named_parameters())
    critic_adam = Adam(critic_parameters, recipe.learning_rate, BETAS)
    generator_adam = Adam(generator_parameters, recipe.learning_rate, BETAS)

    def fakes() -> Tensor:
        made: Tensor = generator(torch.randn(recipe.batch, plan.latent, generator=random))
        return made + plan.input_noise * torch.randn(made.shape, generator=random)

    step = 0
    while True:
        # The critic, on real pairs and on fakes through the same noise.
        chosen = torch.randint(len(pairs), (recipe.batch,), generator=random).numpy()
        real = to_unit(pairs[chosen])
        real += plan.input_noise * torch.randn(real.shape, generator=random)
        penalised = step % PENALTY_EVERY == 0 and recipe.penalty > 0
        with torch.no_grad():
            fake = fakes()
        scores = critic(torch.cat([real.requires_grad_(penalised), fake]))
        loss = critic_loss(scores[: recipe.batch], scores[recipe.batch :], plan.loss)
        if penalised:
            (slopes,) = torch.autograd.grad(scores[: recipe.batch].sum(), real, create_graph=True)
            loss = loss + recipe.penalty * PENALTY_EVERY / 2 * slopes.square().sum((1, 2, 3)).mean()
        critic_adam.step(_gradients(loss, critic_parameters))

        # The generator against it, and its average.
        generator_adam.step(_gradients(generator_loss(critic(fakes()), plan.loss), generator_parameters))
        with torch.no_grad():
            for slow, fast in zip(average.parameters(), generator.parameters(), strict=True):
                slow.lerp_(fast, 1 - recipe.average_decay)
        step += 1
        yield {name: value.detach().numpy() for name, value in named(generator, average, critic).items()}


def _gradients(loss: Tensor, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The gradient of `loss` by parameter name."""
    return dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
