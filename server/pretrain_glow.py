"""Trains a flow's starting checkpoint on public images: `python -m server.pretrain_glow images.npz glow.safetensors`.

In: an .npz of public photographs, `images` uint8 [N, H, W, C]. Out: the moving average of the weights, float32 `glow.*`.
Guaranteed: only public images are read, so the checkpoint costs no privacy budget. Not: privacy of what it is trained on.

Maximum likelihood (dp-glow.md, sections 3 and 4): uniform dequantisation, input noise, flips and small shifts, Adam with
warm-up and a cosine decay over the minutes given, gradient norm at most 5, loss in nats per dimension.
"""

import argparse
import math
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.models.glow import Glow, from_uint8, initialise_from_noise, save

WARM_UP_STEPS = 100
GRADIENT_NORM = 5.0


@dataclass(frozen=True)
class Pretraining:
    """The options of one pretraining, all public."""

    levels: int = 4
    steps_per_level: int = 6
    width: int = 40
    batch: int = 16
    minutes: float = 40.0
    learning_rate: float = 1e-3
    input_noise: float = 0.03
    average: float = 0.999
    shift_px: int = 1
    save_every: int = 200


def augment(images: np.ndarray, shift_px: int, random: np.random.Generator) -> np.ndarray:
    """uint8 [N, H, W, C] flipped along both axes at random and shifted by at most `shift_px`, edges repeated."""
    views = []
    for image in images:
        view = image[:: random.choice((-1, 1)), :: random.choice((-1, 1))]
        dy, dx = random.integers(0, 2 * shift_px + 1, 2)
        padded = np.pad(view, ((shift_px, shift_px), (shift_px, shift_px), (0, 0)), mode="edge")
        views.append(padded[dy : dy + image.shape[0], dx : dx + image.shape[1]])
    return np.stack(views)


def noisy(images: np.ndarray, input_noise: float, generator: torch.Generator) -> Tensor:
    """Dequantised float [N, C, H, W] with Gaussian input noise of standard deviation `input_noise`."""
    n, height, width, channels = images.shape
    x = from_uint8(images, torch.rand(n, channels, height, width, generator=generator))
    return x + input_noise * torch.randn(x.shape, generator=generator)


def pretrain(images: np.ndarray, options: Pretraining, seed: int, report: Callable[[int, float, Glow], None]) -> Glow:
    """The averaged flow after `options.minutes` of training on uint8 [N, H, W, C]; `report(step, bits, average)` per save."""
    random, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    model = Glow(images.shape[1], images.shape[3], options.levels, options.steps_per_level, options.width)
    initialise_from_noise(model)
    model = model.to(memory_format=torch.channels_last)
    average = deepcopy(model)
    optimiser = torch.optim.Adam(model.parameters(), lr=options.learning_rate, betas=(0.9, 0.99))
    began, step, bits = time.monotonic(), 0, 0.0

    while (done := (time.monotonic() - began) / (60 * options.minutes)) < 1:
        # Learning rate: linear warm-up, then half a cosine over the time that is given.
        warm = min(1.0, (step + 1) / WARM_UP_STEPS)
        optimiser.param_groups[0]["lr"] = options.learning_rate * warm * max(0.02, 0.5 + 0.5 * math.cos(math.pi * done))

        # One step on a batch of augmented photographs.
        chosen = random.choice(len(images), options.batch, replace=False)
        x = noisy(augment(images[chosen], options.shift_px, random), options.input_noise, generator)
        log_p = model(x.contiguous(memory_format=torch.channels_last))
        optimiser.zero_grad()
        (-log_p.mean() / model.dimension).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_NORM)
        if torch.isfinite(norm):
            optimiser.step()

        # The average follows faster at first; it is what is saved.
        rate = 1 - min(options.average, (1 + step) / (10 + step))
        with torch.no_grad():
            for mean, parameter in zip(average.parameters(), model.parameters(), strict=True):
                mean.lerp_(parameter, rate)
        bits += 0.02 * (float(model.bits_per_dimension(log_p.detach()).mean()) - bits)
        step += 1
        if step % options.save_every == 0:
            report(step, bits, average)
    return average


def main() -> None:
    """Reads the photographs, trains, writes the checkpoint at every report and at the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--minutes", type=float, default=Pretraining.minutes)
    parser.add_argument("--width", type=int, default=Pretraining.width)
    parser.add_argument("--steps-per-level", type=int, default=Pretraining.steps_per_level)
    parser.add_argument("--levels", type=int, default=Pretraining.levels)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with np.load(arguments.images, allow_pickle=False) as file:
        images = file["images"]
    options = Pretraining(
        levels=arguments.levels,
        steps_per_level=arguments.steps_per_level,
        width=arguments.width,
        minutes=arguments.minutes,
    )

    def report(step: int, bits: float, average: Glow) -> None:
        save(average, arguments.checkpoint)
        print(f"step {step}: {bits:.3f} bits per dimension (running mean)", flush=True)  # noqa: T201

    save(pretrain(images, options, arguments.seed, report), arguments.checkpoint)


if __name__ == "__main__":
    main()
