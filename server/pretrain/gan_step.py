"""One step of a generator's pretraining, in the parts that gan.py calls one after the other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.models.draws import draw_integers
from common.models.stylegan import Generator, StyledLayer
from server.pretrain.code_bank import CodeBank
from server.pretrain.gan_plan import PretrainPlan
from server.pretrain.gan_schedule import Phase
from server.pretrain.gan_sizes import enlarge, synthesis
from server.pretrain.gan_state import Networks, Training
from server.pretrain.losses import (
    WINDOWS,
    augment,
    gradient_penalty,
    reconstruction_loss,
    spots,
    texture_distance,
    textures,
)
from server.pretrain.photographs import Photographs
from server.public_data.cameras import Batch, cut, known_part

R1_EVERY = 8
GRADIENT_NORM = 10.0
Losses = dict[str, Tensor]


@dataclass(frozen=True)
class Chance:
    """The generators of random numbers of one run; what is drawn here protects nobody."""

    rows: np.random.Generator  # which photographs and codes
    values: torch.Generator  # noise, augmentation, shifts


@dataclass(frozen=True)
class Fakes:
    """Generated images: one for each code of a photograph, then averages of codes."""

    images: Tensor  # [N + M, C, S, S]
    codes: Tensor  # [N, L, latent], of the photographs
    groups: list[np.ndarray]  # M groups of the code bank that were averaged
    flat: Tensor | None  # [F, latent]: the last averages use one such w in every layer

    @property
    def reconstructions(self) -> Tensor:
        """The images of the photographs' codes, [N, C, S, S]."""
        return self.images[: len(self.codes)]

    @property
    def averages(self) -> Tensor:
        """The images of the averaged codes, [M, C, S, S]."""
        return self.images[len(self.codes) :]


def encode(networks: Networks, x: Tensor, size_px: int, again: float, chance: Chance) -> Tensor:
    """Return the codes [N, L, latent] of photographs `x` [N, C, S, S].

    With chance `again` the encoder sees its own reconstruction at `size_px` and corrects the code.
    """
    generator, _, encoder = networks
    start = encoder.start_codes(len(x))
    seen = enlarge(synthesis(generator, start[:1], size_px), generator.size_px)
    seen = seen.expand(len(x), -1, -1, -1)
    if chance.rows.random() < again:
        with torch.no_grad():
            start = start + encoder(x, seen)
            seen = enlarge(synthesis(generator, start, size_px), generator.size_px)
    residual: Tensor = encoder(x, seen)
    return start + residual


def generate(
    generator: Generator,
    codes: Tensor,
    bank: CodeBank,
    plan: PretrainPlan,
    phase: Phase,
    chance: Chance,
) -> Fakes:
    """Return reconstructions of `codes` and, once there is a critic, averages of the bank's codes.

    The first averages use the mean W+ code, the others one w for all layers.
    """
    wplus = [codes]
    groups: list[np.ndarray] = []
    flat = None
    noise = None
    if phase.judging:
        groups = bank.groups(plan.averaged + plan.flattened, plan.largest_average, chance.rows)
        means = bank.means(groups)
        flat = means[plan.averaged :].mean(1)
        wplus += [means[: plan.averaged], generator.broadcast(flat)]
        noise = chance.values
    images = synthesis(generator, torch.cat(wplus), phase.size_px, noise)
    return Fakes(images, codes, groups, flat)


