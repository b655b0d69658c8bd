"""Trains the starting checkpoint of generator, critic and encoder on public photographs: phase 1 of a run.

In: a folder of public photographs or an .npz with `images` uint8 [N, S, S, C] (optional `names`, `laterality`).
Out: a folder with gan.safetensors (`generator.*`, `critic.*`), encoder.safetensors (`encoder.*`), MODEL_CARD.md, and
`training/`: the state from which an interrupted run continues, sample sheets and the losses.
Guaranteed: excluded names do not enter; the card names source, licence and hashes; each file is written atomically.
Not: privacy. Whatever is trained on here must be public, for nothing is clipped and no noise is added.

Recipe (two hundred photographs are too few for a GAN alone): encoder and generator learn together to reconstruct, first at
half the size; then a critic judges reconstructions and *averages of two to five codes* of one side of the body, so that the
k-anonymous averages that the product releases look like photographs; from the middle on both also take the photographs'
textures, window by window (server/pretrain/losses.py), for lesions that no code can place exactly; last, the mapping network
learns which codes photographs have (server/pretrain/prior.py).
"""

from __future__ import annotations

import ctypes
import hashlib
import io
import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import ConfigurationError
from common.models.encoder import Encoder
from common.models.stylegan import (
    Critic,
    Generator,
    StyledLayer,
    load_weights,
    numpy_weights,
    to_uint8,
    to_unit,
    upsample,
)
from common.storage.files import atomic_write
from common.wire.tensors import read, write
from server.pretrain.losses import (
    WINDOWS,
    augmented,
    gradient_penalty,
    reconstruction_loss,
    spots,
    texture_distance,
    textures,
)
from server.pretrain.prior import centre, fit_prior, flat_codes
from server.public_data.images import Source, read_names, read_source, tinted, views

CHECKPOINT_CAP_BYTES = 2 << 30
R1_EVERY = 8
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
GRADIENT_NORM = 10.0
TEXTURES = (
    "texture",
    "averaged_texture",
    "spots",
    "averaged_spots",
)  # of a plan's weights: they grow together
PREFIXES = ("generator.", "critic.", "encoder.")
Progress = Callable[[int, float], None]


@dataclass(frozen=True)
class PretrainPlan:
    """The public options of one pretraining. A study that starts from it repeats size, channels, width and latent."""

    size_px: int = 64
    channels: int = 3
    width: int = 24
    latent: int = 128
    encoder_width: int = 24
    reconstructed: int = 6  # photographs a step
    averaged: int = 2  # averages of W+ codes a step
    flattened: int = (
        2  # averages with one w for all layers a step: what the mapping network can make
    )
    largest_average: int = 5  # codes in an average, at most
    coarse: float = 0.2  # share of the run at half the size: a step costs less, and colour and disc settle there
    alone: float = 0.3  # share of the run in which there is no critic yet
    textured: float = (
        0.53  # share of the run after which textures count (`weights`) and `sharp` holds
    )
    sharp: float = 0.25  # from then on: share of the pixel differences that is taken at full size
    least_noise: float = (
        0.15  # from then on: strength of the noise maps at full and half the size, at least
    )
    again: float = 0.3  # share of steps in which the encoder looks a second time
    critic_steps: int = 1
    prior_steps: int = 400  # of `fit_prior`, at every look (`look_every_s`)
    generator_learning_rate: float = 2e-3
    encoder_learning_rate: float = 1e-3
    critic_learning_rate: float = 2e-3
    gradient_penalty: float = 0.005
    average_decay: float = 0.998
    bank: int = 2048
    seed: int = 0
    weights: Mapping[str, float] = field(
        default_factory=lambda: {
            "reconstruction": 4.0,
            "feature": 1.0,
            "texture": 1.5,
            "averaged_texture": 0.75,
            "spots": 100.0,
            "averaged_spots": 50.0,
            "adversarial": 0.5,
            "cycle": 0.1,
            "detail": 0.2,
            "size": 0.002,
        }
    )


