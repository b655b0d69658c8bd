"""The flow beside normflows and opacus: speed, memory, exactness, and what noise does to decoded latents. One run.

    python benchmarks/flow.py [--json] [--repeats 5] [--steps 700] [--parts speed,noise,exact] [--data pneumoniamnist_28.npz]
                              [--input-noise 0.03] [--flow SIZES:FILE ...] [--pictures FILE.png] [--without-normflows] [--quick]

Speed: 32x32 gray, L3 K8 width 64, batch 16; one thread, process time (the noise thread's work included), the smallest of
alternating repeats. A private step is whole: gradients, clip, AES lattice noise, Adam; the non-private one is torch's Adam on the
same flow. `hooks`: opacus' hooks with every log-determinant packed into its layer's one output (else they are silently wrong),
its Gaussian noise and torch's Adam. normflows 1.7.3 is fetched from the package registry into a temporary folder, without
dependencies, and is thrown away; if that fails, its keys are null and `skipped` says why.
Memory: unique storages kept for the backward pass, weights apart, 64x64 gray, L4 K8 width 64, batch 8.
Exactness: greatest pixel error of decode(encode(x)): the flows trained here, the shipped ones (32 and 64 px), 64 and 128 px after
12 steps, and flows trained elsewhere (`--flow 128,1,5,8,96:FILE`: size, channels, L, K, width), on the demo's images.
Noise: three flows (32x32, L3 K8 width 32) trained alike (same images, steps, Adam at 2e-3, 20 steps of warm-up) on two sets of
images: box clip at 3, Laplace noise of scale b on every standardised coordinate, PSNR in dB after the clamp.
  naive: the seed method with what its paper leaves out left out: a standard Glow, not by us (normflows: sigmoid couplings, whose
      decoding scale has no bound; ActNorm set by the first batch), no input noise, decoded raw. Its latents are standardised by
      its learned Gaussians, so that clip and noise mean the same. A pixel that is no number is black, as a cast to 8 bits makes
      it here; `naive_gray`: the same with mid-gray for it, the kindest reading; `naive_matched`: with our variance match.
  loose: our flow with couplings four times as wide (alpha = 2), from the identity, no input noise, decoded raw.
  ours: alpha = 0.5, input noise, variance match; `ours_raw`: without the match. `gain` is ours over naive.
`naive_breaks_at_step`: the first of a few checks at which a latent noised at b = 1 decodes to something that is no number.
Images: 4,000 soft discs with pixel noise 0.02 of their own, which has 4.4 bits per dimension (the reference: 4.56 to 4.59;
discs without noise are smooth, learned at 1.3 bits, and nothing breaks); and real radiographs (`_radiographs`): the demo's, 621
to learn from and 128 of the other 300 to test, or train_images and val_images of `--data`. `--pictures`: radiographs, columns
original | naive and ours at b = 0.5, 1 and 2.
Not: quality of the images (quality_chest.py), privacy of anything here: the floating-point Laplace noise is for PSNR only.
"""

import argparse
import contextlib
import csv
import json
import math
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from client.learn.private_step import Execution, PrivateStep, StepConstants
from client.learn.train_glow import flattened, loss_of
from client.state.ledger import PracticeReservation
from common.models import glow, glow_checkpoint, glow_coupling
from common.models.adam import Adam
from common.models.glow import Glow, Level
from common.models.glow_coupling import Split
from common.models.glow_mixing import Mixing, compose_mixings
from common.models.glow_start import initialise_from_noise
from common.privacy.mechanisms import SubsampledGaussian
from common.privacy.noise import NoiseSource, SeededNoiseSource
from server.demo.hospitals import DEPLOY, RADIOGRAPHS, as_ingested

NORMFLOWS = "normflows==1.7.3"
LAPLACE_DRAWS, LAPLACE_SCALE = 65_536, 2.0**10
BOX = 3.0
SCALES = {"b025": 0.25, "b05": 0.5, "b1": 1.0, "b2": 2.0}
DISC_NOISE = 0.02  # of the image range
CHECKS = (25, 50, 100, 200, 400)  # training steps after which the naive flow is looked at
SHIPPED = {"chest-32": "32,1,3,6,32", "fundus-64": "64,3,4,6,40"}
MIB = 2**20
Call = Callable[[], object]