def losses(
    networks: Networks,
    batch: Batch,
    fakes: Fakes,
    bank: CodeBank,
    plan: PretrainPlan,
    phase: Phase,
    chance: Chance,
) -> Losses:
    """Return the losses of encoder and generator on photographs, before their weights."""
    sharp = plan.sharp if phase.textured else 1.0
    parts = _reconstruction_losses(batch, fakes, phase.size_px, sharp)
    if phase.judging:
        networks.critic.requires_grad_(False)
        parts |= _critic_losses(networks, batch, fakes, chance.values)
        networks.critic.requires_grad_(True)
    if phase.textured:
        parts |= _texture_losses(batch.wanted, fakes, bank, plan.size_px // WINDOWS, chance.values)
    return parts


def _reconstruction_losses(batch: Batch, fakes: Fakes, size_px: int, sharp: float) -> Losses:
    """How far reconstructions are from the photographs, and how far codes are from one small w."""
    shared = fakes.codes.mean(1)
    wanted = F.adaptive_avg_pool2d(batch.wanted, size_px)
    counts = (F.adaptive_avg_pool2d(known_part(batch.field), size_px) >= 1).to(wanted.dtype)
    return {
        "reconstruction": reconstruction_loss(wanted, fakes.reconstructions, sharp, counts),
        "detail": (fakes.codes - shared[:, None]).square().mean(),
        "size": shared.square().mean(),
    }


def _critic_losses(networks: Networks, batch: Batch, fakes: Fakes, draw: torch.Generator) -> Losses:
    """The critic's features and score, and the encoder on images of a known code.

    The critic sees every generated image cut to the field of a photograph.
    """
    generator, critic, encoder = networks
    assert fakes.flat is not None
    count = len(fakes.flat)

    # what is compared with, without a gradient
    with torch.no_grad():
        wanted = critic.features(batch.wanted)
        known = fakes.images[-count:]
        first = generator.synthesis(encoder.start_codes(1))

    # the critic: features of reconstructions as of photographs, and a high score for all fakes
    field = batch.field[torch.arange(len(fakes.images)) % len(batch.field)]
    judged = cut(fakes.images, field)
    made = critic.features(judged[: len(fakes.codes)])
    pairs = zip(made, wanted, strict=True)
    feature = torch.stack([F.l1_loss(a, b) for a, b in pairs]).mean()
    adversarial = F.softplus(-critic(augment(judged, draw))).mean()

    # the encoder finds the w of which an image was made
    found = encoder.start_codes(count) + encoder(known.detach(), first.expand_as(known))
    cycle = F.mse_loss(found, generator.broadcast(fakes.flat))
    return {"feature": feature, "adversarial": adversarial, "cycle": cycle}


def _texture_losses(
    x: Tensor, fakes: Fakes, bank: CodeBank, window_px: int, draw: torch.Generator
) -> Losses:
    """Textures and spots of reconstructions and averages, window by window.

    The windows of the reconstructions are shifted at random, so that their edges lie elsewhere at
    each step.
    """
    dy, dx = draw_integers(0, window_px, 2, draw).cpu().tolist()
    shift = (dy, dx)
    return {
        "texture": texture_distance(textures(fakes.reconstructions, shift, x), textures(x, shift)),
        "spots": F.l1_loss(spots(fakes.reconstructions, shift, x), spots(x, shift)),
        "averaged_texture": bank.texture_distance(fakes.averages, fakes.groups),
        "averaged_spots": bank.spot_distance(fakes.averages, fakes.groups),
    }


def train_makers(training: Training, parts: Losses, phase: Phase) -> None:
    """Update generator and encoder once, on the weighted sum of `parts`."""
    generator, _, encoder = training.networks
    make = training.optimisers[0]
    loss = torch.stack([phase.weights[name] * part for name, part in parts.items()]).sum()
    make.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_([*generator.parameters(), *encoder.parameters()], GRADIENT_NORM)
    make.step()


def train_critic(
    training: Training, photographs: Photographs, fake: Tensor, plan: PretrainPlan, chance: Chance
) -> Losses:
    """Update the critic on random photographs against `fake`; return its mean scores.

    Each generated image is cut to the field of the photograph that it is judged beside.
    """
    critic = training.networks.critic
    judge = training.optimisers[1]
    scores: Losses = {}
    for turn in range(plan.critic_steps):
        # score as many photographs as there are fakes, all augmented in the same way
        batch, _ = photographs.draw(len(fake), chance.rows, chance.values)
        real = batch.wanted
        judged_real = critic(augment(real, chance.values))
        judged_fake = critic(augment(cut(fake.detach(), batch.field), chance.values))
        loss = F.softplus(-judged_real).mean() + F.softplus(judged_fake).mean()

        # the gradient penalty at every eighth step, eight times as heavy
        if turn == 0 and training.step % R1_EVERY == 0:
            penalty = gradient_penalty(critic, real)
            loss = loss + 0.5 * R1_EVERY * plan.gradient_penalty * penalty
        judge.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        judge.step()
        scores = {"critic_real": judged_real.mean(), "critic_fake": judged_fake.mean()}
    return scores


@torch.no_grad()
def keep_noise(generator: Generator, least: float) -> None:
    """Raise the noise strengths at full and half the size to ± `least`, keeping their signs.

    Pixel differences drive them to 0. From there no style can learn to let noise through as
    texture.
    """
    for layer in [*generator.up[-2:], *generator.same[-2:]]:
        assert isinstance(layer, StyledLayer)
        strength = layer.noise_strength
        if not strength.requires_grad:  # a map that is held
            continue
        raised = strength.clamp(min=least)
        lowered = strength.clamp(max=-least)
        strength.copy_(torch.where(strength < 0, lowered, raised))
