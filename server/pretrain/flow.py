"""Pretrains a flow on public images by maximum likelihood.

In: public photographs, uint8 [N, S, S, C].
Out: a folder with glow.safetensors, its card and `training/`.
Guarantees: a killed run continues from its last save; each file is written atomically.
Not covered: privacy. Nothing is clipped and no noise is added, so every image must be public.

The recipe: uniform dequantisation, input noise, flips and small shifts, and Adam with warm-up and
cosine decay. A flow may grow from a checkpoint of half its size: its last doubling alone learns.
"""

from __future__ import annotations

import argparse
import io
import math
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from common.arrays import Floats
from common.errors import ConfigurationError
from common.models.draws import device_of, draw_normal, draw_uniform
from common.models.glow import Glow
from common.models.glow_checkpoint import load, save
from common.models.glow_pixels import from_uint8
from common.models.glow_start import initialise_from_noise
from common.models.moving_average import update_average
from common.storage import files
from common.storage.files import file_digest
from common.wire import tensors
from server.pretrain.flow_files import Training, card, restore, sample_sheet, state_of
from server.pretrain.flow_options import Pretraining
from server.pretrain.provenance import Provenance
from server.pretrain.session import usable_device
from server.public_data.film import film_boxes, film_views
from server.public_data.images import Source, read_npz

CPU = torch.device("cpu")
WARM_UP_STEPS = 100
GRADIENT_NORM = 5.0
BETAS = (0.9, 0.99)
CHECKPOINT = "glow.safetensors"
CARD_NAME = "GLOW_CARD.md"
SAVE_EVERY_S = 120.0
LOST_STEPS = 50  # in a row without a finite gradient: the run has diverged
# steps, share done, bits per dimension (running mean)
Progress = Callable[[int, float, float], None]


def augment(
    images: Tensor, shift_px: int, random: np.random.Generator, flips: str = "both"
) -> Tensor:
    """Return uint8 [N, H, W, C] on its device, flipped and shifted at random.

    `flips` is both, horizontal or none; the shift is at most `shift_px`. Edges are repeated where
    the shift leaves the image.
    """
    rows: list[NDArray[np.int64]] = []
    columns: list[NDArray[np.int64]] = []
    for _ in images:
        down = random.choice((-1, 1)) if flips == "both" else 1
        across = random.choice((-1, 1)) if flips != "none" else 1
        dy, dx = random.integers(-shift_px, shift_px + 1, 2)
        rows.append(_places(images.shape[1], down, dy))
        columns.append(_places(images.shape[2], across, dx))
    device = images.device
    image = torch.arange(len(images), device=device)[:, None, None]
    row = torch.from_numpy(np.stack(rows)).to(device)[:, :, None]
    column = torch.from_numpy(np.stack(columns)).to(device)[:, None, :]
    return images[image, row, column]


def _places(length: int, direction: int, shift: int) -> NDArray[np.int64]:
    """Where each pixel of a line comes from: moved by `shift`, the edge repeated, maybe flipped."""
    places = np.clip(np.arange(length) + shift, 0, length - 1)
    return places if direction == 1 else length - 1 - places


def dequantise(
    images: Tensor, input_noise: float, generator: torch.Generator, depth: int = 8
) -> Tensor:
    """Return dequantised float [N, C, H, W] of `depth` bits, on the device of the images.

    Gaussian noise of deviation `input_noise` is added.
    """
    n, height, width, channels = images.shape
    dither = draw_uniform((n, channels, height, width), generator, images.device)
    x = from_uint8(images, dither, depth)
    return x + input_noise * draw_normal(x.shape, generator, images.device)


def begin(
    images: NDArray[np.uint8],
    options: Pretraining,
    device: torch.device = CPU,
    start: Path | None = None,
) -> Training:
    """Return a fresh flow on a device, initialised without data, the same on each.

    `start` is a checkpoint of half the size, from which the flow grows (`grow`).
    Raises ConfigurationError for images or a layout that a flow cannot have, RefusedError for a
    checkpoint of another layout.
    """
    # refuse what cannot be trained on
    square = images.ndim == 4 and images.shape[1] == images.shape[2]
    if images.dtype != np.uint8 or not square or len(images) < 2:
        raise ConfigurationError(
            f"pretrain: images {images.dtype} {list(images.shape)}: "
            "expected uint8 [N, S, S, C], at least 2"
        )
    try:
        model = build(images.shape[1], images.shape[3], options, options.doublings)
    except ValueError as error:
        raise ConfigurationError(
            f"pretrain: {error}", hint="fewer levels, or 1 or 3 channels"
        ) from None

    # initialise, then let the average start as a copy
    initialise_from_noise(model)
    if start is not None:
        grow(model, options, start)
    model = model.to(device).to(memory_format=torch.channels_last)
    average = deepcopy(model)
    model.reversible = options.reversible
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.Adam(learning, lr=options.learning_rate, betas=BETAS)
    return Training(model, average, optimiser)


