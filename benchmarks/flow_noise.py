"""What noise does to decoded latents: flows trained alike on discs and on radiographs.

naive  a standard Glow that we did not write: sigmoid couplings without a bound when decoding,
       ActNorm from the first batch, no input noise, decoded raw. Its latents are standardised
       by its learned Gaussians, so that clip and noise mean the same
loose  our flow with couplings four times as wide, from the identity, no input noise, decoded raw
ours   the product's bound, input noise, rescaled to the spread of a latent
The Laplace noise is floating-point, for PSNR alone: nothing here is private.
"""

import argparse
import contextlib
import csv
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.flow_layouts import Layout
from benchmarks.flow_peer import peer
from common.models import glow_checkpoint, glow_coupling
from common.models.glow import Glow
from server.demo.hospitals import DEPLOY, RADIOGRAPHS, as_ingested

BOX = 3.0
SCALES = {"b025": 0.25, "b05": 0.5, "b1": 1.0, "b2": 2.0}
DISC_NOISE = 0.02  # of the image range: 4.4 bits per dimension; without noise nothing breaks
CHECKS = (25, 50, 100, 200, 400)  # training steps after which the naive flow is looked at
SHIPPED = {"chest-32": "32,1,3,6,32", "fundus-64": "64,3,4,6,40"}


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
            learned = file["train_images"]
            shown = file["val_images"][:128]
        else:
            with open(RADIOGRAPHS / "labels.csv", encoding="utf-8") as table:
                plays = np.array([bool(row["person"]) for row in csv.DictReader(table)])
            learned = file["images"][plays][..., 0]
            shown = file["images"][~plays][:128, ..., 0]
    pairs = [
        np.stack([as_ingested(one, size_px)[..., 0] for one in some]) for some in (learned, shown)
    ]
    return torch.from_numpy(pairs[0])[:, None], torch.from_numpy(pairs[1])[:, None]


def dither(pixels: Tensor, generator: torch.Generator) -> Tensor:
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
    optimiser = torch.optim.Adam(coder.model.parameters(), 2e-3)
    dimension = pixels[0].numel()
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 2e-3 * min(1.0, (step + 1) / 20)
        x = dither(pixels[torch.randint(len(pixels), (batch,), generator=g)], g)
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
        model = model.to(dtype)
        x = x.to(dtype)
        errors.append(float((model.decode(model.encode(x)[0]) - x).abs().max()))
    model.to(torch.float32)
    return errors[0], errors[1]


@contextlib.contextmanager
def couplings_bounded_by(alpha: float) -> Iterator[None]:
    """The flow with another bound of its couplings' log-scales."""
    kept = glow_coupling.LOG_SCALE_BOUND
    glow_coupling.LOG_SCALE_BOUND = alpha
    try:
        yield
    finally:
        glow_coupling.LOG_SCALE_BOUND = kept


@torch.no_grad()
def decode_noised(coder: Coder, x: Tensor, b: float, match: bool) -> Tensor:
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
    g = torch.Generator().manual_seed(7)
    broken = list[int]()
    first = dither(learned[torch.randint(len(learned), (64,), generator=g)], g)
    coder = naive_of(peer(how.peers, how.layout, first))

    def check(step: int) -> None:
        if not bool(torch.isfinite(decode_noised(coder, shown, 1.0, match=False)).all()):
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


def compare(
    learned: Tensor, shown: Tensor, how: Conditions, end: str, pictures: Path | None
) -> tuple[dict[str, float | None], Glow]:
    """The figures of one set of images, their keys ending with `end`; and our trained flow."""
    # train all flows on the same images
    x = dither(shown, torch.Generator().manual_seed(8))
    coders = {
        "ours": our_flow(learned, how, glow_coupling.LOG_SCALE_BOUND, how.input_noise),
        "loose": our_flow(learned, how, 2.0, 0.0),
    }
    found: dict[str, float | None] = {}
    if how.peers is not None:
        coders["naive"], broken = naive_flow(learned, x, how)
        found[f"naive_breaks_at_step{end}"] = broken
    # how well they fit
    with torch.no_grad():
        for name, coder in coders.items():
            with couplings_bounded_by(coder.bound):
                bits = -coder.log_p(x).mean() / x[0].numel() / math.log(2) + 8
            found[f"bits_per_dimension_{name}{end}"] = float(bits)
    # what each makes of noised latents
    columns = [x]
    for name, b in SCALES.items():
        figures, pictured = at_noise(coders, x, b)
        for key, value in figures.items():
            found[key.format(name=name, end=end).replace("__", "_")] = value
        if b >= 0.5:
            columns += pictured
    mean = dither(learned, torch.Generator().manual_seed(9)).double().mean(0)
    found[f"psnr_mean_image{end}_db"] = psnr(mean.expand(len(x), -1, -1, -1), x)
    if pictures is not None:
        write_strips(columns, pictures)
    return found, cast(Glow, coders["ours"].model)


def at_noise(
    coders: dict[str, Coder], x: Tensor, b: float
) -> tuple[dict[str, float], list[Tensor]]:
    """Figures at one scale of noise, keyed by a pattern of {name} and {end}; what is pictured."""
    raw = {who: decode_noised(coder, x, b, match=False) for who, coder in coders.items()}
    matched = {who: decode_noised(coder, x, b, match=True) for who, coder in coders.items()}
    ours = psnr(shown_as(matched["ours"]), x)
    levels = {"": ours, "ours_raw": psnr(shown_as(raw["ours"]), x)}
    for who in raw:
        if who == "ours":
            continue
        levels[who] = psnr(shown_as(raw[who]), x)
        levels[f"{who}_matched"] = psnr(shown_as(matched[who]), x)
    shares = {"": outside(matched["ours"]), "loose": outside(raw["loose"])}
    pictured = []
    if "naive" in raw:
        levels["naive_gray"] = psnr(shown_as(raw["naive"], 0.0), x)
        levels["gain"] = ours - levels["naive"]
        shares["naive"] = outside(raw["naive"])
        pictured.append(shown_as(raw["naive"]))
    levels["gain_over_loose"] = ours - levels["loose"]
    pictured.append(shown_as(matched["ours"]))
    figures = {f"psnr_{who}_{{name}}{{end}}_db": level for who, level in levels.items()}
    for who, share in shares.items():
        figures[f"out_of_range_{who}_{{name}}{{end}}"] = share
    return figures, pictured


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
        found[name] = round_trip(model, dither(pixels, torch.Generator().manual_seed(10)))
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
        pairs[key] = round_trip(cast(Glow, coder.model), dither(discs(2, layout.size_px, 5), g))
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
    found, of_discs = compare(
        discs(4000, layout.size_px, 0), discs(128, layout.size_px, 1), how, "", None
    )
    print(f"noise on discs: {found}", file=sys.stderr)
    learned, shown = radiographs(layout.size_px, options.data)
    more, of_chests = compare(learned, shown, how, "_radiographs", pictures)
    g = torch.Generator().manual_seed(10)
    for name, model, images in (
        ("discs", of_discs, discs(16, layout.size_px, 1)),
        ("radiographs", of_chests, shown[:16]),
    ):
        found[f"roundtrip_f32_{name}"], found[f"roundtrip_f64_{name}"] = round_trip(
            model, dither(images, g)
        )
    return found | more
