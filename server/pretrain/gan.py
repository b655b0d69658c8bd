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
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.errors import ConfigurationError
from common.models.draws import device_of
from common.models.look import field_of
from common.storage.files import atomic_write
from common.wire.tensors import write
from server.pretrain.code_bank import CodeBank
from server.pretrain.gan_files import card, describe_sources, save
from server.pretrain.gan_plan import PretrainPlan
from server.pretrain.gan_schedule import phase_at
from server.pretrain.gan_state import (
    Networks,
    Training,
    begin,
    load_start,
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
from server.pretrain.photographs import Photographs
from server.pretrain.prior import centre, fit_prior, flat_codes
from server.pretrain.provenance import Provenance
from server.pretrain.session import Session, usable_device
from server.public_data.augmentation import shown, views
from server.public_data.cameras import known_part
from server.public_data.images import Source, read_names, read_source
from server.public_data.sources import join_sources

STATE_FILE = "training/state.safetensors"
ENCODED_AT_ONCE = 64


def run(
    images: Sequence[Path],
    out: Path,
    plan: PretrainPlan,
    provenances: Sequence[Provenance],
    session: Session,
    exclude: Path | None = None,
    *,
    field_of_view: bool = False,
    start: Path | None = None,
) -> Training:
    """Read the photographs, train, and write the checkpoint and its card into `out`.

    `images` and `provenances`: one for each source.
    `exclude`: a text file of names, one a line, that must not be in the training set.
    `field_of_view`: whether a folder's photographs are of the fundus, and framed as such.
    `start`: a folder with a checkpoint to begin with, of the same sizes or to grow (growth.py).
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
    finer = 2 if plan.cameras else 1  # enlarging shows details
    sources = [
        read_source(
            path, plan.size_px, plan.channels, names, field_of_view=field_of_view, finer=finer
        )
        for path in images
    ]
    known = describe_sources(sources, provenances)
    training = pretrain(join_sources(sources), plan, out, session, start=start, known=known)
    text = card(training, sources, plan, provenances, names, out)
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
    start: Path | None = None,
    known: Mapping[str, str] | None = None,
) -> Training:
    """Return the networks at the end of the session, which begins with the checkpoint `start`.

    The files carry the texts `known` about the sources.

    The state is written every `save_every_s` seconds; checkpoint, sheet and losses every
    `look_every_s`. A session that resumes continues the state in `out`.
    """
    keep_memory()
    device = usable_device(session.device)
    training = begin(plan, device)
    if session.resume and (out / STATE_FILE).is_file():
        restore(training, out / STATE_FILE)
    elif start is not None:
        load_start(training, start)
    chance = Chance(
        np.random.default_rng([plan.seed, training.step]),
        torch.Generator(device).manual_seed(plan.seed + training.step),
    )
    photographs = Photographs(source, plan, device)
    source = photographs.plain
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
        batch, sides = photographs.draw(plan.reconstructed, chance.rows, chance.values)
        codes = encode(networks, batch.seen, phase.size_px, plan.again, chance)
        if phase.textured and not bank.textures:
            bank = CodeBank(plan.bank)  # drop the codes that have no textures
        bank.add(codes, sides, batch.wanted if phase.textured else None)

        # (3) generate reconstructions and, once there is a critic, averages of codes
        fakes = generate(networks.generator, codes, bank, plan, phase, chance)

        # (4) train encoder and generator
        parts = losses(networks, batch, fakes, bank, plan, phase, chance)
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
            save(training, source, plan, out, known)
            saved = time.monotonic()
            looked = saved
        elif time.monotonic() - saved > save_every_s:
            write(out / STATE_FILE, state(training))
            saved = time.monotonic()

    # (8) teach the mapping network the codes of all photographs, and write the checkpoint
    # the photographs in the order of `encode_all`
    plain, _ = views(source, 1, np.random.default_rng(0), device)
    codes_of_all = encode_all(training.averages, source)
    counts = None
    if plan.cameras:
        counts = known_part(field_of(shown(plain)))
    finish(training, codes_of_all, 8 * plan.prior_steps, chance.values, plain, counts)
    save(training, source, plan, out, known)
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
    counts: Tensor | None = None,
) -> None:
    """Centre the layers' codes, then teach the mapping network their distribution.

    With `photographs`, uint8 [M, C, S, S], one for each code of the bank, the mapping learns their
    `flat_codes`, where pixels count if `counts` is 1. Without them, as during training, it learns
    the means of the codes' layers.
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
        codes = flat_codes(training.averages.generator, photographs, codes, counts)
    fit_prior(mapping, codes, steps, draw)
    training.networks.generator.mapping.load_state_dict(mapping.state_dict())