def build(size_px: int, channels: int, options: Pretraining, doublings: int) -> Glow:
    """Return the flow of these options with so many doublings; raises ValueError as Glow does."""
    sizes = (options.levels, options.steps_per_level, options.width, doublings)
    return Glow(size_px, channels, *sizes)


def grow(model: Glow, options: Pretraining, start: Path) -> None:
    """Take the weights of a flow of half the size, and let the last doubling alone learn.

    Then means of 2 × 2 pixels have the latents that they had in the flow of half the size.
    Raises ConfigurationError for a model without a doubling, RefusedError for a checkpoint of
    another layout.
    """
    if not options.doublings:
        raise ConfigurationError(
            "pretrain: --start begins with a flow of half the size, and this one has no doublings",
            hint="give models.glow.doublings in the study: one more than the checkpoint's has",
        )
    inside = build(model.size_px // 2, model.channels, options, options.doublings - 1)
    load(inside, start)
    known = dict(inside.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name not in known)
            if name in known:
                parameter.copy_(known[name])


def pretrain(
    images: NDArray[np.uint8],
    options: Pretraining,
    training: Training,
    keep: Callable[[Training], None] = lambda _: None,
    progress: Progress = lambda step, share, bits: None,
    weights: Floats | None = None,
) -> Training:
    """Train until `options.minutes` or `options.steps` are over, both counted from the first run.

    `keep(training)` is called about every two minutes and at the end, to save it. `weights` [N] is
    how often each image is drawn; None draws all alike.
    Raises ConfigurationError for a run that diverges.
    """
    random = np.random.default_rng([options.seed, training.step])
    model = training.model
    device = device_of(model)
    generator = torch.Generator(device).manual_seed(options.seed + training.step)
    photographs = torch.from_numpy(np.require(images, requirements=["C", "W"])).to(device)
    average = training.average
    optimiser = training.optimiser
    log_density = torch.compile(model) if options.compiled else model
    batch = min(options.batch, len(images))
    boxes = film_boxes(images) if options.films else None
    lost = 0  # steps in a row without a finite gradient
    saved = time.monotonic()
    began = saved - training.seconds

    while True:
        # (1) progress and learning rate: linear warm-up, then half a cosine over the run
        training.seconds = time.monotonic() - began
        share = max(training.seconds / (60 * options.minutes), training.step / options.steps)
        progress(training.step, min(1.0, share), training.bits)
        if share >= 1:
            break
        warm = min(1.0, (training.step + 1) / WARM_UP_STEPS)
        decay = max(0.02, 0.5 + 0.5 * math.cos(math.pi * share))
        optimiser.param_groups[0]["lr"] = options.learning_rate * warm * decay

        # (2) compute the gradient on a batch of augmented photographs
        chosen = random.choice(len(images), batch, replace=False, p=weights)
        depth = options.depth(share)
        some = photographs[torch.from_numpy(chosen).to(device)]
        if boxes is not None:
            some = film_views(some, boxes[chosen], random)
        views = augment(some, options.shift_px, random, options.flips)
        x = dequantise(views, options.input_noise, generator, depth)
        log_p = log_density(x.contiguous(memory_format=torch.channels_last))
        optimiser.zero_grad()
        (-log_p.mean() / model.dimension).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_NORM)

        # (3) take the step, unless the gradient is not finite
        lost = 0 if torch.isfinite(norm) else lost + 1
        if lost == 0:
            optimiser.step()
        elif lost == LOST_STEPS:
            raise ConfigurationError(
                "pretrain: the flow diverged: no finite gradient", hint="lower the learning rate"
            )

        # (4) update the moving average, which follows faster at first and is what is saved
        training.step += 1
        update_average(average, model, min(options.average, training.step / (9 + training.step)))
        now = float(model.bits_per_dimension(log_p.detach(), depth).mean())
        if math.isnan(training.bits):
            training.bits = now
        training.bits += 0.02 * (now - training.bits)

        # (5) save now and then
        if time.monotonic() - saved > SAVE_EVERY_S:
            keep(training)
            saved = time.monotonic()
    keep(training)
    return training


