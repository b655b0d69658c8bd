"""The flow beside normflows and opacus: speed, memory, exactness, and what noise does to decoded latents. One run.

    python benchmarks/flow.py [--json] [--repeats 5] [--steps 700] [--data IMAGES.npz] [--pictures FILE.png]
                              [--without-normflows] [--quick]

Speed: 32x32 gray, L3 K8 width 64, batch 16; one thread, process time (the noise thread's work included), the smallest of
alternating repeats. A private step is whole: gradients, clip, AES lattice noise, Adam; the non-private one is torch's Adam on the
same flow. `hooks`: opacus' hooks with every log-determinant packed into its layer's one output (else they are silently wrong),
its Gaussian noise and torch's Adam. normflows 1.7.3 is fetched from the package registry into a temporary folder, without
dependencies, and is thrown away; if that fails, its keys are null and `skipped` says why.
Memory: unique storages kept for the backward pass, weights apart, 64x64 gray, L4 K8 width 64, batch 8.
Exactness after training: greatest pixel error of decode(encode(x)), 32 to 128 px.
Noise: two flows (32x32, L3 K8 width 32) trained alike on the same images, ours and the naive one (couplings four times as
loose, no input noise); box clip at 3, Laplace noise of scale b on every coordinate; PSNR in dB after the clamp and share of
pixels out of range before it. `gain`: ours with the variance match over naive without; `ours_raw` and `naive_matched`: the other
two corners. `--pictures`: columns original | naive and ours at b = 0.5, 1 and 2. Images: soft discs on gray made here, or uint8
[N, S, S, 1] of --data (the last eighth is for testing).
Not: quality of the images (quality_chest.py), privacy of anything here: the floating-point Laplace noise is for PSNR only.
"""

import argparse
import contextlib
import json
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
from client.ledger import PracticeReservation
from common.models import glow
from common.models.adam import Adam
from common.models.glow import Glow, Level, Mixing, Split, composed, from_uint8, initialise_from_noise
from common.privacy.mechanisms import SubsampledGaussian
from common.privacy.noise import NoiseSource, SeededNoiseSource

NORMFLOWS = "normflows==1.7.3"
LAPLACE_DRAWS, LAPLACE_SCALE = 65_536, 2.0**10
BOX = 3.0
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


# --- steps ----------------------------------------------------------------------------------------------------------------
def plain_step(model: nn.Module, log_p: Callable[[Tensor], Tensor], x: Tensor) -> Call:
    """An ordinary step of maximum likelihood with torch's Adam, gradients cut at norm 5."""
    optimiser = torch.optim.Adam(model.parameters(), 1e-3)
    dimension = x[0].numel()

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        (-log_p(x).mean() / dimension).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimiser.step()

    return step


def non_private(layout: Layout, x: Tensor, memory_format: torch.memory_format = torch.contiguous_format) -> Call:
    """The same flow without privacy: no clip of gradients either."""
    model = layout.flow().to(memory_format=memory_format)
    optimiser, x = torch.optim.Adam(model.parameters(), 1e-3), x.contiguous(memory_format=memory_format)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        (-model(x).mean() / model.dimension).backward()
        optimiser.step()

    return step


def private(layout: Layout, x: Tensor) -> tuple[PrivateStep, Call]:
    """The private step as train_glow runs it, every patient drawn; and the step itself, which knows its back end."""
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
    """A mixing whose one output ends with its log-determinant, so that opacus' hooks see the gradients of both."""

    def __init__(self, layer: Mixing) -> None:
        super().__init__()
        self.bias, self.log_scale, self.triangles = layer.bias, layer.log_scale, layer.triangles
        self._rotation = layer._rotation

    def forward(self, x: Tensor) -> Tensor:
        kernels, biases, log_scale = composed([cast(Mixing, self)])
        y = torch.nn.functional.conv2d(x, kernels[0], biases[0])
        log_determinant = (log_scale.sum() * (x.shape[-1] * x.shape[-2])).expand(len(x), 1)
        return torch.cat([y.flatten(1), log_determinant], dim=1)


