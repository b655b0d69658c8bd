"""Pretrains generator, critic and encoder on public photographs: phase 1 of a run.

In: a folder of public photographs, or an .npz with `images` uint8 [N, S, S, C] (optional `names`,
`laterality`).
Out: a folder with gan.safetensors, encoder.safetensors, MODEL_CARD.md and `training/`.
Guarantees: excluded names do not enter; the card names source, licence and hashes.
Not covered: privacy. Nothing is clipped and no noise is added, so every image must be public.

The recipe, for a few hundred photographs:
  - encoder and generator learn together to reconstruct, first at half the size;
  - then a critic judges reconstructions and averages of two to five codes, as a release has them;
  - from the middle on, textures are compared window by window (losses.py), for lesions;
  - last, the mapping network learns which codes photographs have (prior.py).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import ConfigurationError
from common.models.stylegan import (
    Generator,
    StyledLayer,
    upsample,
)
from common.storage.files import atomic_write
from common.wire.tensors import write
from server.pretrain.code_bank import CodeBank
from server.pretrain.gan_files import card, save
from server.pretrain.gan_plan import PretrainPlan
from server.pretrain.gan_state import Networks, Training, begin, restore, state, update_averages
from server.pretrain.losses import (
    WINDOWS,
    augmented,
    gradient_penalty,
    reconstruction_loss,
    spots,
    texture_distance,
    textures,
)
from server.pretrain.memory import keep_memory
from server.pretrain.prior import centre, fit_prior, flat_codes
from server.pretrain.provenance import Provenance
from server.public_data.augmentation import tint, views
from server.public_data.images import Source, read_names, read_source

R1_EVERY = 8
STATE_FILE = "training/state.safetensors"
GRADIENT_NORM = 10.0
TEXTURES = ("texture", "averaged_texture", "spots", "averaged_spots")  # weights that grow together
Progress = Callable[[int, float], None]


def run(
    images: Path,
    out: Path,
    plan: PretrainPlan,
    provenance: Provenance,
    *,
    minutes: float = math.inf,
    steps: int = 1 << 40,
    resume: bool = False,
    exclude: Path | None = None,
    device: str = "cpu",
    progress: Progress = lambda step, share: None,
) -> Training:
    """Read the photographs, train, and write the checkpoint and its card into `out`.

    `exclude`: a text file of names, one a line, that must not be in the training set.
    Raises ConfigurationError for sources that do not fit, for neither `minutes` nor `steps`, for an
    unknown torch `device`, and for an existing checkpoint or an interrupted run without `resume`.
    """
    if math.isinf(minutes) and steps >= 1 << 40:
        raise ConfigurationError("pretrain: give minutes or steps")
    check_device(device)
    existing = [name for name in ("gan.safetensors", STATE_FILE) if (out / name).exists()]
    if existing and not resume:
        raise ConfigurationError(
            f"{out}: holds a checkpoint already", hint="resume it, or name another folder"
        )
    names = read_names(exclude)
    source = read_source(images, plan.size_px, plan.channels, names)
    training = pretrain(
        source,
        plan,
        out,
        minutes=minutes,
        steps=steps,
        resume=resume,
        device=device,
        progress=progress,
    )
    atomic_write(
        out / "MODEL_CARD.md", card(training, source, plan, provenance, names, out).encode()
    )
    return training


def pretrain(
    source: Source,
    plan: PretrainPlan,
    out: Path,
    *,
    minutes: float = math.inf,
    steps: int = 1 << 40,
    resume: bool = False,
    device: str = "cpu",
    save_every_s: float = 120.0,
    look_every_s: float = 900.0,
    progress: Progress = lambda step, share: None,
) -> Training:
    """Return the networks after `minutes` of training or `steps` steps, whichever ends first.

    The state is written every `save_every_s` seconds; checkpoint, sheet and losses every
    `look_every_s`. With `resume` the state in `out` is continued, and minutes and steps count from
    the first run on.
    """
    keep_memory()
    training = begin(plan, device)
    if resume and (out / STATE_FILE).is_file():
        restore(training, out / STATE_FILE)
    random = np.random.default_rng([plan.seed, training.step])
    draw = torch.Generator().manual_seed(plan.seed + training.step)
    x_all, side_all = views(source, 6, np.random.default_rng(plan.seed))
    bank = CodeBank(plan.bank)
    began = time.monotonic() - training.seconds
    saved = looked = time.monotonic()
    generator, critic, encoder = training.networks
    make, judge = training.optimisers

    while True:
        # (1) progress and learning rates: 100 steps of warm-up, then half a cosine down to 5 %
        training.seconds = time.monotonic() - began
        share = max(training.seconds / (60 * minutes), training.step / steps)
        progress(training.step, min(share, 1.0))
        if share >= 1:
            break
        rate = min(1.0, (training.step + 1) / 100) * max(
            0.05, 0.5 + 0.5 * math.cos(math.pi * share)
        )
        make.param_groups[0]["lr"] = plan.generator_learning_rate * rate
        make.param_groups[1]["lr"] = plan.encoder_learning_rate * rate
        judge.param_groups[0]["lr"] = plan.critic_learning_rate * min(1.0, 5 * (1.05 - share))
        since = max(plan.textured, plan.alone)
        textured = share >= since
        judging = share >= plan.alone
        ramp = min(1.0, 10 * (share - plan.alone))
        size_px = plan.size_px
        if not judging and share < plan.coarse:
            size_px = plan.size_px // 2

        # (2) encode a batch of photographs; now and then after one more iteration of the encoder
        chosen = torch.as_tensor(random.integers(len(x_all), size=plan.reconstructed))
        x = tint(x_all[chosen], draw).to(device)
        side = side_all[chosen]
        start = encoder.start_codes(len(x))
        seen = enlarge(synthesis(generator, start[:1], size_px), plan.size_px).expand(
            len(x), -1, -1, -1
        )
        if random.random() < plan.again:
            with torch.no_grad():
                start = start + encoder(x, seen)
                seen = enlarge(synthesis(generator, start, size_px), plan.size_px)
        residual = encoder(x, seen)
        codes = start + residual
        if textured and not bank.textures:
            bank = CodeBank(plan.bank)  # drop the codes that have no textures
        bank.add(codes, side, x if textured else None)

        # (3) generate reconstructions and, once there is a critic, averages of codes
        fakes = [codes]
        if judging:
            groups = bank.groups(plan.averaged + plan.flattened, plan.largest_average, random)
            means = bank.means(groups)
            w = means[plan.averaged :].mean(1)
            fakes += [means[: plan.averaged], generator.broadcast(w)]
        fake = synthesis(generator, torch.cat(fakes), size_px, draw if judging else None)

        # (4) add up the losses of encoder and generator
        shared = codes.mean(1)
        parts = {
            "reconstruction": reconstruction_loss(
                F.adaptive_avg_pool2d(x, size_px), fake[: len(x)], plan.sharp if textured else 1.0
            ),
            "detail": (codes - shared[:, None]).square().mean(),
            "size": shared.square().mean(),
        }
        if judging:
            # the critic's score, its features, and the encoder on an image of a known code
            critic.requires_grad_(False)
            with torch.no_grad():
                wanted = critic.features(x)
                known = fake[-len(w) :]
                first = generator.synthesis(encoder.start_codes(1))
            pairs = zip(critic.features(fake[: len(x)]), wanted, strict=True)
            parts["feature"] = torch.stack([F.l1_loss(a, b) for a, b in pairs]).mean()
            parts["adversarial"] = F.softplus(-critic(augmented(fake, draw))).mean()
            found = encoder.start_codes(len(w)) + encoder(known.detach(), first.expand_as(known))
            parts["cycle"] = F.mse_loss(found, generator.broadcast(w))
            critic.requires_grad_(True)
        if textured:
            # the photographs' textures, window by window
            dy, dx = torch.randint(plan.size_px // WINDOWS, (2,), generator=draw).tolist()
            parts["texture"] = texture_distance(
                textures(fake[: len(x)], (dy, dx), x), textures(x, (dy, dx))
            )
            parts["spots"] = F.l1_loss(spots(fake[: len(x)], (dy, dx), x), spots(x, (dy, dx)))
            parts["averaged_texture"] = bank.texture_distance(fake[len(x) :], groups)
            parts["averaged_spots"] = bank.spot_distance(fake[len(x) :], groups)
        swell = {"adversarial": ramp} | dict.fromkeys(TEXTURES, min(1.0, 10 * (share - since)))
        weights = {name: weight * swell.get(name, 1.0) for name, weight in plan.weights.items()}
        loss = torch.stack([weights[name] * part for name, part in parts.items()]).sum()
        make.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_([*generator.parameters(), *encoder.parameters()], GRADIENT_NORM)
        make.step()
        if textured:
            keep_noise(generator, plan.least_noise)

        # (5) train the critic on photographs against all kinds of fakes
        for turn in range(plan.critic_steps if judging else 0):
            rows = torch.as_tensor(random.integers(len(x_all), size=len(fake)))
            real = tint(x_all[rows], draw).to(device)
            judged_real = critic(augmented(real, draw))
            judged_fake = critic(augmented(fake.detach(), draw))
            critic_loss = F.softplus(-judged_real).mean() + F.softplus(judged_fake).mean()
            if turn == 0 and training.step % R1_EVERY == 0:
                penalty = gradient_penalty(critic, real)
                critic_loss = critic_loss + 0.5 * R1_EVERY * plan.gradient_penalty * penalty
            judge.zero_grad(set_to_none=True)
            critic_loss.backward()  # type: ignore[no-untyped-call]
            judge.step()
            parts |= {"critic_real": judged_real.mean(), "critic_fake": judged_fake.mean()}

        # (6) update the moving averages and the figures; write files now and then
        training.step += 1
        update_averages(
            training, min(plan.average_decay, (1 + training.step) / (10 + training.step))
        )
        for name, value in parts.items():
            now = float(value.detach())
            training.losses[name] = 0.98 * training.losses.get(name, now) + 0.02 * now
        if time.monotonic() - looked > look_every_s:
            finish(training, bank, plan.prior_steps, draw)
            save(training, source, plan, out)
            saved = looked = time.monotonic()
        elif time.monotonic() - saved > save_every_s:
            write(out / STATE_FILE, state(training))
            saved = time.monotonic()

    photographs, _ = views(source, 1, np.random.default_rng(0))  # in the order of `encode_all`
    finish(training, encode_all(training.averages, source), 8 * plan.prior_steps, draw, photographs)
    save(training, source, plan, out)
    return training


def synthesis(
    generator: Generator, wplus: Tensor, size_px: int, noise: torch.Generator | None = None
) -> Tensor:
    """Return the image of `wplus` at `size_px`: the generator's own size or a smaller one."""
    if size_px == generator.size_px:
        return generator.synthesis(wplus, noise)
    x = generator.first(generator.constant.expand(len(wplus), -1, -1, -1), wplus[:, 0], noise)
    image: Tensor = generator.to_image[0](x, wplus[:, 1])
    for i in range(int(math.log2(size_px)) - 2):
        x = generator.same[i](
            generator.up[i](x, wplus[:, 2 * i + 1], noise), wplus[:, 2 * i + 2], noise
        )
        image = upsample(image) + generator.to_image[i + 1](x, wplus[:, 2 * i + 3])
    return image + generator.image_bias[None, :, None, None]


