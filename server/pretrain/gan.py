"""Pretrains generator, critic and encoder on public photographs: phase 1 of a run.

In: a folder of public photographs, or an .npz with `images` uint8 [N, S, S, C].
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

import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.errors import ConfigurationError
from common.models.draws import device_of
from common.storage.files import atomic_write
from common.wire.tensors import write
from server.pretrain.code_bank import CodeBank
from server.pretrain.gan_files import card, save
from server.pretrain.gan_plan import PretrainPlan
from server.pretrain.gan_schedule import phase_at
from server.pretrain.gan_state import (
    Networks,
    Training,
    begin,
    note_losses,
    restore,
    set_rates,
    state,
    update_averages,
)
from server.pretrain.gan_step import (
    Chance,
    encode,
    generate,
    keep_noise,
    losses,
    train_critic,
    train_makers,
)
from server.pretrain.memory import keep_memory
from server.pretrain.prior import centre, fit_prior, flat_codes
from server.pretrain.provenance import Provenance
from server.pretrain.session import Session, usable_device
from server.public_data.augmentation import shown, tint, views
from server.public_data.images import Source, read_names, read_source

STATE_FILE = "training/state.safetensors"
ENCODED_AT_ONCE = 64


def run(
    images: Path,
    out: Path,
    plan: PretrainPlan,
    provenance: Provenance,
    session: Session,
    exclude: Path | None = None,
    *,
    field_of_view: bool = False,
) -> Training:
    """Read the photographs, train, and write the checkpoint and its card into `out`.

    `exclude`: a text file of names, one a line, that must not be in the training set.
    `field_of_view`: whether a folder's photographs are of the fundus, and framed as such.
    Raises ConfigurationError for sources that do not fit, for a session without a limit, and for an
    unknown torch device. Raises it also for an existing checkpoint or an interrupted run, unless
    the session resumes.
    """
    # refuse what cannot run before anything is read
    session.check()
    usable_device(session.device)
    existing = [name for name in ("gan.safetensors", STATE_FILE) if (out / name).exists()]
    if existing and not session.resume:
        raise ConfigurationError(
            f"{out}: holds a checkpoint already", hint="resume it, or name another folder"
        )

    # read the photographs and train
    names = read_names(exclude)
    source = read_source(images, plan.size_px, plan.channels, names, field_of_view=field_of_view)
    training = pretrain(source, plan, out, session)
    text = card(training, source, plan, provenance, names, out)
    atomic_write(out / "MODEL_CARD.md", text.encode())
    return training


def pretrain(
    source: Source,
    plan: PretrainPlan,
    out: Path,
    session: Session,
    *,
    save_every_s: float = 120.0,
    look_every_s: float = 900.0,
) -> Training:
    """Return the networks at the end of the session.

    The state is written every `save_every_s` seconds; checkpoint, sheet and losses every
    `look_every_s`. A session that resumes continues the state in `out`.
    """
    keep_memory()
    device = usable_device(session.device)
    training = begin(plan, device)
    if session.resume and (out / STATE_FILE).is_file():
        restore(training, out / STATE_FILE)
    chance = Chance(
        np.random.default_rng([plan.seed, training.step]),
        torch.Generator(device).manual_seed(plan.seed + training.step),
    )
    photographs, sides = views(source, 6, np.random.default_rng(plan.seed), device)
    bank = CodeBank(plan.bank)
    networks = training.networks
    began = time.monotonic() - training.seconds
    saved = time.monotonic()
    looked = saved

    while True:
        # (1) report the progress; set what this step does and how fast the networks learn
        training.seconds = time.monotonic() - began
        share = session.share(training.step, training.seconds)
        session.progress(training.step, min(share, 1.0))
        if share >= 1:
            break
        phase = phase_at(share, training.step, plan)
        set_rates(training, phase)

        # (2) encode a batch of photographs; the bank keeps their codes
        rows = torch.as_tensor(chance.rows.integers(len(photographs), size=plan.reconstructed))
        x = tint(shown(photographs[rows.to(device)]), chance.values)
        codes = encode(networks, x, phase.size_px, plan.again, chance)
        if phase.textured and not bank.textures:
            bank = CodeBank(plan.bank)  # drop the codes that have no textures
        bank.add(codes, sides[rows], x if phase.textured else None)

        # (3) generate reconstructions and, once there is a critic, averages of codes
        fakes = generate(networks.generator, codes, bank, plan, phase, chance)

        # (4) train encoder and generator
        parts = losses(networks, x, fakes, bank, plan, phase, chance)
        train_makers(training, parts, phase)
        if phase.textured:
            keep_noise(networks.generator, plan.least_noise)

        # (5) train the critic on photographs against all kinds of fakes
        if phase.judging:
            parts |= train_critic(training, photographs, fakes.images, plan, chance)

        # (6) update the moving averages and the figures, which follow faster at first
        training.step += 1
        decay = min(plan.average_decay, (1 + training.step) / (10 + training.step))
        update_averages(training, decay)
        note_losses(training, parts)

        # (7) now and then write the files to look at, or at least the state
        if time.monotonic() - looked > look_every_s:
            finish(training, bank, plan.prior_steps, chance.values)
            save(training, source, plan, out)
            saved = time.monotonic()
            looked = saved
        elif time.monotonic() - saved > save_every_s:
            write(out / STATE_FILE, state(training))
            saved = time.monotonic()

    # (8) teach the mapping network the codes of all photographs, and write the checkpoint
    # the photographs in the order of `encode_all`
    plain, _ = views(source, 1, np.random.default_rng(0), device)
    codes_of_all = encode_all(training.averages, source)
    finish(training, codes_of_all, 8 * plan.prior_steps, chance.values, plain)
    save(training, source, plan, out)
    return training


@torch.no_grad()
def encode_all(networks: Networks, source: Source) -> CodeBank:
    """Return the codes of every photograph and, where sides are known, of its mirror image."""
    device = device_of(networks.generator)
    x, side = views(source, 1, np.random.default_rng(0), device)
    bank = CodeBank(len(x))
    for start in range(0, len(x), ENCODED_AT_ONCE):
        rows = slice(start, start + ENCODED_AT_ONCE)
        inverted = networks.encoder.invert(shown(x[rows]), networks.generator, 1)
        bank.add(inverted.codes, side[rows])
    return bank


def finish(
    training: Training,
    bank: CodeBank,
    steps: int,
    draw: torch.Generator,
    photographs: Tensor | None = None,
) -> None:
    """Centre the layers' codes, then teach the mapping network their distribution.

    With `photographs`, uint8 [M, C, S, S], one for each code of the bank, the mapping learns their
    `flat_codes`. Without them, as during training, it learns the means of the codes' layers.
    """
    if not bank.codes:
        return
    # centre the layers: afterwards one w in every layer decodes to an average image
    codes = torch.stack(bank.codes)
    offset = codes.mean(0) - codes.mean((0, 1))
    for networks in (training.networks, training.averages):
        centre(networks.generator, networks.encoder, offset)
    bank.codes = list(codes - offset)

    # fit the averaged generator's mapping, and copy it into the generator that is trained
    mapping = training.averages.generator.mapping
    codes = torch.stack(bank.codes).mean(1)
    if photographs is not None:
        codes = flat_codes(training.averages.generator, photographs, codes)
    fit_prior(mapping, codes, steps, draw)
    training.networks.generator.mapping.load_state_dict(mapping.state_dict())
