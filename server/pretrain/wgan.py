"""Pretrains the image + mask WGAN on public pairs or phantoms, without privacy.

In: public uint8 pairs [N, S, S, 2] and the plan's sizes.
Out: the networks' weights after each step.
Guarantees: deterministic given seed, data and torch version.
Not covered: privacy. Whoever appears in the pairs is not protected.

Two things that private training cannot have make it shorter:
  - an encoder, with which the generator first learns to reconstruct pairs (variational autoencoder,
    Kingma and Welling 2014; beside a critic as in Larsen et al. 2016); a `mask-first` generator
    learns the mask from the code, and the image from the code and the true mask, and at the end
    its samples are given the share of vessel and the grain of the pairs (`finish`);
  - the R1 penalty on real pairs at every eighth step (Mescheder et al. 2018).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from common.models.adam import Adam
from common.models.draws import draw_integers, draw_normal
from common.models.moving_average import update_average
from common.models.pair_look import look_of, pulls
from common.models.sizes import LOOK
from common.models.weights import load_weights
from common.models.wgan import (
    PLANES,
    Critic,
    Generator,
    MaskFirst,
    build,
    load,
    load_average,
    parameters_by_name,
)
from common.models.wgan_losses import critic_loss, generator_loss
from common.models.wgan_pairs import to_unit
from common.study.training import WganPlan

CPU = torch.device("cpu")
BETAS = (0.0, 0.99)
PENALTY_EVERY = 8
LEAST_VARIANCE = 1e-4  # of a pixel's grain, whose range is [-1, 1]
RESTS = "generator.tone."  # of a mask-first generator: its paint has a bias, and its grain a size
LOOKS = 512  # pairs whose looks are computed at a time
# how a mask-first generator gets the share and the grain of its pairs
FOLLOWING_STEPS = 300
FOLLOWING_RATE = 0.02
FOLLOWING_PIXELS = 1 << 16  # of a batch of samples: 16 at 64 px
FOLLOWING_MOST = 64
FOLLOWING_LEAST = 16
# how long the critic of a mask-first generator is trained at the end, alone
SETTLING_STEPS = 400
SETTLING_SHARE = 0.1  # of the run's steps, at most


@dataclass(frozen=True)
class Recipe:
    """How a public training runs."""

    learning_rate: float = 1e-3
    critic_learning_rate: float = 5e-4
    batch: int = 16  # pairs a step
    penalty: float = 0.1  # weight of R1
    average_decay: float = 0.995
    deviation: float = 0.45  # of a pixel around its reconstructed value
    adversarial: float = 0.01  # weight of the critic's score beside the reconstruction
    warm_up: int = 3000  # steps before the critic begins


class Encoder(nn.Module):
    """Mean and log-variance [N, z] of the latents that reconstruct pairs [N, 2, S, S].

    It has the critic's shape with a linear end.
    """

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
    device: torch.device = CPU,
    done: int = 0,
) -> Iterator[dict[str, Tensor]]:
    """Yield the weights of all networks after each step, without end.

    `pairs` are uint8 [N, S, S, 2]. The names are `generator.*`, `average.*`, `critic.*` and
    `encoder.*`; a study does not use the last. The tensors lie on the device, and the next step
    changes them: copy them, or take `arrays_of` them.
    `start` continues from such weights after `done` steps, with fresh optimisers.
    """
    # the networks: new ones, or those of `start`
    recipe = recipe or Recipe()
    size_px = pairs.shape[1]
    random = torch.Generator(device).manual_seed(seed)
    data = torch.from_numpy(np.require(pairs, requirements=["C", "W"])).to(device)
    torch.manual_seed(seed)  # the networks' starting values, the same on every device
    encoder = Encoder(plan, size_px)
    if start is None:
        generator, critic = build(plan, size_px)
        average, _ = build(plan, size_px)
        average.load_state_dict(generator.state_dict())
    else:
        generator, average, critic = load(start, plan, size_px)
        load_weights(encoder, start, "encoder.")
    for network in (generator, average, critic, encoder):
        network.to(device)

    # one optimiser for the critic, one for generator and encoder together
    critic_parameters = _scoring(critic)
    maker_parameters = {
        name: p
        for name, p in _named_parameters("generator.", generator).items()
        if not name.startswith(RESTS)
    }
    maker_parameters |= _named_parameters("encoder.", encoder)
    critic_adam = Adam(critic_parameters, recipe.critic_learning_rate, BETAS)
    maker_adam = Adam(maker_parameters, recipe.learning_rate, BETAS)

    def add_noise(x: Tensor) -> Tensor:
        return x + plan.input_noise * draw_normal(x.shape, random, device)

    def fakes() -> Tensor:
        latents = draw_normal((recipe.batch, generator.latent), random, device)
        return add_noise(generator(latents))

    step = done
    while True:
        # (1) draw pairs, mirrored and transposed at random
        chosen = draw_integers(0, len(data), recipe.batch, random)
        real = _augment(to_unit(data[chosen]), random)

        # (2) reconstruct them: encoder and generator as a variational autoencoder
        mean, spread = encoder(real)
        code = mean + (spread / 2).exp() * draw_normal(mean.shape, random, device)
        missed = missed_by(generator, code, real, recipe.deviation)
        surplus = (mean.square() + spread.exp() - 1 - spread).sum(1).mean() / 2
        loss = (missed + surplus) * (2 / size_px**2)

        # (3) after the warm-up: train the critic, then the generator against it
        if step >= recipe.warm_up:
            penalise = step % PENALTY_EVERY == 0
            _critic_step(critic, critic_adam, add_noise(real), fakes, plan, recipe, penalise)
            loss = loss + recipe.adversarial * generator_loss(critic(fakes()), plan.loss)
        maker_adam.step(_gradients(loss, maker_parameters))

        # (4) update the moving average, which follows fast early on
        decay = recipe.average_decay
        if start is None:
            decay = min(decay, (1 + step) / (10 + step))
        update_average(average, generator, decay)
        step += 1
        every = {
            **parameters_by_name(generator, average, critic),
            **_named_parameters("encoder.", encoder),
        }
        yield {name: value.detach() for name, value in every.items()}


def missed_by(generator: Generator, code: Tensor, real: Tensor, deviation: float) -> Tensor:
    """Return the mean negative log-likelihood of pairs [N, 2, S, S] given their codes [N, z].

    It is known but for a constant. A pixel is normal around its redrawn value with `deviation`.
    `mask-first`: a pixel of the mask is a coin; one of the image is normal around what is painted
    on the true mask, with the deviation of the generator's grain.
    """
    if not isinstance(generator, MaskFirst):
        apart: Tensor = (real - generator(code)).square().sum((1, 2, 3)).mean()
        return apart / (2 * deviation**2)
    image, mask = real[:, :1], real[:, 1:]
    features = generator.features(code)
    # tanh(s) = 2 sigmoid(2 s) - 1
    coins = F.binary_cross_entropy_with_logits(
        2 * generator.mask(features), (mask > 0).to(real), reduction="none"
    )
    grain = generator.tone.weight[0, -1] * generator.grain.weight
    variance = grain.square().sum() + LEAST_VARIANCE
    beside = (image - generator.painted(mask, features)).square() / variance
    missed: Tensor = (coins + (beside + variance.log()) / 2).sum((1, 2, 3)).mean()
    return missed


def arrays_of(weights: Mapping[str, Tensor]) -> dict[str, NDArray[np.float32]]:
    """Return weights that `pretrain` yielded as arrays; on a CPU they are views."""
    return {name: value.cpu().numpy() for name, value in weights.items()}


def like_pairs(
    pairs: NDArray[np.uint8], weights: Mapping[str, NDArray[np.float32]], plan: WganPlan
) -> dict[str, NDArray[np.float32]]:
    """Return weights whose samples have the share of vessel and the grain of `pairs` [N, S, S, 2].

    `mask-first` alone: the average is given both, and becomes the generator too, or a study's
    average would move to a worse one. The critic gets the look of the pairs, from which private
    training goes on. A likelihood leaves unmarked what it is unsure of, and takes for grain what
    the painter could not draw: samples had fragments for vessels and too much grain. `weights` are
    not changed; those of other architectures return as they are.
    """
    found = dict(weights)
    average = load_average(weights, plan, pairs.shape[1])
    if not isinstance(average, MaskFirst):
        return found
    looks = [look_of(to_unit(some)) for some in np.array_split(pairs, -(-len(pairs) // LOOKS))]
    look = torch.cat(looks).mean(0)
    _follow(average, look)
    for name, parameter in average.named_parameters():
        found[f"average.{name}"] = parameter.detach().numpy()
        found[f"generator.{name}"] = found[f"average.{name}"].copy()
    found[f"critic.{LOOK}"] = look.numpy()
    return found


def _follow(generator: MaskFirst, look: Tensor) -> None:
    """Move threshold and grain until samples have a look's; the steps shrink to nothing."""
    random = torch.Generator().manual_seed(0)
    side = math.isqrt(generator.latent - generator.code)
    batch = max(FOLLOWING_LEAST, min(FOLLOWING_MOST, FOLLOWING_PIXELS // side**2))
    threshold, tone = generator.mask.bias, generator.tone.weight
    for parameter in generator.parameters():  # what stays needs no memory
        parameter.requires_grad_(parameter is threshold or parameter is tone)
    assert threshold is not None
    adam = Adam({"threshold": threshold, "tone": tone}, FOLLOWING_RATE, BETAS)
    for step in range(FOLLOWING_STEPS):
        adam.rate = FOLLOWING_RATE * (1 - step / FOLLOWING_STEPS)
        made = generator(draw_normal((batch, generator.latent), random, CPU))
        image, mask = made.split(1, dim=1)
        share = pulls(torch.cat([image.detach(), mask], dim=1), look)[0]
        grain = pulls(torch.cat([image, mask.detach()], dim=1), look)[-1]
        (by_share,) = torch.autograd.grad(share, threshold, retain_graph=True)
        (by_grain,) = torch.autograd.grad(grain, tone)
        by_grain[:, :-1] = 0  # of what else the tone has
        adam.step({"threshold": by_share, "tone": by_grain})


def finish(
    pairs: NDArray[np.uint8],
    weights: Mapping[str, NDArray[np.float32]],
    plan: WganPlan,
    steps: int,
    recipe: Recipe | None = None,
    device: torch.device = CPU,
) -> dict[str, NDArray[np.float32]]:
    """Return the weights that a study starts from, after `steps` steps on `pairs` [N, S, S, 2].

    `mask-first` alone: samples get the share of vessel and the grain of the pairs, and the critic,
    which knew them with less vessel and more grain, learns to judge these; a study's first steps
    would otherwise mark more and more.
    """
    found = like_pairs(pairs, weights, plan)
    generator, _, critic = load(found, plan, pairs.shape[1])
    if not isinstance(generator, MaskFirst):
        return found
    recipe = recipe or Recipe()
    random = torch.Generator(device).manual_seed(steps)
    data = torch.from_numpy(np.require(pairs, requirements=["C", "W"])).to(device)
    generator.to(device)
    critic.to(device)
    adam = Adam(_scoring(critic), recipe.critic_learning_rate, BETAS)

    def add_noise(x: Tensor) -> Tensor:
        return x + plan.input_noise * draw_normal(x.shape, random, device)

    def fakes() -> Tensor:
        return add_noise(generator(draw_normal((recipe.batch, generator.latent), random, device)))

    for step in range(min(SETTLING_STEPS, int(SETTLING_SHARE * steps))):
        chosen = draw_integers(0, len(data), recipe.batch, random)
        real = add_noise(_augment(to_unit(data[chosen]), random))
        _critic_step(critic, adam, real, fakes, plan, recipe, step % PENALTY_EVERY == 0)
    settled = {name: p.detach() for name, p in _named_parameters("critic.", critic).items()}
    return found | arrays_of(settled)


def _critic_step(
    critic: Critic,
    adam: Adam,
    real: Tensor,
    fakes: Callable[[], Tensor],
    plan: WganPlan,
    recipe: Recipe,
    penalise: bool,
) -> None:
    """Train the critic once on real pairs and as many fakes, with R1 if `penalise`."""
    with torch.no_grad():
        fake = fakes()
    real.requires_grad_(penalise)
    scores = critic(torch.cat([real, fake]))
    loss = critic_loss(scores[: len(real)], scores[len(real) :], plan.loss)
    if penalise:
        (slopes,) = torch.autograd.grad(scores[: len(real)].sum(), real, create_graph=True)
        loss = loss + recipe.penalty * PENALTY_EVERY / 2 * slopes.square().sum((1, 2, 3)).mean()
    adam.step(_gradients(loss, _scoring(critic)))


def _augment(pairs: Tensor, random: torch.Generator) -> Tensor:
    """The batch mirrored and transposed, each with chance 1/2."""
    for axes in ((2,), (3,)):
        if _toss(random):
            pairs = pairs.flip(axes)
    if _toss(random):
        pairs = pairs.transpose(2, 3).contiguous()
    return pairs


def _scoring(critic: Critic) -> dict[str, Tensor]:
    """The parameters of the critic that its scores depend on, by name: all but its look."""
    return {name: p for name, p in critic.named_parameters() if name != LOOK}


def _toss(random: torch.Generator) -> bool:
    """True with chance 1/2."""
    return bool(torch.rand((), generator=random, device=random.device) < 0.5)


def _named_parameters(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    """A module's parameters by global name: `prefix` and their own."""
    return {prefix + name: p for name, p in module.named_parameters()}


def _gradients(loss: Tensor, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The gradient of `loss` by parameter name."""
    return dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