@dataclass(frozen=True)
class Provenance:
    """Where the photographs come from, for the card. The first three are required: no weights without a source."""

    source: str
    licence: str
    attribution: str
    note: str = ""  # anything else that a reader must know about this training

    def __post_init__(self) -> None:
        missing = [
            name for name in ("source", "licence", "attribution") if not getattr(self, name).strip()
        ]
        if missing:
            raise ConfigurationError(
                f"pretrain: {', '.join(missing)}: missing", hint="the model card must name them"
            )


class Networks(NamedTuple):
    """The three networks that are trained together."""

    generator: Generator
    critic: Critic
    encoder: Encoder


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
    """What `kohort-server pretrain` does: read, train, write the checkpoint and its card into `out`.

    `exclude`: a text file with one name per line that must not be in the training set. Raises ConfigurationError for
    sources that do not fit, for neither `minutes` nor `steps`, for an unknown `device` (a torch device), and for an
    existing checkpoint or an interrupted run without `resume`.
    """
    if math.isinf(minutes) and steps >= 1 << 40:
        raise ConfigurationError("pretrain: give minutes or steps")
    check_device(device)
    if (
        any((out / name).exists() for name in ("gan.safetensors", "training/state.safetensors"))
        and not resume
    ):
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


# ---- codes ----------------------------------------------------------------------------------------------------------
class CodeBank:
    """The latest codes of real photographs [M, L, latent] by side, from which averages and the prior come, and, where they
    are given, the photographs' textures [M, P, F, F], spots [M, K] and brightest channels [M, 1, S, S] (for the surround).
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.codes: list[Tensor] = []
        self.sides: list[int] = []
        self.textures: list[Tensor] = []
        self.spots: list[Tensor] = []
        self.brightest: list[Tensor] = []

    def add(self, codes: Tensor, sides: Tensor, photographs: Tensor | None = None) -> None:
        """Codes [N, L, latent] and sides [N]; with `photographs` [N, C, S, S] in each call, or in none."""
        self.codes = (self.codes + list(codes.detach()))[-self.size :]
        self.sides = (self.sides + sides.tolist())[-self.size :]
        if photographs is not None:
            self.textures = (self.textures + list(textures(photographs)))[-self.size :]
            self.spots = (self.spots + list(spots(photographs)))[-self.size :]
            self.brightest = (self.brightest + list(photographs.amax(1, keepdim=True)))[
                -self.size :
            ]

    def groups(self, count: int, largest: int, random: np.random.Generator) -> list[np.ndarray]:
        """`count` times 2 to `largest` rows of one side, drawn with replacement."""
        sides = np.array(self.sides)
        made = []
        for _ in range(count):
            same = np.flatnonzero(sides == sides[random.integers(len(sides))])
            made.append(random.choice(same, random.integers(2, largest + 1)))
        return made

    def means(self, groups: list[np.ndarray]) -> Tensor:
        """The mean code of each group, [len(groups), L, latent]."""
        return _means(self.codes, groups)

    def texture_distance(self, made: Tensor, groups: list[np.ndarray]) -> Tensor:
        """How far the textures of `made` [len(groups), C, S, S] are from the mean texture of each group's photographs, which
        is what k-SALSA's alignment asks of a group's average."""
        surround = _means(self.brightest, groups)
        return texture_distance(textures(made, surround=surround), _means(self.textures, groups))

    def spot_distance(self, made: Tensor, groups: list[np.ndarray]) -> Tensor:
        """The same of `spots`: mean absolute difference."""
        return F.l1_loss(
            spots(made, surround=_means(self.brightest, groups)), _means(self.spots, groups)
        )


def _means(of: list[Tensor], groups: list[np.ndarray]) -> Tensor:
    """The mean over each group's rows."""
    return torch.stack([torch.stack([of[i] for i in rows]).mean(0) for rows in groups])


# ---- training -------------------------------------------------------------------------------------------------------
@dataclass
class Training:
    """Everything that a resumed run needs: networks, their moving averages, optimiser moments, steps and seconds done."""

    networks: Networks
    averages: Networks
    optimisers: tuple[torch.optim.Adam, torch.optim.Adam]
    step: int = 0
    seconds: float = 0.0
    losses: dict[str, float] = field(default_factory=dict)