@dataclass(frozen=True)
class Layout:
    """A flow's sizes and the batch it is measured at."""

    size_px: int
    levels: int
    steps: int
    width: int
    batch: int
    channels: int = 1

    def flow(self) -> Glow:
        """Our flow at its start without data."""
        model = Glow(self.size_px, self.channels, self.levels, self.steps, self.width)
        initialise_from_noise(model, 32)
        return model

    def images(self, count: int | None = None) -> Tensor:
        """Random pictures of that size."""
        return torch.rand(count or self.batch, self.channels, self.size_px, self.size_px) - 0.5


FULL = {
    "speed": Layout(32, 3, 8, 64, 16),
    "speed_64": Layout(64, 4, 8, 64, 8),
    "exact_128": Layout(128, 5, 8, 96, 2),
    "noise": Layout(32, 3, 8, 32, 16),
}
QUICK = {
    "speed": Layout(16, 2, 2, 8, 4),
    "speed_64": Layout(16, 2, 2, 16, 2),
    "exact_128": Layout(16, 2, 1, 8, 2),
    "noise": Layout(16, 2, 2, 8, 4),
}


# --- steps ----------------------------------------------------------------------------------------
def plain_step(model: nn.Module, log_p: Callable[[Tensor], Tensor], x: Tensor) -> Call:
    """An ordinary step of maximum likelihood with torch's Adam, gradients cut at norm 5."""
    optimiser = torch.optim.Adam(model.parameters(), 1e-3)
    dimension = x[0].numel()

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        (-log_p(x).mean() / dimension).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimiser.step()

    return step


def non_private(
    layout: Layout, x: Tensor, memory_format: torch.memory_format = torch.contiguous_format
) -> Call:
    """The same flow without privacy: no clip of gradients either."""
    model = layout.flow().to(memory_format=memory_format)
    optimiser, x = (
        torch.optim.Adam(model.parameters(), 1e-3),
        x.contiguous(memory_format=memory_format),
    )

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        (-model(x).mean() / model.dimension).backward()
        optimiser.step()

    return step


def private(layout: Layout, x: Tensor) -> tuple[PrivateStep, Call]:
    """The private step as train_glow runs it, every patient drawn; and the step itself, which knows
    its back end.
    """
    model = layout.flow()
    parameters = dict(model.named_parameters())
    count = len(x)
    step = PrivateStep(
        parameters,
        loss_of(model, parameters),
        StepConstants(1.0, 1.0, 1.0, count),
        PracticeReservation(SubsampledGaussian(1.0, 1.0, 10**6)),
        SeededNoiseSource(0),
        execution=Execution(),
    )
    adam = Adam({"all": flattened(parameters)}, 1e-3)

    def whole() -> None:
        gradients = step.step(count, lambda who: (x[list(who)][:, None],))
        adam.step({"all": torch.cat([gradients[name].reshape(-1) for name in parameters])})

    return step, whole


class PackedMixing(nn.Module):
    """A mixing whose one output ends with its log-determinant, so that opacus' hooks see the
    gradients of both.
    """

    def __init__(self, layer: Mixing) -> None:
        super().__init__()
        self.bias, self.log_scale, self.triangles = layer.bias, layer.log_scale, layer.triangles
        self.rotation = layer.rotation

    def forward(self, x: Tensor) -> Tensor:
        kernels, biases, log_scale = compose_mixings([cast(Mixing, self)])
        y = torch.nn.functional.conv2d(x, kernels[0], biases[0])
        log_determinant = (log_scale.sum() * (x.shape[-1] * x.shape[-2])).expand(len(x), 1)
        return torch.cat([y.flatten(1), log_determinant], dim=1)


class PackedTop(nn.Module):
    """The top's prior, packed likewise."""

    def __init__(self, top: nn.Module) -> None:
        super().__init__()
        self.mean, self.raw_log_scale = top.mean, top.raw_log_scale

    def forward(self, x: Tensor) -> Tensor:
        log_scale = glow_coupling.SPLIT_BOUND * torch.tanh(
            self.raw_log_scale / glow_coupling.SPLIT_BOUND
        )
        part = (x - self.mean) * (-log_scale).exp()
        return torch.cat([part.flatten(1), -log_scale.sum().expand(len(x), 1)], dim=1)


