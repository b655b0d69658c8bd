"""Trains a flow's starting checkpoint on public images: `kohort-server pretrain --model glow`, or this module on an .npz.

In: public photographs, uint8 [N, S, S, C]. Out: a folder with glow.safetensors (the weights' moving average, float32 `glow.*`,
and the rotations' digest), GLOW_CARD.md, and training/: the state from which an interrupted run goes on, and a sheet of pictures.
Guaranteed: a run that is killed goes on from its last save with `resume`; each file is written atomically and read under a size
cap; the card names source, licence and hashes. Not: privacy. Only public images may be given, for nothing is clipped or noised.

Maximum likelihood (dp-glow.md, sections 3 and 4): uniform dequantisation, input noise, flips and small shifts, Adam with
warm-up and a cosine decay over the run, gradient norm at most 5, loss in nats per dimension. `depths`: bits of the pixels, stage
after stage in equal parts of the run's first half, the last one for the rest (3, 5, 8 helps large images to begin coarsely).
"""

from __future__ import annotations

import argparse
import hashlib
import io
import math
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from common.errors import ConfigurationError
from common.models.glow import (
    PREFIX,
    Glow,
    from_uint8,
    initialise_from_noise,
    load_weights,
    save,
    to_uint8,
    weights_of,
)
from common.storage import files
from common.wire import tensors
from server.pretrain.gan import Provenance
from server.public_data.images import SOURCE_CAP_BYTES, Source

WARM_UP_STEPS = 100
GRADIENT_NORM = 5.0
BETAS = (0.9, 0.99)
CHECKPOINT = "glow.safetensors"
CARD_NAME = "GLOW_CARD.md"
STATE_CAP_BYTES = 2 << 30
SAVE_EVERY_S = 120.0
LOST_STEPS = 50  # in a row without a finite gradient: the run has diverged
SHEET_COLUMNS = 10
TEMPERATURE = 0.7
Progress = Callable[
    [int, float, float], None
]  # steps, share done, bits per dimension (running mean)


@dataclass(frozen=True)
class Pretraining:
    """The options of one pretraining, all public."""

    levels: int = 4
    steps_per_level: int = 6
    width: int = 40
    batch: int = 16
    minutes: float = 40.0
    steps: int = 1 << 40
    learning_rate: float = 1e-3
    input_noise: float = 0.03
    average: float = 0.999
    shift_px: int = 1
    flips: str = "both"  # both, horizontal or none
    depths: tuple[int, ...] = (8,)
    reversible: bool = (
        False  # stores one tensor a level instead of every activation, a third more time
    )
    compiled: bool = False  # torch.compile: minutes once, then faster steps
    seed: int = 0

    def __post_init__(self) -> None:
        if self.flips not in ("both", "horizontal", "none"):
            raise ConfigurationError(
                f"pretrain: flips {self.flips!r}: expected both, horizontal or none"
            )
        if (
            not self.depths
            or any(not 1 <= depth <= 8 for depth in self.depths)
            or self.depths[-1] != 8
        ):
            raise ConfigurationError(
                f"pretrain: depths {self.depths}: expected 1 to 8 bits each, 8 at last"
            )
        if self.reversible and self.compiled:
            raise ConfigurationError(
                "pretrain: reversible and compiled exclude each other", hint="drop one of them"
            )

    def depth(self, share: float) -> int:
        """Bits of the pixels when `share` of the run is done."""
        stage = math.floor(2 * share * (len(self.depths) - 1))
        return self.depths[min(stage, len(self.depths) - 1)]


@dataclass
class Training:
    """Everything that a resumed run needs."""

    model: Glow
    average: Glow
    optimiser: torch.optim.Adam
    step: int = 0
    seconds: float = 0.0
    bits: float = field(default=math.nan)


def augment(
    images: NDArray[np.uint8], shift_px: int, random: np.random.Generator, flips: str = "both"
) -> NDArray[np.uint8]:
    """uint8 [N, H, W, C] flipped at random as `flips` says and shifted by at most `shift_px`, edges repeated."""
    views = []
    for image in images:
        down = random.choice((-1, 1)) if flips == "both" else 1
        across = random.choice((-1, 1)) if flips != "none" else 1
        dy, dx = random.integers(0, 2 * shift_px + 1, 2)
        padded = np.pad(
            image[::down, ::across],
            ((shift_px, shift_px), (shift_px, shift_px), (0, 0)),
            mode="edge",
        )
        views.append(padded[dy : dy + image.shape[0], dx : dx + image.shape[1]])
    return np.stack(views)