def begin(plan: PretrainPlan, device: str = "cpu") -> Training:
    """Fresh networks and optimisers on `device` (a torch device; the same starting weights on each)."""
    torch.manual_seed(plan.seed)
    networks = Networks(
        Generator(plan.size_px, plan.channels, plan.width, plan.latent).to(device),
        Critic(plan.size_px, plan.channels, plan.width).to(device),
        Encoder(plan.size_px, plan.channels, plan.encoder_width, plan.latent).to(device),
    )
    made: list[dict[str, Any]] = [
        {"params": list(networks.generator.parameters()), "lr": plan.generator_learning_rate},
        {"params": list(networks.encoder.parameters()), "lr": plan.encoder_learning_rate},
    ]
    return Training(
        networks,
        deepcopy(networks),
        (
            torch.optim.Adam(made, betas=(0.9, 0.99), fused=True),
            torch.optim.Adam(
                networks.critic.parameters(),
                lr=plan.critic_learning_rate,
                betas=(0.5, 0.99),
                fused=True,
            ),
        ),
    )


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
    """The networks after `minutes` of training or `steps` steps, whichever ends first; files in `out` as in the header.

    The state is written every `save_every_s` seconds, the checkpoint with prior, sheet and losses every `look_every_s`.
    With `resume` the state in `out` is continued; minutes and steps count from the very beginning.
    """
    keep_memory()
    training = begin(plan, device)
    if resume and (out / "training" / "state.safetensors").is_file():
        restore(training, out / "training" / "state.safetensors")
    random = np.random.default_rng([plan.seed, training.step])
    draw = torch.Generator().manual_seed(plan.seed + training.step)
    x_all, side_all = views(source, 6, np.random.default_rng(plan.seed))
    bank = CodeBank(plan.bank)
    began = time.monotonic() - training.seconds
    saved = looked = time.monotonic()
    generator, critic, encoder = training.networks
    make, judge = training.optimisers

    while True:
        # 1. How far we are; learning rates: 100 steps of warm-up, then half a cosine down to 5 % (critic: constant).
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
        textured = share >= (since := max(plan.textured, plan.alone))
        judging, ramp = share >= plan.alone, min(1.0, 10 * (share - plan.alone))
        size_px = plan.size_px if judging or share >= plan.coarse else plan.size_px // 2

        # 2. A batch of photographs and their codes, now and then after one more iteration of the encoder.
        chosen = torch.as_tensor(random.integers(len(x_all), size=plan.reconstructed))
        x, side = tinted(x_all[chosen], draw).to(device), side_all[chosen]
        start = encoder.start_codes(len(x))
        seen = enlarged(synthesis(generator, start[:1], size_px), plan.size_px).expand(
            len(x), -1, -1, -1
        )
        if random.random() < plan.again:
            with torch.no_grad():
                start = start + encoder(x, seen)
                seen = enlarged(synthesis(generator, start, size_px), plan.size_px)
        residual = encoder(x, seen)
        codes = start + residual
        if textured and not bank.textures:
            bank = CodeBank(plan.bank)  # codes without textures go
        bank.add(codes, side, x if textured else None)

        # 3. One pass of the generator: reconstructions and, once there is a critic, averages of codes.
        fakes = [codes]
        if judging:
            groups = bank.groups(plan.averaged + plan.flattened, plan.largest_average, random)
            means = bank.means(groups)
            w = means[plan.averaged :].mean(1)
            fakes += [means[: plan.averaged], generator.broadcast(w)]
        fake = synthesis(generator, torch.cat(fakes), size_px, draw if judging else None)

        # 4. Encoder and generator reconstruct and keep the layers' codes together.
        shared = codes.mean(1)
        parts = {
            "reconstruction": reconstruction_loss(
                F.adaptive_avg_pool2d(x, size_px), fake[: len(x)], plan.sharp if textured else 1.0
            ),
            "detail": (codes - shared[:, None]).square().mean(),
            "size": shared.square().mean(),
        }
        if (
            judging
        ):  # ... and please the critic; the encoder finds the code of an image that it has not seen
            critic.requires_grad_(False)
            with torch.no_grad():
                wanted = critic.features(x)
                known, first = fake[-len(w) :], generator.synthesis(encoder.start_codes(1))
            pairs = zip(critic.features(fake[: len(x)]), wanted, strict=True)
            parts["feature"] = torch.stack([F.l1_loss(a, b) for a, b in pairs]).mean()
            parts["adversarial"] = F.softplus(-critic(augmented(fake, draw))).mean()
            found = encoder.start_codes(len(w)) + encoder(known.detach(), first.expand_as(known))
            parts["cycle"] = F.mse_loss(found, generator.broadcast(w))
            critic.requires_grad_(True)
        if textured:  # ... and have the textures of the photographs, window by window
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

        # 5. The critic: photographs against all kinds of fakes, and now and then the gradient penalty.
        for turn in range(plan.critic_steps if judging else 0):
            real = tinted(
                x_all[torch.as_tensor(random.integers(len(x_all), size=len(fake)))], draw
            ).to(device)
            judged_real, judged_fake = (
                critic(augmented(real, draw)),
                critic(augmented(fake.detach(), draw)),
            )
            critic_loss = F.softplus(-judged_real).mean() + F.softplus(judged_fake).mean()
            if turn == 0 and training.step % R1_EVERY == 0:
                critic_loss = (
                    critic_loss
                    + 0.5 * R1_EVERY * plan.gradient_penalty * gradient_penalty(critic, real)
                )
            judge.zero_grad(set_to_none=True)
            critic_loss.backward()  # type: ignore[no-untyped-call]
            judge.step()
            parts |= {"critic_real": judged_real.mean(), "critic_fake": judged_fake.mean()}

        # 6. Moving averages of the weights, figures, and files now and then.
        training.step += 1
        follow(training, min(plan.average_decay, (1 + training.step) / (10 + training.step)))
        for name, value in parts.items():
            now = float(value.detach())
            training.losses[name] = 0.98 * training.losses.get(name, now) + 0.02 * now
        if time.monotonic() - looked > look_every_s:
            finish(training, bank, plan.prior_steps, draw)
            save(training, source, plan, out)
            saved = looked = time.monotonic()
        elif time.monotonic() - saved > save_every_s:
            write(out / "training" / "state.safetensors", state(training))
            saved = time.monotonic()

    photographs, _ = views(source, 1, np.random.default_rng(0))  # in the order of `coded`
    finish(training, coded(training.averages, source), 8 * plan.prior_steps, draw, photographs)
    save(training, source, plan, out)
    return training


