"""Photographs of other cameras in the inversion: who is accepted, and how much of them is kept.

    python -m benchmarks.other_cameras --data FOLDER [--checkpoint DIR] [--people N] [--json [FILE]]

Sources: public fundus photographs of six cameras and hospitals at 64 px, framed by their field.
Two ways on the same photographs: as the networks see them without a common look, with an error of
the whole picture and the nearest of four orientations (before); and as the product does (now).
Errors of both are relative: inside the field, in the photograph's own deviation there.
Turned: the same photographs by a quarter, either way; they should be left out.
Beside them, pictures that are none: what of it the inversion refuses by itself, behind the intake.
Constants were chosen on IDRiD, CSDI and ODIR; PALM, EyePACS and DIARETDB1 are reports.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks import report
from benchmarks.field_of_view import SOURCES
from benchmarks.public_sets import read_set
from benchmarks.quality_generator import CAP_BYTES, LATENT, SHIPPED, SIZE_PX, WIDTH, generator_of
from client.synthesize.invert import invert, reconstruct
from client.synthesize.looks import look_at, look_from, relative_errors, show_in
from client.synthesize.reference import InversionPlan, Reference, freeze, make_reference
from common.arrays import Flags, Floats, Images
from common.models.encoder import Encoder, load_encoder
from common.models.images import to_unit
from common.models.stylegan import Generator, load_generator
from common.study.training import GanPlan
from common.wire.tensors import read

LEAST_OF_A_LABEL = 8  # photographs, below which a label's share says nothing
# before: of whole pictures in [0, 1]
MISMATCH = (0.1, 0.12)
OWN = (0.99, 4.0, 0.06)


@dataclass(frozen=True)
class Models:
    """A checkpoint, and what it says before a photograph is seen; and so before looks."""

    generator: Generator
    encoder: Encoder
    plan: InversionPlan
    known: Reference
    threshold_before: float


@dataclass(frozen=True)
class Part:
    """Photographs of one source and their labels."""

    images: Images
    labels: NDArray[np.int64]
    names: tuple[str, ...]


def read_part(data: Path, file: str, most: int) -> Part:
    """At most so many photographs by chance."""
    images, _ = read_set(data, file, SIZE_PX)
    with np.load(data / f"{file}.npz", allow_pickle=False) as arrays:
        labels = np.zeros(len(images), np.int64)
        names: tuple[str, ...] = ("all",)
        if "labels" in arrays and len(arrays["labels"]) == len(images):
            labels = arrays["labels"].astype(np.int64)
            names = tuple(str(one) for one in np.unique(labels))
            if "class_names" in arrays:
                names = tuple(str(one) for one in arrays["class_names"])
    rows = np.random.default_rng(0).permutation(len(images))[:most]
    return Part(images[rows], labels[rows], names)


def load_models(folder: Path) -> Models:
    """The checkpoint of a folder."""
    size = GanPlan.model_construct(width=WIDTH, latent=LATENT)
    gan = read(folder / "gan.safetensors", max_bytes=CAP_BYTES)
    weights = read(folder / "encoder.safetensors", max_bytes=CAP_BYTES)
    generator = load_generator(gan, size, SIZE_PX, 3).eval()
    encoder = load_encoder(weights, WIDTH, LATENT, SIZE_PX, 3).eval()
    plan = InversionPlan()
    known = make_reference(generator, encoder, plan, generator_of(0))
    return Models(generator, encoder, plan, known, threshold_before(generator, encoder, plan))


def rmse(a: Tensor, b: Tensor) -> Floats:
    """Root mean square difference [N] of images in [-1, 1], in the range [0, 1]."""
    return np.asarray((a - b).double().square().mean((1, 2, 3)).sqrt().div(2))


@torch.no_grad()
def threshold_before(generator: Generator, encoder: Encoder, plan: InversionPlan) -> float:
    """The threshold on whole pictures, from samples."""
    random = generator_of(0)
    samples = generator(torch.randn(plan.samples, LATENT, generator=random), random).clamp(-1, 1)
    rebuilt = encoder.invert(samples, generator, plan.iterations, keep_best=True).reconstructions
    foreign = float(np.quantile(rmse(samples, samples.roll(1, dims=0)), MISMATCH[0]))
    own = OWN[1] * float(np.quantile(rmse(samples, rebuilt.clamp(-1, 1)), OWN[0]))
    return min(max(foreign, MISMATCH[1]), max(own, OWN[2]))


def invert_before(images: Images, models: Models) -> tuple[Flags, Floats]:
    """Who is accepted without a common look, and relative errors."""
    from client.synthesize.invert import _refine

    x = to_unit(images)
    fields = look_at(x, models.known.look_on()).fields
    generator = models.generator
    encoder = models.encoder
    plan = models.plan
    with freeze(generator, encoder):
        with torch.no_grad():
            first = encoder.invert(x, generator, plan.iterations, keep_best=True)
            own = rmse(x, first.reconstructions.clamp(-1, 1))
            lying = np.zeros(len(x), bool)
            for quarters in (1, 3):
                turned = x.rot90(quarters, (2, 3))
                found = encoder.invert(turned, generator, plan.iterations, keep_best=True)
                lying |= ~(own < rmse(turned, found.reconstructions.clamp(-1, 1)))
        codes = _refine(x, first.codes, generator, plan, models.known.spread)
        with torch.no_grad():
            rebuilt = generator.synthesis(codes).clamp(-1, 1)
    accepted = (rmse(x, rebuilt) <= models.threshold_before) & ~lying
    return accepted, relative_errors(rebuilt, x, fields)


def invert_now(images: Images, models: Models) -> tuple[Flags, Floats]:
    """Who is accepted by the product, and relative errors in the photographs' own looks."""
    found = invert(images, models.generator, models.encoder, models.plan, models.known)
    x = to_unit(images)
    common = models.known.look_on()
    shown = show_in(reconstruct(found.codes, models.generator), common, look_from(found.looks))
    return found.accepted, relative_errors(shown, x, look_at(x, common).fields)