class PackedTop(nn.Module):
    """The top's prior, packed likewise."""

    def __init__(self, top: nn.Module) -> None:
        super().__init__()
        self.mean, self.raw_log_scale = top.mean, top.raw_log_scale

    def forward(self, x: Tensor) -> Tensor:
        log_scale = glow.SPLIT_BOUND * torch.tanh(self.raw_log_scale / glow.SPLIT_BOUND)
        part = (x - self.mean) * (-log_scale).exp()
        return torch.cat([part.flatten(1), -log_scale.sum().expand(len(x), 1)], dim=1)


class PackedGlow(nn.Module):
    """log p as `Glow.forward` gives it, by layers that opacus' hooks get right."""

    def __init__(self, model: Glow) -> None:
        super().__init__()
        levels = [cast(Level, level) for level in model.levels]
        self.mixings = nn.ModuleList(PackedMixing(cast(Mixing, m)) for level in levels for m in level.mixings)
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


# --- normflows ------------------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def fetched() -> Iterator[tuple[ModuleType | None, str]]:
    """(normflows, "") from a temporary folder of this run, or (None, why not)."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, NORMFLOWS]
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


def peer(normflows: Any, layout: Layout) -> Any:
    """normflows' Glow of equal K, L and width: affine coupling, LU 1x1, ActNorm, split, diagonal Gaussians."""
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
        model.log_prob(layout.images(64), None)  # ActNorm sets itself by its first batch
    return model


# --- measuring ------------------------------------------------------------------------------------------------------------
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


def saved_mib(log_p: Callable[[Tensor], Tensor], parameters: Iterator[nn.Parameter], x: Tensor) -> float:
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
    """The private step beside the non-private one and opacus' hooks, and what the hooks' gradients are worth."""
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
    """The greatest relative error over tensors of the packed hooks' per-sample gradients: that the comparison is fair."""
    from client.learn.patient_gradients import by_backward

    x = layout.images(2).double()  # in float64: a rounding at a kink of ReLU is no error of the hooks
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


def peer_figures(layouts: dict[str, Layout], repeats: int, normflows: Any) -> dict[str, float | None]:
    """Train, encode, invert and memory over normflows: above 1 is faster; memory below 1 is less."""
    layout, large = layouts["speed"], layouts["speed_64"]
    x, theirs = layout.images(), peer(normflows, layout)
    ours = layout.flow().to(memory_format=torch.channels_last)
    ours_trained, theirs_trained = layout.flow().to(memory_format=torch.channels_last), peer(normflows, layout)
    near = x.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        our_parts, (their_parts, _) = ours.encode(x)[0], theirs.inverse_and_log_det(x)

    def quiet(call: Call) -> Call:
        return cast(Call, torch.no_grad()(call))

    seconds = fastest(
        {
            "train": plain_step(ours_trained, ours_trained.forward, near),
            "their train": plain_step(theirs_trained, lambda y: theirs_trained.log_prob(y, None), x),
            "encode": quiet(lambda: ours.encode(near)),
            "their encode": quiet(lambda: theirs.inverse_and_log_det(x)),
            "invert": quiet(lambda: ours.decode(our_parts)),
            "their invert": quiet(lambda: theirs.forward_and_log_det(their_parts)),
        },
        repeats,
    )
    found: dict[str, float | None] = {
        f"{what}_over_normflows": seconds[f"their {what}"] / seconds[what] for what in ("train", "encode", "invert")
    }
    found |= {f"{what}_images_per_s": layout.batch / seconds[what] for what in ("train", "encode", "invert")}
    them = peer(normflows, large)
    their_mib = saved_mib(lambda y: cast(Tensor, them.log_prob(y, None)), them.parameters(), large.images())
    found["saved_mib_normflows"] = their_mib
    found["memory_over_normflows"] = stored(large, False) / their_mib
    return found


def stored(layout: Layout, reverse: bool) -> float:
    """MiB that our flow keeps for its backward pass."""
    model = layout.flow()
    model.reversible = reverse
    return saved_mib(model.forward, model.parameters(), layout.images())