def noisy(
    images: NDArray[np.uint8], input_noise: float, generator: torch.Generator, depth: int = 8
) -> Tensor:
    """Dequantised float [N, C, H, W] of `depth` bits with Gaussian input noise of standard deviation `input_noise`."""
    n, height, width, channels = images.shape
    x = from_uint8(images, torch.rand(n, channels, height, width, generator=generator), depth)
    return x + input_noise * torch.randn(x.shape, generator=generator)


def begin(images: NDArray[np.uint8], options: Pretraining) -> Training:
    """A fresh flow at its start without data. Raises ConfigurationError for images or a layout that cannot be."""
    if (
        images.dtype != np.uint8
        or images.ndim != 4
        or images.shape[1] != images.shape[2]
        or len(images) < 2
    ):
        raise ConfigurationError(
            f"pretrain: images {images.dtype} {list(images.shape)}: expected uint8 [N, S, S, C], at least 2"
        )
    try:
        model = Glow(
            images.shape[1], images.shape[3], options.levels, options.steps_per_level, options.width
        )
    except ValueError as error:
        raise ConfigurationError(
            f"pretrain: {error}", hint="fewer levels, or 1 or 3 channels"
        ) from None
    initialise_from_noise(model)
    model = model.to(memory_format=torch.channels_last)
    average = deepcopy(model)
    model.reversible = options.reversible
    return Training(
        model, average, torch.optim.Adam(model.parameters(), lr=options.learning_rate, betas=BETAS)
    )


def pretrain(
    images: NDArray[np.uint8],
    options: Pretraining,
    training: Training,
    keep: Callable[[Training], None] = lambda _: None,
    progress: Progress = lambda step, share, bits: None,
) -> Training:
    """Trains until `options.minutes` or `options.steps` are over, both counted from the very first run.

    `keep(training)` is called about every two minutes and at the end, to save it. Raises ConfigurationError for a run that
    diverges.
    """
    random = np.random.default_rng([options.seed, training.step])
    generator = torch.Generator().manual_seed(options.seed + training.step)
    model, average, optimiser = training.model, training.average, training.optimiser
    log_density = torch.compile(model) if options.compiled else model
    batch, lost = min(options.batch, len(images)), 0
    saved = began = time.monotonic() - training.seconds
    saved += training.seconds

    while True:
        # How far we are; learning rate: linear warm-up, then half a cosine over the run.
        training.seconds = time.monotonic() - began
        share = max(training.seconds / (60 * options.minutes), training.step / options.steps)
        progress(training.step, min(1.0, share), training.bits)
        if share >= 1:
            break
        warm = min(1.0, (training.step + 1) / WARM_UP_STEPS)
        optimiser.param_groups[0]["lr"] = (
            options.learning_rate * warm * max(0.02, 0.5 + 0.5 * math.cos(math.pi * share))
        )

        # One step on a batch of augmented photographs.
        chosen, depth = random.choice(len(images), batch, replace=False), options.depth(share)
        views = augment(images[chosen], options.shift_px, random, options.flips)
        x = noisy(views, options.input_noise, generator, depth)
        log_p = log_density(x.contiguous(memory_format=torch.channels_last))
        optimiser.zero_grad()
        (-log_p.mean() / model.dimension).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_NORM)
        lost = 0 if torch.isfinite(norm) else lost + 1
        if lost == 0:
            optimiser.step()
        elif lost == LOST_STEPS:
            raise ConfigurationError(
                "pretrain: the flow diverged: no finite gradient", hint="lower the learning rate"
            )

        # The average follows faster at first; it is what is saved.
        training.step += 1
        follow(average, model, 1 - min(options.average, training.step / (9 + training.step)))
        now = float(model.bits_per_dimension(log_p.detach(), depth).mean())
        training.bits = (
            now if math.isnan(training.bits) else training.bits + 0.02 * (now - training.bits)
        )
        if time.monotonic() - saved > SAVE_EVERY_S:
            keep(training)
            saved = time.monotonic()
    keep(training)
    return training