class PackedGlow(nn.Module):
    """log p as `Glow.forward` gives it, by layers that opacus' hooks get right."""

    def __init__(self, model: Glow) -> None:
        super().__init__()
        levels = [cast(Level, level) for level in model.levels]
        self.mixings = nn.ModuleList(
            PackedMixing(cast(Mixing, m)) for level in levels for m in level.mixings
        )
        self.couplings = nn.ModuleList(coupling for level in levels for coupling in level.couplings)
        self.splits, self.top = model.splits, PackedTop(model.top)
        self._per_level = len(levels[0].mixings)

    def forward(self, x: Tensor) -> Tensor:
        log_p = x.new_zeros(len(x))
        steps = list(zip(self.mixings, self.couplings, strict=True))
        for level, split in enumerate([*self.splits, None]):
            x = torch.nn.functional.pixel_unshuffle(x, 2)
            for mixing, coupling in steps[level * self._per_level : (level + 1) * self._per_level]:
                packed = mixing(x)
                x, each = coupling(packed[:, :-1].view_as(x))
                log_p = log_p + packed[:, -1] + each
            if split is None:
                packed = self.top(x)
                part, log_p = packed[:, :-1], log_p + packed[:, -1]
            else:
                x, y = x.chunk(2, dim=1)
                mean, log_scale = cast(Split, split).moments(x)
                part = ((y - mean) * (-log_scale).exp()).flatten(1)
                log_p = log_p - log_scale.sum(dim=(1, 2, 3))
            log_p = log_p - 0.5 * part.square().sum(1) - 0.5 * glow.LOG_2PI * part.shape[1]
        return log_p


def opacus_hooks(layout: Layout, x: Tensor) -> Call:
    """A whole step by opacus' hooks."""
    from opacus import GradSampleModule
    from opacus.optimizers import DPOptimizer

    model = layout.flow()
    dimension = model.dimension
    packed = GradSampleModule(PackedGlow(model))
    optimiser = DPOptimizer(
        torch.optim.Adam(packed.parameters(), 1e-3),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        expected_batch_size=len(x),
    )

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        (-packed(x).mean() / dimension).backward()
        optimiser.step()

    return step


# --- normflows ------------------------------------------------------------------------------------
@contextlib.contextmanager
def fetched() -> Iterator[tuple[ModuleType | None, str]]:
    """(normflows, "") from a temporary folder of this run, or (None, why not)."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--target",
            folder,
            NORMFLOWS,
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            yield None, f"{NORMFLOWS} could not be fetched"
            return
        sys.path.insert(0, folder)
        try:
            import normflows

            yield normflows, ""
        finally:
            sys.path.remove(folder)


def peer(normflows: Any, layout: Layout, first: Tensor | None = None) -> Any:
    """normflows' Glow of equal K, L and width: affine coupling, LU 1x1, ActNorm, split, diagonal
    Gaussians.

    `first`: the batch by which ActNorm sets itself (random pictures without).
    """
    bases, merges, flows = [], [], []
    for i in range(layout.levels):
        blocks = [
            normflows.flows.GlowBlock(
                layout.channels * 2 ** (layout.levels + 1 - i), layout.width, split_mode="channel"
            )
            for _ in range(layout.steps)
        ]
        flows.append([*blocks, normflows.flows.Squeeze()])
        merges += [normflows.flows.Merge()] if i else []
        side = layout.size_px // 2 ** (layout.levels - i)
        channels = layout.channels * 2 ** (layout.levels - i if i else layout.levels + 1)
        bases.append(normflows.distributions.DiagGaussian((channels, side, side)))
    model = normflows.MultiscaleFlow(bases, flows, merges)
    with torch.no_grad():
        model.log_prob(layout.images(64) if first is None else first, None)
    return model


# --- measuring ------------------------------------------------------------------------------------
def fastest(calls: dict[str, Call], repeats: int) -> dict[str, float]:
    """The smallest process time of each, seconds, in alternation after one call to warm up."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.process_time()
            call()
            found[name].append(time.process_time() - start)
    return {name: min(seconds) for name, seconds in found.items()}