# --- after training -------------------------------------------------------------------------------------------------------
def discs(count: int, size_px: int, seed: int) -> Tensor:
    """[N, 1, S, S] in [-0.5, 0.5]: soft discs of random place, size and shade on a shaded ground, with 8-bit dither."""
    g = torch.Generator().manual_seed(seed)
    axis = torch.linspace(-1, 1, size_px)
    cx, cy, radius, shade, ground, tilt = (torch.rand(count, 1, 1, generator=g) for _ in range(6))
    distance = ((axis[None, None] - (cx - 0.5)).square() + (axis[None, :, None] - (cy - 0.5)).square()).sqrt()
    disc = torch.sigmoid((0.25 + 0.4 * radius - distance) * 20)
    x = 0.3 * (ground - 0.5) + 0.15 * (tilt - 0.5) * axis[None, None] + 0.4 * (shade - 0.5) * disc
    levels = ((x + 0.5) * 256).floor().clamp(0, 255)
    return ((levels + torch.rand(levels.shape, generator=g)) / 256 - 0.5)[:, None]


def trained(layout: Layout, images: Tensor, steps: int, input_noise: float) -> Glow:
    """The layout's flow after a short training of maximum likelihood."""
    model, g = layout.flow(), torch.Generator().manual_seed(2)
    optimiser = torch.optim.Adam(model.parameters(), 2e-3)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 2e-3 * min(1.0, (step + 1) / 20)
        x = images[torch.randint(len(images), (layout.batch,), generator=g)]
        loss = -model(x + input_noise * torch.randn(x.shape, generator=g)).mean() / model.dimension
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimiser.step()
    return model


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
    kept, glow.LOG_SCALE_BOUND = glow.LOG_SCALE_BOUND, alpha
    try:
        yield
    finally:
        glow.LOG_SCALE_BOUND = kept


@torch.no_grad()
def noised(model: Glow, x: Tensor, b: float, match: bool) -> tuple[float, float, Tensor]:
    """Laplace noise of scale b on every coordinate: (PSNR in dB after the clamp, share of pixels out before it, images)."""
    g = torch.Generator().manual_seed(3)
    parts = []
    for part in model.encode(x)[0]:
        u = torch.rand(part.shape, generator=g, dtype=torch.float64) - 0.5
        noise = -b * u.sign() * torch.log1p(-2 * u.abs())
        y = part.clamp(-BOX, BOX) + noise.to(part.dtype)
        parts.append(y / (1 + 2 * b**2) ** 0.5 if match else y)
    decoded = torch.nan_to_num(model.decode(parts).double(), nan=1e9, posinf=1e9, neginf=-1e9)
    outside = float((decoded.abs() > 0.5).double().mean())
    shown = decoded.clamp(-0.5, 0.5)
    error = (shown - x.double()).square().flatten(1).mean(1)
    return float((-10 * error.log10()).mean()), outside, shown


def write_strips(columns: Sequence[Tensor], path: Path, rows: int = 8) -> None:
    """A PNG, enlarged four times: row by row the first images of each column [N, 1, S, S] in [-0.5, 0.5]."""
    from PIL import Image

    sheet = torch.cat([torch.cat(list(column[:rows, 0]), dim=0) for column in columns], dim=1).double()
    levels = ((sheet + 0.5) * 255).round().clamp(0, 255).to(torch.uint8).numpy()
    Image.fromarray(np.kron(levels, np.ones((4, 4), np.uint8))).save(path)