@torch.no_grad()
def keep_noise(generator: Generator, least: float) -> None:
    """Raise the noise strengths of the layers at full and half the size to ± `least`, keeping their
    signs.

    Pixel differences drive them to 0. From there no style can learn to let noise through as
    texture.
    """
    for layer in [*generator.up[-2:], *generator.same[-2:]]:
        assert isinstance(layer, StyledLayer)
        strength = layer.noise_strength
        strength.copy_(
            torch.where(strength < 0, strength.clamp(max=-least), strength.clamp(min=least))
        )


def enlarge(image: Tensor, size_px: int) -> Tensor:
    """Return `image` as it is, or doubled to `size_px`."""
    return image if image.shape[-1] == size_px else upsample(image)


def check_device(device: str) -> None:
    """Raise ConfigurationError for a device that torch does not know or that this machine does not
    have.
    """
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigurationError(
            f"pretrain: device {device}: not usable here", hint="expected cpu or cuda"
        ) from error


@torch.no_grad()
def encode_all(networks: Networks, source: Source) -> CodeBank:
    """Return the codes of every photograph and, where sides are known, of its mirror image."""
    x, side = views(source, 1, np.random.default_rng(0))
    bank = CodeBank(len(x))
    for start in range(0, len(x), 64):
        part = x[start : start + 64].to(networks.generator.constant.device)
        bank.add(
            networks.encoder.invert(part, networks.generator, 1).codes, side[start : start + 64]
        )
    return bank


def finish(
    training: Training,
    bank: CodeBank,
    steps: int,
    draw: torch.Generator,
    photographs: Tensor | None = None,
) -> None:
    """Centre the layers' codes, then teach the averaged generator's mapping network their
    distribution.

    With `photographs` [M, C, S, S], one for each code of the bank, the mapping learns their
    `flat_codes`. Without them, as during training, it learns the means of the codes' layers.
    """
    if not bank.codes:
        return
    codes = torch.stack(bank.codes)
    offset = codes.mean(0) - codes.mean((0, 1))
    for networks in (training.networks, training.averages):
        centre(networks.generator, networks.encoder, offset)
    bank.codes = list(codes - offset)
    mapping = training.averages.generator.mapping
    codes = torch.stack(bank.codes).mean(1)
    if photographs is not None:
        codes = flat_codes(training.averages.generator, photographs, codes)
    fit_prior(mapping, codes, steps, draw)
    training.networks.generator.mapping.load_state_dict(mapping.state_dict())