@torch.no_grad()
def follow(average: Glow, model: Glow, rate: float) -> None:
    """Moves the average a share `rate` of the way to the weights it follows."""
    for mean, parameter in zip(average.parameters(), model.parameters(), strict=True):
        mean.lerp_(parameter, rate)


def run(
    source: Source,
    out: Path,
    options: Pretraining,
    provenance: Provenance | None = None,
    *,
    name: str = CHECKPOINT,
    resume: bool = False,
    progress: Progress = lambda step, share, bits: None,
) -> Training:
    """What `kohort-server pretrain --model glow` does: checkpoint, state, sheet and (with a provenance) card in `out`.

    Raises ConfigurationError for an existing checkpoint without `resume`, and with it for one whose state is gone; RefusedError
    for a state of another layout.
    """
    if (out / name).exists() and not resume:
        raise ConfigurationError(
            f"{out / name}: exists already", hint="resume it, or name another folder"
        )
    training, state = (
        begin(source.images, options),
        out / "training" / f"{Path(name).stem}-state.safetensors",
    )
    if resume and (out / name).exists():
        restore(training, state)

    def keep(training: Training) -> None:
        save(training.average, out / name)
        sheet = io.BytesIO()
        Image.fromarray(sample_sheet(training.average, source.images)).save(sheet, format="PNG")
        files.atomic_write(state.with_name(f"{Path(name).stem}-samples.png"), sheet.getvalue())
        tensors.write(state, state_of(training))

    out.mkdir(parents=True, exist_ok=True)
    state.parent.mkdir(exist_ok=True)
    pretrain(source.images, options, training, keep, progress)
    if provenance is not None:
        text = card(
            training,
            source,
            options,
            provenance,
            hashlib.sha256((out / name).read_bytes()).hexdigest(),
        )
        files.atomic_write(out / CARD_NAME, text.encode())
    return training


def state_of(training: Training) -> dict[str, NDArray[np.generic]]:
    """Weights, average and Adam's moments as named arrays."""
    progress = np.array([training.step, training.seconds, training.bits], dtype=np.float64)
    arrays: dict[str, NDArray[np.generic]] = {"progress": progress}
    for prefix, model in (("now.", training.model), ("average.", training.average)):
        arrays |= {prefix + name: value for name, value in weights_of(model).items()}
    for name, parameter in training.model.named_parameters():
        for moment, value in training.optimiser.state.get(parameter, {}).items():
            arrays[f"adam.{moment}.{name}"] = np.array(value.contiguous().numpy(), dtype=np.float32)
    return arrays


def restore(training: Training, path: Path) -> None:
    """Puts a state back. Raises ConfigurationError without one, RefusedError for a broken file or weights of another layout."""
    if not path.is_file():
        raise ConfigurationError(
            f"{path}: missing, so this run cannot go on", hint="name another folder"
        )
    arrays = tensors.read(path, max_bytes=STATE_CAP_BYTES)
    for prefix, model in (("now.", training.model), ("average.", training.average)):
        found = {
            name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)
        }
        load_weights(model, found)
    for name, parameter in training.model.named_parameters():
        moments = {m: arrays.get(f"adam.{m}.{name}") for m in ("step", "exp_avg", "exp_avg_sq")}
        if all(value is not None for value in moments.values()):
            restored = {
                m: torch.from_numpy(np.array(value, dtype=np.float32))
                for m, value in moments.items()
            }
            training.optimiser.state[parameter] = restored
    training.step, training.seconds, training.bits = (
        int(arrays["progress"][0]),
        *map(float, arrays["progress"][1:3]),
    )