def trained_figures(
    layouts: dict[str, Layout], steps: int, data: Path | None, pictures: Path | None
) -> dict[str, float | None]:
    """Round trips after training, and noise on latents: ours beside the naive pipeline."""
    layout = layouts["noise"]
    if data is None:
        learned, shown = discs(4000, layout.size_px, 0), discs(128, layout.size_px, 1)
    else:
        with np.load(data, allow_pickle=False) as file:
            every = from_uint8(file["images"])
        layout = Layout(every.shape[2], 4, layout.steps, layout.width, layout.batch, every.shape[1])
        learned, shown = every[: -len(every) // 8], every[-len(every) // 8 :][:128]
    ours = trained(layout, learned, steps, 0.03)
    with couplings_bounded_by(2.0):
        naive = trained(layout, learned, steps, 0.0)
    found: dict[str, float | None] = {}
    columns = [shown]
    for b, name in ((0.25, "b025"), (0.5, "b05"), (1.0, "b1"), (2.0, "b2")):
        with couplings_bounded_by(2.0):
            theirs, their_outside, their_images = noised(naive, shown, b, match=False)
            matched = noised(naive, shown, b, match=True)[0]
        mine, outside, images = noised(ours, shown, b, match=True)
        columns += [their_images, images] if b >= 0.5 else []
        found |= {
            f"psnr_ours_raw_{name}_db": noised(ours, shown, b, match=False)[0],
            f"psnr_naive_matched_{name}_db": matched,
        }
        found |= {f"psnr_{name}_db": mine, f"psnr_naive_{name}_db": theirs, f"psnr_gain_{name}_db": mine - theirs}
        found |= {f"out_of_range_{name}": outside, f"out_of_range_naive_{name}": their_outside}
    with torch.no_grad():
        found["bits_per_dimension"] = float(ours.bits_per_dimension(ours(shown)).mean())
        with couplings_bounded_by(2.0):
            found["bits_per_dimension_naive"] = float(naive.bits_per_dimension(naive(shown)).mean())
    if pictures is not None:
        write_strips(columns, pictures)
    mean = -10 * (shown - learned.mean(0)).double().square().flatten(1).mean(1).log10()
    found["psnr_mean_image_db"] = float(mean.mean())
    pairs = [round_trip(ours, shown[:16])]
    for key in ("speed_64", "exact_128"):
        other = layouts[key]
        pairs.append(
            round_trip(trained(other, discs(64, other.size_px, 4), min(steps, 12), 0.03), discs(2, other.size_px, 5))
        )
    found["roundtrip_f32"], found["roundtrip_f64"] = (max(p[i] for p in pairs) for i in (0, 1))
    return found


KEYS_OF_PEER = ("train_over_normflows", "encode_over_normflows", "invert_over_normflows", "memory_over_normflows")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Every figure; those that need normflows are None where it was not fetched."""
    layouts = QUICK if options.quick else FULL
    torch.manual_seed(0)
    found: dict[str, Any] = dict(private_figures(layouts, options.repeats))
    print(f"private step: {found}", file=sys.stderr)
    found |= dict.fromkeys(KEYS_OF_PEER)
    with contextlib.nullcontext((None, "not asked for")) if options.without_normflows else fetched() as (peers, why):
        if peers is not None:
            found |= peer_figures(layouts, options.repeats, peers)
            print(f"beside normflows: {found}", file=sys.stderr)
        found["skipped"] = f"normflows: {why}" if why else ""
    source = NoiseSource()
    draw = {"laplace": lambda: source.discrete_laplace(LAPLACE_DRAWS, LAPLACE_SCALE)}
    found["laplace_65k_s"] = fastest(draw, options.repeats)["laplace"]
    found["saved_mib"], found["reversible_mib"] = (stored(layouts["speed_64"], reverse) for reverse in (False, True))
    found |= trained_figures(layouts, options.steps, options.data, options.pictures)
    return {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in found.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the figures as a table, or as one JSON object."""
    parser = argparse.ArgumentParser(description="The flow beside normflows and opacus.")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--steps", type=int, default=700, help="of the two trainings that the noise on latents is shown on"
    )
    parser.add_argument("--data", type=Path, help=".npz with `images` uint8 [N, S, S, 1] for the noise on latents")
    parser.add_argument("--pictures", type=Path, help="PNG to write: test images decoded from noised latents")
    parser.add_argument("--without-normflows", action="store_true")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: that it runs, not how fast")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")  # opacus' and torch's remarks on hooks
    torch.set_num_threads(1)
    found = measure(options)
    if options.json:
        print(json.dumps(found))
    else:
        print(
            "| figure | value |", "| --- | --- |", *(f"| {key} | {value} |" for key, value in found.items()), sep="\n"
        )


if __name__ == "__main__":
    main()