def run(
    source: Source,
    out: Path,
    options: Pretraining,
    provenance: Provenance | None = None,
    *,
    name: str = CHECKPOINT,
    resume: bool = False,
    device: str = "cpu",
    start: Path | None = None,
    progress: Progress = lambda step, share, bits: None,
) -> Training:
    """Train on `source` and a torch device; write checkpoint, state and sample sheet into `out`.

    With a provenance the model card is written as well. `start` is as in `begin`.
    Raises ConfigurationError for an existing checkpoint without `resume`, and with `resume` for a
    checkpoint whose state is gone. Raises RefusedError for a state of another layout.
    """
    # start afresh, or go on where the last save ended
    if (out / name).exists() and not resume:
        raise ConfigurationError(
            f"{out / name}: exists already", hint="resume it, or name another folder"
        )
    training = begin(source.images, options, usable_device(device), start)
    state = out / "training" / f"{Path(name).stem}-state.safetensors"
    if resume and (out / name).exists():
        restore(training, state)

    def keep(training: Training) -> None:
        save(training.average, out / name)
        sheet = io.BytesIO()
        Image.fromarray(sample_sheet(training.average, source.images)).save(sheet, format="PNG")
        files.atomic_write(state.with_name(f"{Path(name).stem}-samples.png"), sheet.getvalue())
        tensors.write(state, state_of(training))

    # train, saving on the way, and write the card
    out.mkdir(parents=True, exist_ok=True)
    state.parent.mkdir(exist_ok=True)
    pretrain(source.images, options, training, keep, progress, source.weights)
    if provenance is not None:
        digest = file_digest(out / name)
        text = card(training, source, options, provenance, digest)
        files.atomic_write(out / CARD_NAME, text.encode())
    return training


def main(arguments: list[str] | None = None) -> None:
    """Read the photographs of an .npz file, and train."""
    parser = argparse.ArgumentParser(
        description="A flow's starting checkpoint from public images (.npz)."
    )
    parser.add_argument("images", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--minutes", type=float, default=Pretraining.minutes)
    parser.add_argument("--width", type=int, default=Pretraining.width)
    parser.add_argument("--steps-per-level", type=int, default=Pretraining.steps_per_level)
    parser.add_argument("--levels", type=int, default=Pretraining.levels)
    parser.add_argument("--doublings", type=int, default=Pretraining.doublings)
    parser.add_argument("--start", type=Path, help="a checkpoint of half the size to grow from")
    parser.add_argument("--batch", type=int, default=Pretraining.batch)
    parser.add_argument("--learning-rate", type=float, default=Pretraining.learning_rate)
    parser.add_argument("--input-noise", type=float, default=Pretraining.input_noise)
    parser.add_argument("--flips", default=Pretraining.flips)
    parser.add_argument("--films", action="store_true", help="changes of a chest film, no flips")
    parser.add_argument(
        "--depths", default="8", help="bits of the pixels, stage after stage: 3,5,8"
    )
    parser.add_argument("--reversible", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    given = parser.parse_args(arguments)

    # the options
    torch.set_num_threads(given.threads)
    options = Pretraining(
        levels=given.levels,
        steps_per_level=given.steps_per_level,
        width=given.width,
        doublings=given.doublings,
        minutes=given.minutes,
        batch=given.batch,
        learning_rate=given.learning_rate,
        input_noise=given.input_noise,
        flips="none" if given.films else given.flips,
        films=given.films,
        depths=tuple(int(depth) for depth in given.depths.split(",")),
        reversible=given.reversible,
        compiled=given.compile,
        seed=given.seed,
    )

    def show(step: int, share: float, bits: float) -> None:
        if step % 200 == 0:
            sys.stdout.write(
                f"step {step}, {share:.0%}: {bits:.3f} bits per dimension (running mean)\n"
            )
            sys.stdout.flush()

    # train
    source = read_npz(given.images)
    out = given.checkpoint
    run(
        source,
        out.parent,
        options,
        name=out.name,
        resume=given.resume,
        device=given.device,
        start=given.start,
        progress=show,
    )


if __name__ == "__main__":
    main()