def measure(part: Part, models: Models) -> dict[str, Any]:
    """The figures of one source."""
    before, errors_before = _in_batches(invert_before, part.images, models)
    now, errors = _in_batches(invert_now, part.images, models)
    some = part.images[: len(part.images) // 2]
    turned = [np.ascontiguousarray(np.rot90(some, quarters, (1, 2))) for quarters in (1, 3)]
    caught, _ = _in_batches(invert_now, np.concatenate(turned), models)
    shares: dict[str, float] = {}
    for label in np.unique(part.labels):
        rows = part.labels == label
        if rows.sum() >= LEAST_OF_A_LABEL:
            shares[part.names[label]] = round(float(now[rows].mean()), 3)
    return {
        "photographs": len(part.images),
        "accepted before": round(float(before.mean()), 3),
        "accepted now": round(float(now.mean()), 3),
        "by label": shares,
        "error before": round(float(np.median(errors_before)), 3),
        "error now": round(float(np.median(errors)), 3),
        "turned left out": round(1 - float(caught.mean()), 3),
    }


def other_pictures(data: Path) -> dict[str, Images]:
    """Pictures that are no photographs of an eye, or spoilt ones, a few of each kind."""
    draw = np.random.default_rng(0)
    eyes = read_set(data, "idrid_128", SIZE_PX)[0][:8]
    noise = draw.integers(0, 256, eyes.shape, dtype=np.uint8)
    places = np.arange(SIZE_PX) - (SIZE_PX - 1) / 2
    disc = np.hypot(places[:, None], places) < SIZE_PX / 2 - 1
    stripes = np.where(np.arange(SIZE_PX) // 4 % 2, 190, 40)[:, None] * disc
    ramp = (60 + 2 * np.arange(SIZE_PX)) * disc
    spoilt = np.clip(eyes + draw.normal(0, 40, eyes.shape), 0, 255).astype(np.uint8)
    films = read_set(data, "chest_nih_64", SIZE_PX, 8)[0]
    with np.load(data / "dias_dsa_patches_96.npz", allow_pickle=False) as arrays:
        vessels = arrays["images"][:8, 16:80, 16:80, None]
    return {
        "chest radiographs, as colour": np.repeat(films, 3, axis=3),
        "angiograms, as colour": np.repeat(vessels, 3, axis=3),
        "negatives of photographs": 255 - eyes,
        "photographs under noise of deviation 40": spoilt,
        "noise": noise,
        "noise in a disc": noise * disc[None, :, :, None].astype(np.uint8),
        "stripes in a disc": np.repeat(stripes[None, :, :, None], 3, axis=3).astype(np.uint8),
        "an even ramp in a disc": np.repeat(ramp[None, :, :, None], 3, axis=3).astype(np.uint8),
    }


def refusals(data: Path, models: Models) -> report.Table:
    """How many of other pictures the inversion accepts by itself."""
    rows = []
    for name, images in other_pictures(data).items():
        found = invert(images, models.generator, models.encoder, models.plan, models.known)
        least, most = float(found.errors.min()), float(found.errors.max())
        rows.append(
            (name, f"{found.accepted.sum()} of {len(images)}", f"{least:.2f} to {most:.2f}")
        )
    title = f"Other pictures, threshold {models.known.threshold:.2f}"
    return report.Table(title, ("", "accepted", "relative error"), tuple(rows))


def _in_batches(way: Any, images: Images, models: Models) -> tuple[Flags, Floats]:
    """A way, 16 photographs at a time."""
    parts = [way(images[start : start + 16], models) for start in range(0, len(images), 16)]
    accepted, errors = zip(*parts, strict=True)
    return np.concatenate(accepted), np.concatenate(errors)


def tables(found: dict[str, dict[str, Any]]) -> list[report.Table]:
    """One table of all sources."""
    rows = []
    for name, one in found.items():
        labels = ", ".join(f"{label} {share:.2f}" for label, share in one["by label"].items())
        cells = [f"{one[key]:.2f}" for key in ("accepted before", "accepted now")]
        cells += [labels]
        cells += [f"{one[key]:.2f}" for key in ("turned left out", "error before", "error now")]
        rows.append((name, str(one["photographs"]), *cells))
    columns = ("", "photographs", "accepted before", "accepted now", "by label")
    columns += ("turned left out", "relative error before", "relative error now")
    return [report.Table("Upright photographs of six sources", columns, tuple(rows))]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the public .npz files")
    parser.add_argument("--checkpoint", type=Path, default=SHIPPED)
    parser.add_argument(
        "--people", type=int, default=40, help="photographs of each source, at most"
    )
    report.add_json(parser)
    given = parser.parse_args()
    torch.set_num_threads(1)
    models = load_models(given.checkpoint)
    found: dict[str, dict[str, Any]] = {}
    for name, file in SOURCES.items():
        found[name] = measure(read_part(given.data, file, given.people), models)
        print(name, found[name], flush=True)
    shown = [*tables(found), refusals(given.data, models)]
    report.give(given.json, "other_cameras.accepted", shown, found)


if __name__ == "__main__":
    main()