def saved_mib(
    log_p: Callable[[Tensor], Tensor], parameters: Iterator[nn.Parameter], x: Tensor
) -> float:
    """Unique storages that the backward pass keeps, weights apart."""
    weights, kept = {p.untyped_storage().data_ptr() for p in parameters}, {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        held = log_p(x)
    assert held.requires_grad
    return sum(t.untyped_storage().nbytes() for a, t in kept.items() if a not in weights) / MIB


def private_figures(layouts: dict[str, Layout], repeats: int) -> dict[str, float | str | None]:
    """The private step beside the non-private one and opacus' hooks, and what the hooks' gradients
    are worth.
    """
    found: dict[str, float | str | None] = {}
    for key, layout in (("", layouts["speed"]), ("_64", layouts["speed_64"])):
        x = layout.images()
        taken, whole = private(layout, x)
        calls = {
            "plain": non_private(layout, x),
            "channels last": non_private(layout, x, torch.channels_last),
            "private": whole,
            "hooks": opacus_hooks(layout, x),
        }
        seconds = fastest(calls, repeats)
        found[f"dp_back_end{key}"] = taken.taken
        found[f"dp_ratio{key}"] = seconds["private"] / seconds["plain"]
        found[f"dp_ratio_channels_last{key}"] = seconds["private"] / seconds["channels last"]
        found[f"dp_speedup_over_opacus_hooks{key}"] = seconds["hooks"] / seconds["private"]
        found[f"opacus_hooks_ratio{key}"] = seconds["hooks"] / seconds["plain"]
        found[f"plain_step_s{key}"], found[f"dp_step_s{key}"] = seconds["plain"], seconds["private"]
    found["opacus_gradient_error"] = gradient_error(layouts["speed"])
    return found


def gradient_error(layout: Layout) -> float:
    """The greatest relative error over tensors of the packed hooks' per-sample gradients: that the
    comparison is fair.
    """
    from client.learn.patient_gradients import by_backward

    x = layout.images(
        2
    ).double()  # in float64: a rounding at a kink of ReLU is no error of the hooks
    model = layout.flow().double()
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for p in parameters.values():
            p.add_(0.02 * torch.randn_like(p))
    truth = by_backward(loss_of(model, parameters), parameters, (x[:, None],))
    from opacus import GradSampleModule

    packed = GradSampleModule(PackedGlow(model), loss_reduction="sum")
    (-packed(x).sum() / model.dimension).backward()
    samples = {id(p): cast(Any, p).grad_sample for p in packed.parameters()}
    parts = truth.split([p.numel() for p in parameters.values()], 1)
    errors = [
        float((samples[id(p)].flatten(1) - part).norm() / part.norm().clamp_min(1e-12))
        for p, part in zip(parameters.values(), parts, strict=True)
    ]
    return max(errors)


def peer_figures(
    layouts: dict[str, Layout], repeats: int, normflows: Any
) -> dict[str, float | None]:
    """Train, encode, invert and memory over normflows: above 1 is faster; memory below 1 is less."""
    layout, large = layouts["speed"], layouts["speed_64"]
    x, theirs = layout.images(), peer(normflows, layout)
    ours = layout.flow().to(memory_format=torch.channels_last)
    ours_trained, theirs_trained = (
        layout.flow().to(memory_format=torch.channels_last),
        peer(normflows, layout),
    )
    near = x.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        our_parts, (their_parts, _) = ours.encode(x)[0], theirs.inverse_and_log_det(x)

    def quiet(call: Call) -> Call:
        return cast(Call, torch.no_grad()(call))

    seconds = fastest(
        {
            "train": plain_step(ours_trained, ours_trained.forward, near),
            "their train": plain_step(
                theirs_trained, lambda y: theirs_trained.log_prob(y, None), x
            ),
            "encode": quiet(lambda: ours.encode(near)),
            "their encode": quiet(lambda: theirs.inverse_and_log_det(x)),
            "invert": quiet(lambda: ours.decode(our_parts)),
            "their invert": quiet(lambda: theirs.forward_and_log_det(their_parts)),
        },
        repeats,
    )
    found: dict[str, float | None] = {
        f"{what}_over_normflows": seconds[f"their {what}"] / seconds[what]
        for what in ("train", "encode", "invert")
    }
    found |= {
        f"{what}_images_per_s": layout.batch / seconds[what]
        for what in ("train", "encode", "invert")
    }
    them = peer(normflows, large)
    their_mib = saved_mib(
        lambda y: cast(Tensor, them.log_prob(y, None)), them.parameters(), large.images()
    )
    found["saved_mib_normflows"] = their_mib
    found["memory_over_normflows"] = stored(large, False) / their_mib
    return found


def stored(layout: Layout, reverse: bool) -> float:
    """MiB that our flow keeps for its backward pass."""
    model = layout.flow()
    model.reversible = reverse
    return saved_mib(model.forward, model.parameters(), layout.images())


# --- images ---------------------------------------------------------------------------------------
def discs(count: int, size_px: int, seed: int, noise: float = DISC_NOISE) -> Tensor:
    """uint8 [N, 1, S, S]: soft discs of random place, size and shade on a shaded ground, with pixel
    noise of their own.
    """
    g = torch.Generator().manual_seed(seed)
    axis = torch.linspace(-1, 1, size_px)
    cx, cy, radius, shade, ground, tilt = (torch.rand(count, 1, 1, generator=g) for _ in range(6))
    distance = (
        (axis[None, None] - (cx - 0.5)).square() + (axis[None, :, None] - (cy - 0.5)).square()
    ).sqrt()
    disc = torch.sigmoid((0.25 + 0.4 * radius - distance) * 20)
    x = 0.3 * (ground - 0.5) + 0.15 * (tilt - 0.5) * axis[None, None] + 0.4 * (shade - 0.5) * disc
    x = x + noise * torch.randn(x.shape, generator=g)
    return ((x + 0.5) * 256).floor().clamp(0, 255).to(torch.uint8)[:, None]


def radiographs(size_px: int, data: Path | None) -> tuple[Tensor, Tensor]:
    """uint8 [N, 1, S, S] to learn from and to look at: the demo's patients and 128 of its
    reference, or two splits of `data`.
    """
    with np.load(data or RADIOGRAPHS / "radiographs.npz", allow_pickle=False) as file:
        if data is not None:
            learned, shown = file["train_images"], file["val_images"][:128]
        else:
            with open(RADIOGRAPHS / "labels.csv", encoding="utf-8") as table:
                plays = np.array([bool(row["person"]) for row in csv.DictReader(table)])
            learned, shown = file["images"][plays][..., 0], file["images"][~plays][:128, ..., 0]
    pairs = [
        np.stack([as_ingested(one, size_px)[..., 0] for one in some]) for some in (learned, shown)
    ]
    return torch.from_numpy(pairs[0])[:, None], torch.from_numpy(pairs[1])[:, None]


def dithered(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """float [N, 1, S, S] in [-1/2, 1/2] of uint8: (pixel + U) / 256 - 1/2."""
    return (pixels + torch.rand(pixels.shape, generator=generator)) / 256 - 0.5


# --- after training -------------------------------------------------------------------------------
@dataclass(frozen=True)
class Coder:
    """A flow of either make: log p, images to standardised latent parts, and back.

    `bound`: of our couplings.
    """

    model: nn.Module
    log_p: Callable[[Tensor], Tensor]
    encode: Callable[[Tensor], list[Tensor]]
    decode: Callable[[Sequence[Tensor]], Tensor]
    bound: float = glow_coupling.LOG_SCALE_BOUND


def ours_of(model: Glow, bound: float = glow_coupling.LOG_SCALE_BOUND) -> Coder:
    """Our flow."""
    return Coder(model, model.forward, lambda x: model.encode(x)[0], model.decode, bound)


def naive_of(model: Any) -> Coder:
    """normflows' flow: latents standardised by the learned means and scales of its bases, as ours
    are.
    """

    def encode(x: Tensor) -> list[Tensor]:
        parts, _ = model.inverse_and_log_det(x)
        return [
            (part - base.loc) * (-base.log_scale).exp()
            for part, base in zip(parts, model.q0, strict=True)
        ]

    def decode(parts: Sequence[Tensor]) -> Tensor:
        raw = [
            part * base.log_scale.exp() + base.loc
            for part, base in zip(parts, model.q0, strict=True)
        ]
        return cast(Tensor, model.forward_and_log_det(raw)[0])

    return Coder(model, lambda x: cast(Tensor, model.log_prob(x, None)), encode, decode)


def learn(
    coder: Coder,
    pixels: Tensor,
    batch: int,
    steps: int,
    input_noise: float,
    check: Callable[[int], None] = lambda _: None,
) -> None:
    """A training of maximum likelihood; `check(step)` after each of `CHECKS` steps."""
    g = torch.Generator().manual_seed(2)
    optimiser, dimension = torch.optim.Adam(coder.model.parameters(), 2e-3), pixels[0].numel()
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 2e-3 * min(1.0, (step + 1) / 20)
        x = dithered(pixels[torch.randint(len(pixels), (batch,), generator=g)], g)
        loss = -coder.log_p(x + input_noise * torch.randn(x.shape, generator=g)).mean() / dimension
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(coder.model.parameters(), 5.0)
        optimiser.step()
        if step + 1 in CHECKS:
            check(step + 1)


@torch.no_grad()
def round_trip(model: Glow, x: Tensor) -> tuple[float, float]:
    """Greatest pixel error in float32 and in float64."""
    errors = []
    for dtype in (torch.float32, torch.float64):
        model, x = model.to(dtype), x.to(dtype)
        errors.append(float((model.decode(model.encode(x)[0]) - x).abs().max()))
    model.to(torch.float32)
    return errors[0], errors[1]


@contextlib.contextmanager
def couplings_bounded_by(alpha: float) -> Iterator[None]:
    """The flow with another bound of its couplings' log-scales."""
    kept, glow_coupling.LOG_SCALE_BOUND = glow_coupling.LOG_SCALE_BOUND, alpha
    try:
        yield
    finally:
        glow_coupling.LOG_SCALE_BOUND = kept


@torch.no_grad()
def noised(coder: Coder, x: Tensor, b: float, match: bool) -> Tensor:
    """What decodes with Laplace noise of scale b on every coordinate, float64 [N, 1, S, S], as it
    comes.
    """
    g = torch.Generator().manual_seed(3)
    parts = []
    with couplings_bounded_by(coder.bound):
        for part in coder.encode(x):
            u = torch.rand(part.shape, generator=g, dtype=torch.float64) - 0.5
            noise = -b * u.sign() * torch.log1p(-2 * u.abs())
            y = part.clamp(-BOX, BOX) + noise.to(part.dtype)
            parts.append(y / (1 + 2 * b**2) ** 0.5 if match else y)
        return coder.decode(parts).double()


def shown_as(decoded: Tensor, lost: float = -0.5) -> Tensor:
    """What is seen of it: clamped to the range, `lost` where it is no number."""
    return torch.nan_to_num(decoded, nan=lost, posinf=1e9, neginf=-1e9).clamp(-0.5, 0.5)


def psnr(images: Tensor, x: Tensor) -> float:
    """The mean over images, dB."""
    return float((-10 * (images - x.double()).square().flatten(1).mean(1).log10()).mean())


def outside(decoded: Tensor) -> float:
    """Share of pixels out of range, or no number."""
    return float((~(decoded.abs() <= 0.5)).double().mean())


def write_strips(columns: Sequence[Tensor], path: Path, rows: int = 8) -> None:
    """A PNG, enlarged four times: row by row the first images of each column [N, 1, S, S] in [-0.5,
    0.5].
    """
    from PIL import Image

    sheet = torch.cat(
        [torch.cat(list(column[:rows, 0]), dim=0) for column in columns], dim=1
    ).double()
    levels = ((sheet + 0.5) * 255).round().clamp(0, 255).to(torch.uint8).numpy()
    Image.fromarray(np.kron(levels, np.ones((4, 4), np.uint8))).save(path)


@dataclass(frozen=True)
class Conditions:
    """How the flows of one comparison are trained; `peers` is normflows, or None."""

    layout: Layout
    steps: int
    input_noise: float
    peers: Any = None


def naive_flow(learned: Tensor, shown: Tensor, how: Conditions) -> tuple[Coder, int | None]:
    """The trained standard Glow, and at which of the checks a latent noised at b = 1 first decoded
    to no number.
    """
    torch.manual_seed(0)
    g, broken = torch.Generator().manual_seed(7), list[int]()
    first = dithered(learned[torch.randint(len(learned), (64,), generator=g)], g)
    coder = naive_of(peer(how.peers, how.layout, first))

    def check(step: int) -> None:
        if not bool(torch.isfinite(noised(coder, shown, 1.0, match=False)).all()):
            broken.append(step)

    learn(coder, learned, how.layout.batch, how.steps, 0.0, check)
    return coder, broken[0] if broken else None


def our_flow(learned: Tensor, how: Conditions, bound: float, input_noise: float) -> Coder:
    """Our trained flow; with another bound than the product's it starts from the identity."""
    layout = how.layout
    fresh = Glow(layout.size_px, layout.channels, layout.levels, layout.steps, layout.width)
    coder = ours_of(layout.flow() if bound == glow_coupling.LOG_SCALE_BOUND else fresh, bound)
    with couplings_bounded_by(bound):
        learn(coder, learned, layout.batch, how.steps, input_noise)
    return coder


def compared(
    learned: Tensor, shown: Tensor, how: Conditions, end: str, pictures: Path | None
) -> tuple[dict[str, float | None], Glow]:
    """The figures of one set of images, their keys ending with `end`; and our trained flow."""
    x = dithered(shown, torch.Generator().manual_seed(8))
    coders = {
        "ours": our_flow(learned, how, glow_coupling.LOG_SCALE_BOUND, how.input_noise),
        "loose": our_flow(learned, how, 2.0, 0.0),
    }
    found: dict[str, float | None] = {}
    if how.peers is not None:
        coders["naive"], broken = naive_flow(learned, x, how)
        found[f"naive_breaks_at_step{end}"] = broken
    with torch.no_grad():
        for name, coder in coders.items():
            with couplings_bounded_by(coder.bound):
                bits = -coder.log_p(x).mean() / x[0].numel() / math.log(2) + 8
            found[f"bits_per_dimension_{name}{end}"] = float(bits)
    columns = [x]
    for name, b in SCALES.items():
        raw = {who: noised(coder, x, b, match=False) for who, coder in coders.items()}
        matched = {who: noised(coder, x, b, match=True) for who, coder in coders.items()}
        figures = {
            "": psnr(shown_as(matched["ours"]), x),
            "ours_raw": psnr(shown_as(raw["ours"]), x),
        }
        figures |= {f"{who}": psnr(shown_as(raw[who]), x) for who in coders if who != "ours"}
        figures |= {
            f"{who}_matched": psnr(shown_as(matched[who]), x) for who in coders if who != "ours"
        }
        if "naive" in coders:
            figures["naive_gray"] = psnr(shown_as(raw["naive"], 0.0), x)
            figures["gain"] = figures[""] - figures["naive"]
            found[f"out_of_range_naive_{name}{end}"] = outside(raw["naive"])
            columns += [shown_as(raw["naive"])] if b >= 0.5 else []
        figures["gain_over_loose"] = figures[""] - figures["loose"]
        columns += [shown_as(matched["ours"])] if b >= 0.5 else []
        found |= {
            f"psnr_{who}_{name}{end}_db".replace("__", "_"): value for who, value in figures.items()
        }
        found |= {f"out_of_range_{name}{end}": outside(matched["ours"])}
        found |= {f"out_of_range_loose_{name}{end}": outside(raw["loose"])}
    mean = dithered(learned, torch.Generator().manual_seed(9)).double().mean(0)
    found[f"psnr_mean_image{end}_db"] = psnr(mean.expand(len(x), -1, -1, -1), x)
    if pictures is not None:
        write_strips(columns, pictures)
    return found, cast(Glow, coders["ours"].model)


def stored_round_trips(more: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Those of the flows in deploy/checkpoints, and of `more` (SIZES:FILE), on the demo's
    radiographs or photographs.
    """
    files = {
        name: (sizes, DEPLOY / "checkpoints" / name / "glow.safetensors")
        for name, sizes in SHIPPED.items()
    }
    for one in more:
        sizes, _, file = one.partition(":")
        files[Path(file).stem] = (sizes, Path(file))
    found = {}
    for name, (sizes, path) in files.items():
        size_px, channels, *rest = map(int, sizes.split(","))
        model = Glow(size_px, channels, *rest)
        glow_checkpoint.load(model, path)
        pixels = radiographs(size_px, None)[1][:16] if channels == 1 else _photographs(size_px)
        found[name] = round_trip(model, dithered(pixels, torch.Generator().manual_seed(10)))
    return found


def _photographs(size_px: int, count: int = 16) -> Tensor:
    """The demo's first fundus photographs, uint8 [N, 3, S, S]."""
    from server.public_data.images import read_source

    images = read_source(DEPLOY / "demo" / "fundus", size_px, 3).images[:count]
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)


def exactness(
    layouts: dict[str, Layout], steps: int, more: Sequence[str]
) -> dict[str, float | None]:
    """Round trips of stored flows and of short trainings at 64 and 128 px."""
    found: dict[str, float | None] = {}
    pairs = stored_round_trips(more)
    for key in ("speed_64", "exact_128"):
        layout = layouts[key]
        coder = ours_of(layout.flow())
        learn(coder, discs(64, layout.size_px, 4), layout.batch, min(steps, 12), 0.03)
        g = torch.Generator().manual_seed(10)
        pairs[key] = round_trip(cast(Glow, coder.model), dithered(discs(2, layout.size_px, 5), g))
    for name, pair in pairs.items():
        found[f"roundtrip_f32_{name}"], found[f"roundtrip_f64_{name}"] = pair
    return found


def trained_figures(
    layouts: dict[str, Layout], options: argparse.Namespace, peers: Any
) -> dict[str, float | None]:
    """Noise on latents, ours beside the naive pipeline, on discs and on radiographs; round trips of
    what was trained.
    """
    layout = layouts["noise"]
    how = Conditions(layout, options.steps, options.input_noise, peers)
    pictures = options.pictures
    found, of_discs = compared(
        discs(4000, layout.size_px, 0), discs(128, layout.size_px, 1), how, "", None
    )
    print(f"noise on discs: {found}", file=sys.stderr)
    learned, shown = radiographs(layout.size_px, options.data)
    more, of_chests = compared(learned, shown, how, "_radiographs", pictures)
    g = torch.Generator().manual_seed(10)
    for name, model, images in (
        ("discs", of_discs, discs(16, layout.size_px, 1)),
        ("radiographs", of_chests, shown[:16]),
    ):
        found[f"roundtrip_f32_{name}"], found[f"roundtrip_f64_{name}"] = round_trip(
            model, dithered(images, g)
        )
    return found | more


KEYS_OF_PEER = (
    "train_over_normflows", "encode_over_normflows", "invert_over_normflows", "memory_over_normflows", "psnr_gain_b1_db",
    "psnr_gain_b1_radiographs_db",
)  # fmt: skip


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Every figure; those that need normflows are None where it was not fetched."""
    layouts = QUICK if options.quick else FULL
    torch.manual_seed(0)
    found: dict[str, Any] = dict.fromkeys(KEYS_OF_PEER)
    with (
        contextlib.nullcontext((None, "not asked for"))
        if options.without_normflows
        else fetched() as (peers, why)
    ):
        found["skipped"] = f"normflows: {why}" if why else ""
        if "speed" in options.parts:
            found |= private_figures(layouts, options.repeats)
            print(f"private step: {found}", file=sys.stderr)
            found |= {} if peers is None else peer_figures(layouts, options.repeats, peers)
            print(f"beside normflows: {found}", file=sys.stderr)
            source = NoiseSource()
            draw = {"laplace": lambda: source.discrete_laplace(LAPLACE_DRAWS, LAPLACE_SCALE)}
            found["laplace_65k_s"] = fastest(draw, options.repeats)["laplace"]
            large = layouts["speed_64"]
            found["saved_mib"], found["reversible_mib"] = (
                stored(large, reverse) for reverse in (False, True)
            )
        if "exact" in options.parts:
            found |= exactness(layouts, options.steps, options.flow)
        if "noise" in options.parts:
            found |= trained_figures(layouts, options, peers)
    for dtype in ("f32", "f64"):
        errors = [value for key, value in found.items() if key.startswith(f"roundtrip_{dtype}_")]
        found[f"roundtrip_{dtype}"] = max(errors, default=None)
    return {
        key: float(f"{value:.4g}") if isinstance(value, float) else value
        for key, value in found.items()
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the figures as a table, or as one JSON object."""
    parser = argparse.ArgumentParser(description="The flow beside normflows and opacus.")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--steps",
        type=int,
        default=700,
        help="of each training that the noise on latents is shown on",
    )
    parser.add_argument(
        "--parts", type=lambda text: text.split(","), default=["speed", "exact", "noise"]
    )
    parser.add_argument(
        "--data", type=Path, help=".npz with train_images and val_images, uint8 [N, S, S]"
    )
    parser.add_argument(
        "--input-noise", type=float, default=0.03, help="of our flow's training images"
    )
    parser.add_argument(
        "--flow", action="append", default=[], help="SIZE,CHANNELS,L,K,WIDTH:FILE.safetensors"
    )
    parser.add_argument(
        "--pictures", type=Path, help="PNG to write: test images decoded from noised latents"
    )
    parser.add_argument("--without-normflows", action="store_true")
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes: that it runs, not how fast"
    )
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")  # opacus' and torch's remarks on hooks
    torch.set_num_threads(1)
    found = measure(options)
    if options.json:
        print(json.dumps(found))
    else:
        print(
            "| figure | value |",
            "| --- | --- |",
            *(f"| {key} | {value} |" for key, value in found.items()),
            sep="\n",
        )


if __name__ == "__main__":
    main()