@torch.no_grad()
def sample_sheet(model: Glow, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 [rows·S, columns·S, C]: photographs, their decoded encodings, means of five latents, and two rows from the prior."""
    order = np.random.default_rng(1).permutation(len(images))
    shown = images[order[: min(SHEET_COLUMNS, len(images))]]
    members = images[np.resize(order, 5 * SHEET_COLUMNS)]
    parts = model.encode(from_uint8(members))[0]
    spread = 5**0.5  # keeps the variance of a mean of five at one
    means = [part.view(SHEET_COLUMNS, 5, *part.shape[1:]).mean(1) * spread for part in parts]
    draw = torch.Generator().manual_seed(1)
    rows = [
        shown,
        to_uint8(model.decode(model.encode(from_uint8(shown))[0])),
        to_uint8(model.decode(means)),
        *(to_uint8(model.decode(model.prior(SHEET_COLUMNS, TEMPERATURE, draw))) for _ in range(2)),
    ]
    size, channels = images.shape[1], images.shape[3]
    sheet = np.zeros((len(rows) * size, SHEET_COLUMNS * size, channels), np.uint8)
    for index, row in enumerate(rows):
        sheet[index * size : (index + 1) * size, : len(row) * size] = np.concatenate(
            list(row), axis=1
        )
    return sheet[..., 0] if channels == 1 else sheet


def card(
    training: Training, source: Source, options: Pretraining, provenance: Provenance, digest: str
) -> str:
    """The model card in Markdown."""
    model = training.average
    return CARD.format(
        model=model,
        options=options,
        provenance=provenance,
        count=len(source.images),
        source_digest=source.digest,
        digest=digest,
        parameters=sum(p.numel() for p in model.parameters()),
        depths=", ".join(map(str, options.depths)),
        steps=training.step,
        minutes=training.seconds / 60,
        bits=training.bits,
        prefix=PREFIX,
    )


CARD = """# Starting checkpoint: the flow, {model.size_px} px, {model.channels} channels

Trained by `kohort-server pretrain --model glow` (server/pretrain/flow.py) on public photographs alone, so a study that starts
from it spends no privacy budget on it. It is **not** differentially private towards the people in those photographs.

| | |
| --- | --- |
| source | {provenance.source} |
| licence of the photographs | {provenance.licence} |
| attribution | {provenance.attribution} |
| photographs | {count}, SHA-256 of the source `{source_digest}` |
| size of a study | size_px {model.size_px} |
| flow of a study | levels {options.levels}, steps_per_level {options.steps_per_level}, width {options.width} |
| tensors | `{prefix}*`, {parameters:,} weights, float32; metadata `rotations`: digest of the fixed rotations |
| training | {steps} steps of {options.batch}, {minutes:.0f} minutes on a CPU |
| pixels | depths {depths} bits, input noise {options.input_noise} |
| bits per dimension | {bits:.3f} on training images with input noise (running mean): no quality claim |
| glow.safetensors | SHA-256 `{digest}` |

{provenance.note}

Intended use: the `start` of `models.glow` in a study plan. Not for diagnosis, and not a source of data by itself. Nobody whose
images take part in a study may be in the source.
"""


def npz_source(path: Path) -> Source:
    """All `images` of an .npz of at most 4 GiB, of whatever size they have."""
    data = files.read_capped(path, SOURCE_CAP_BYTES)
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        if "images" not in file:
            raise ConfigurationError(f"{path}: no array `images`; found {sorted(file.files)}")
        return Source(file["images"], (), None, hashlib.sha256(data).hexdigest())


def main(arguments: list[str] | None = None) -> None:
    """Reads the photographs of an .npz and trains; the checkpoint's folder also gets training/."""
    parser = argparse.ArgumentParser(
        description="A flow's starting checkpoint from public images (.npz)."
    )
    parser.add_argument("images", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--minutes", type=float, default=Pretraining.minutes)
    parser.add_argument("--width", type=int, default=Pretraining.width)
    parser.add_argument("--steps-per-level", type=int, default=Pretraining.steps_per_level)
    parser.add_argument("--levels", type=int, default=Pretraining.levels)
    parser.add_argument("--batch", type=int, default=Pretraining.batch)
    parser.add_argument("--flips", default=Pretraining.flips)
    parser.add_argument(
        "--depths", default="8", help="bits of the pixels, stage after stage: 3,5,8"
    )
    parser.add_argument("--reversible", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    options = Pretraining(
        levels=given.levels,
        steps_per_level=given.steps_per_level,
        width=given.width,
        minutes=given.minutes,
        batch=given.batch,
        flips=given.flips,
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

    source, out = npz_source(given.images), given.checkpoint
    run(source, out.parent, options, name=out.name, resume=given.resume, progress=show)


if __name__ == "__main__":
    main()