def synthesis(
    generator: Generator, wplus: Tensor, size_px: int, noise: torch.Generator | None = None
) -> Tensor:
    """`generator.synthesis` of `wplus` up to `size_px`, the generator's own size or a smaller one."""
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
    """Raises the noise strengths of the layers at full and half the size to ± `least`, whichever sign they have.

    Pixel differences drive them to 0, and from there no style can learn to let noise through as texture.
    """
    for layer in [*generator.up[-2:], *generator.same[-2:]]:
        assert isinstance(layer, StyledLayer)
        strength = layer.noise_strength
        strength.copy_(
            torch.where(strength < 0, strength.clamp(max=-least), strength.clamp(min=least))
        )


def enlarged(image: Tensor, size_px: int) -> Tensor:
    """`image` as it is, or doubled to `size_px`."""
    return image if image.shape[-1] == size_px else upsample(image)


def check_device(device: str) -> None:
    """Raises ConfigurationError for a device that torch does not know or that this machine does not have."""
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigurationError(
            f"pretrain: device {device}: not usable here", hint="expected cpu or cuda"
        ) from error


def keep_memory() -> None:
    """Lets glibc keep freed blocks instead of returning them: a tenth of a step was page faults. No-op elsewhere."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        for option in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
            libc.mallopt(option, 1 << 30)


@torch.no_grad()
def coded(networks: Networks, source: Source) -> CodeBank:
    """The codes of every photograph and, where sides are known, its mirror image, after one look of the encoder."""
    x, side = views(source, 1, np.random.default_rng(0))
    bank = CodeBank(len(x))
    for start in range(0, len(x), 64):
        part = x[start : start + 64].to(networks.generator.constant.device)
        bank.add(
            networks.encoder.invert(part, networks.generator, 1).codes, side[start : start + 64]
        )
    return bank


# ---- the prior ------------------------------------------------------------------------------------------------------
def finish(
    training: Training,
    bank: CodeBank,
    steps: int,
    draw: torch.Generator,
    photographs: Tensor | None = None,
) -> None:
    """Centres the layers' codes, then teaches the averaged generator's mapping network their distribution.

    `photographs` [M, C, S, S], one for each code of the bank: the mapping learns their `flat_codes`. Without them (at a
    look during training, where the bank's photographs are gone) it learns the means of the codes' layers.
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


@torch.no_grad()
def follow(training: Training, decay: float) -> None:
    """Moves each average a share 1 − `decay` of the way to the weights it follows (the critic's average is the critic)."""
    for average, network in zip(training.averages, training.networks, strict=True):
        share = 1.0 if isinstance(network, Critic) else 1 - decay
        for mean, parameter in zip(average.parameters(), network.parameters(), strict=True):
            mean.lerp_(parameter, share)


# ---- files ----------------------------------------------------------------------------------------------------------
def save(training: Training, source: Source, plan: PretrainPlan, out: Path) -> None:
    """Writes checkpoint, state and sample sheet into `out`."""
    generator, critic, encoder = training.averages
    write(
        out / "gan.safetensors",
        numpy_weights(generator, "generator.") | numpy_weights(critic, "critic."),
    )
    write(out / "encoder.safetensors", numpy_weights(encoder, "encoder."))
    write(out / "training" / "state.safetensors", state(training))
    sheet = io.BytesIO()
    Image.fromarray(sample_sheet(training.averages, source, plan)).save(sheet, format="PNG")
    atomic_write(out / "training" / f"samples-{training.step:06d}.png", sheet.getvalue())
    losses = {name: round(value, 4) for name, value in training.losses.items()}
    atomic_write(out / "training" / f"losses-{training.step:06d}.json", json.dumps(losses).encode())


def card(
    training: Training,
    source: Source,
    plan: PretrainPlan,
    provenance: Provenance,
    excluded: list[str],
    out: Path,
) -> str:
    """The model card in Markdown: what it is, what it was trained on, who is not in it, and the files' SHA-256."""
    rows = []
    for file, parts in (("gan.safetensors", PREFIXES[:2]), ("encoder.safetensors", PREFIXES[2:])):
        digest = hashlib.sha256((out / file).read_bytes()).hexdigest()
        for prefix in parts:
            network = training.averages[PREFIXES.index(prefix)]
            count = sum(p.numel() for p in network.parameters())
            rows.append(f"| {file} | `{prefix}*` | {count:,} | `{digest}` |")
    left_out = hashlib.sha256("\n".join(excluded).encode()).hexdigest()
    return CARD.format(
        plan=plan,
        provenance=provenance,
        count=len(source.images),
        digest=source.digest,
        excluded=len(excluded),
        left_out=left_out,
        steps=training.step,
        minutes=training.seconds / 60,
        settings=", ".join(f"{name} {value}" for name, value in asdict(plan).items()),
        rows="\n".join(rows),
    )


CARD = """# Starting checkpoint: generator, critic and encoder, {plan.size_px} px, {plan.channels} channels

Trained by `kohort-server pretrain` (server/pretrain/gan.py) on public photographs alone, so a study that starts from it
spends no privacy budget on it. It is **not** differentially private towards the people in those photographs, and the
generator can resemble single photographs of that public set.

| | |
| --- | --- |
| source | {provenance.source} |
| licence of the photographs | {provenance.licence} |
| attribution | {provenance.attribution} |
| photographs | {count}, SHA-256 of the source `{digest}` |
| left out | {excluded} names that must not be in it; SHA-256 of the sorted list, one per line: `{left_out}` |
| sizes for a study | size_px {plan.size_px}, width {plan.width}, latent {plan.latent}, encoder width {plan.encoder_width} |
| training | {steps} steps, {minutes:.0f} minutes by the clock. {provenance.note} |
| settings | {settings} |
| command | `kohort-server pretrain IMAGES --out OUT --size {plan.size_px} --channels {plan.channels} --minutes {minutes:.0f}` |

| file | tensors | parameters | SHA-256 of the file |
| --- | --- | --- | --- |
{rows}

Intended use: the `start` of `models.gan` and `models.encoder` in a study plan. Not for diagnosis, and not a source of
data by itself: its samples are public-data samples. Nobody whose images take part in a study may be in the source.
"""


def state(training: Training) -> dict[str, np.ndarray]:
    """Weights, averages and Adam's moments as named arrays."""
    arrays: dict[str, np.ndarray] = {
        "progress": np.array([training.step, training.seconds], dtype=np.float64)
    }
    for prefix, network, average in zip(
        PREFIXES, training.networks, training.averages, strict=True
    ):
        arrays |= numpy_weights(network, "now." + prefix) | numpy_weights(
            average, "average." + prefix
        )
    for which, optimiser in enumerate(training.optimisers):
        for index, parameter in enumerate(
            p for group in optimiser.param_groups for p in group["params"]
        ):
            moments = optimiser.state.get(parameter, {})
            for name in ("exp_avg", "exp_avg_sq", "step"):
                if name in moments:
                    arrays[f"adam{which}.{index}.{name}"] = np.asarray(
                        moments[name].cpu().numpy(), dtype=np.float32
                    )
    return arrays


def restore(training: Training, path: Path) -> None:
    """Puts the arrays of a state file back; raises ConfigurationError where they fit another plan."""
    arrays = read(path, max_bytes=CHECKPOINT_CAP_BYTES)
    training.step, training.seconds = int(arrays["progress"][0]), float(arrays["progress"][1])
    for prefix, network, average in zip(
        PREFIXES, training.networks, training.averages, strict=True
    ):
        load_weights(network, arrays, "now." + prefix)
        load_weights(average, arrays, "average." + prefix)
    for which, optimiser in enumerate(training.optimisers):
        for index, parameter in enumerate(
            p for group in optimiser.param_groups for p in group["params"]
        ):
            names = {
                name: f"adam{which}.{index}.{name}" for name in ("exp_avg", "exp_avg_sq", "step")
            }
            if names["step"] in arrays:
                moments = {
                    name: torch.tensor(arrays[key], device=parameter.device)
                    for name, key in names.items()
                }
                optimiser.state[parameter] = moments


@torch.no_grad()
def sample_sheet(
    networks: Networks, source: Source, plan: PretrainPlan, columns: int = 12
) -> np.ndarray:
    """uint8 [rows·S, columns·S, C]: photographs, their inversions, averages of five of one side, samples of the prior."""
    generator, _, encoder = networks
    order = np.random.default_rng(1).permutation(len(source.images))
    side = np.zeros(len(order), dtype=int) if source.right is None else source.right.astype(int)
    shown = order[:columns]
    device = generator.constant.device
    x = to_unit(source.images[shown]).to(device)
    rows = [
        x,
        encoder.invert(x, generator, 1).reconstructions,
        encoder.invert(x, generator, 2).reconstructions,
    ]
    for which in sorted(set(side.tolist())):
        members = [i for i in order if side[i] == which][: 5 * columns]
        codes = encoder.invert(to_unit(source.images[members]).to(device), generator, 2).codes
        means = torch.stack(
            [codes[i::columns][:5].mean(0) for i in range(min(columns, len(members)))]
        )
        rows.append(generator.synthesis(means, torch.Generator().manual_seed(1)))
    draw = torch.Generator().manual_seed(plan.seed)
    for _ in range(3):
        rows.append(generator(torch.randn(columns, plan.latent, generator=draw).to(device), draw))
    lines = []
    for row in rows:
        line = np.zeros((columns, plan.size_px, plan.size_px, plan.channels), dtype=np.uint8)
        line[: len(row)] = to_uint8(row)
        lines.append(line.transpose(1, 0, 2, 3).reshape(plan.size_px, -1, plan.channels))
    sheet = np.concatenate(lines)
    return sheet[..., 0] if plan.channels == 1 else sheet
