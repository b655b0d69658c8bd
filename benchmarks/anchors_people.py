"""What `anchors` publishes of 700 people whose cameras the checkpoint never saw.

    python -m benchmarks.anchors_people --data FOLDER [--people 700] [--k 10] [--cells 12 20]
        [--seeds 5] [--work DIR] [--json [FILE]] [--sheet FILE.png]

Members of the five hospitals of other_hospitals.py, from its work folder, together as one site and
one stratum: `--people` of them by a fixed shuffle. Every second one is mirrored, so that there are
left eyes and right ones. Noise of epsilon 8 at delta 1e-5, alone.
- generator samples: the space without a basis: the encoder's codes, whitened by generator samples
- public basis: refined codes in the directions of deploy/checkpoints/fundus-64/codes.safetensors
Per row, the mean over `--seeds` draws of noise: cells published; people behind them; largest cell;
share of codes that the clip shortens; squared error of a noisy mean beside its cell's own mean, as
a share of how far cells' means lie from everybody's; Fréchet distance of the images, all in one
look, from the held-out people of the five hospitals.
`--sheet` shows the images of the first draw, a line for each row. Nothing is selected here.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks import report
from benchmarks.average_makers import ANCHORS_NOISE, ANCHORS_THRESHOLD_DELTA
from benchmarks.average_people import ROOT
from benchmarks.average_prepared import PreparedPart
from benchmarks.hospital_people import SOURCES, make_part, read_source
from client.state.group_store import Stratum
from client.state.ledger import PracticeReservation
from client.synthesize import anchors
from client.synthesize.anchors import NoisyMean, choose_space, noisy_means
from client.synthesize.group import Roster
from client.synthesize.partition import Cells
from client.synthesize.reference import Whitening
from common.arrays import Floats, Images
from common.models.basis import load
from common.models.images import to_uint8, to_unit
from common.models.look import field_of, in_look, look_of
from common.models.pretrained_features import load_features
from common.models.stylegan import Generator
from common.privacy.anchors import NoisyAnchors
from common.privacy.noise import SeededNoiseSource
from common.study.plan import load_study
from server.evaluate import distances
from server.evaluate.extractors import FEATURE_UNIT

COMPONENTS = {"generator samples": 32, "public basis": 16}
COLUMNS = ("space", "cells", "published", "people", "largest", "clipped", "error", "Fréchet")
PICTURES = 12


@dataclass(frozen=True)
class Site:
    """The people's codes in each space, float64 [people, D], with its whitening."""

    encoded: Floats
    refined: Floats
    heldout: Images


def gather(prepared: Sequence[PreparedPart], people: int) -> Site:
    """The members of all hospitals, each by the mean of the images; one eye of two is mirrored."""
    encoded: list[Floats] = []
    refined: list[Floats] = []
    for one in prepared:
        for number, rows in enumerate(one.who.images):
            seen = one.seen_mirrored if number % 2 else one.seen
            encoded.append(np.asarray(seen.points[list(rows)], np.float64).mean(0))
            flat = seen.codes[list(rows)].reshape(len(rows), -1)
            refined.append(flat.astype(np.float64).mean(0))
    order = np.random.default_rng(0).permutation(len(encoded))[:people]
    shown = [one.part.heldout.images for one in prepared]
    heldout = np.concatenate([*shown, *(images[:, :, ::-1] for images in shown)])
    return Site(np.stack(encoded)[order], np.stack(refined)[order], heldout)


def publish(
    codes: Floats, cells: Cells, mechanism: NoisyAnchors, seed: int
) -> tuple[Roster, list[NoisyMean]]:
    """One draw: everybody in one stratum."""
    names = tuple(f"{i:05d}" for i in range(len(codes)))
    each = tuple((i,) for i in range(len(codes)))
    who = Roster(names, (Stratum(0),) * len(codes), each)
    reservation, noise = PracticeReservation(mechanism), SeededNoiseSource(seed)
    means = noisy_means(who, codes, cells, [Stratum(0)], mechanism, reservation, noise)
    return who, means


def describe(
    codes: Floats, cells: Cells, mechanism: NoisyAnchors, who: Roster, means: Sequence[NoisyMean]
) -> dict[str, float]:
    """The figures of one draw, without the images' distance."""
    members = [[int(name) for name in mean.group.members] for mean in means]
    counts = anchors.totals(who, codes, cells, [Stratum(0)], mechanism)[2]
    middle = codes.mean(0)
    error = [
        np.square(mean.code - codes[own].mean(0)).sum()
        for mean, own in zip(means, members, strict=True)
    ]
    apart = [np.square(codes[own].mean(0) - middle).sum() for own in members]
    return {
        "published": len(means),
        "people": sum(map(len, members)),
        "largest": int(counts.max()),
        "clipped": float((np.linalg.norm(codes, axis=1) > mechanism.radius).mean()),
        "error": float(np.mean(error) / np.mean(apart)),
    }


def in_one_look(images: Images, generator: Generator) -> Images:
    """Images in the look of the generator's mean code, so that colour says nothing."""
    x = to_unit(images)
    fields = field_of(x)
    own = look_of(x, fields)
    made = generator.synthesis(
        generator.broadcast(generator.mapping(torch.zeros(1, generator.latent)))
    )
    common = look_of(made, field_of(made))
    return to_uint8(in_look(x, fields, own, common).clamp(-1, 1))


def run(
    prepared: Sequence[PreparedPart], basis: Path, given: argparse.Namespace
) -> tuple[list[dict[str, Any]], list[Images]]:
    """A row for each space and number of cells, and the first draw's images of each."""
    site = gather(prepared, given.people)
    known = prepared[0].known
    generator = prepared[0].networks.generator
    assert generator is not None
    network = load_features()
    with torch.no_grad():
        heldout = network.of_images(in_one_look(site.heldout, generator)) / FEATURE_UNIT
    rows: list[dict[str, Any]] = []
    pictures: list[Images] = []
    for space, components in COMPONENTS.items():
        directions = load(basis).first(components) if space == "public basis" else None
        for count in given.cells:
            whitening, cells = choose_space(known, directions, count, components)
            codes = site.encoded if directions is None else whitening(site.refined)
            codes = codes[:, :components]
            mechanism = NoisyAnchors(
                ANCHORS_NOISE, components, count, given.k, ANCHORS_THRESHOLD_DELTA
            )
            draws = []
            for seed in range(given.seeds):
                who, means = publish(codes, cells, mechanism, seed)
                figures = describe(codes, cells, mechanism, who, means)
                made = show(means, whitening, generator, seed)
                features = network.of_images(in_one_look(made, generator)) / FEATURE_UNIT
                found = distances.estimate_frechet(features, heldout, variances_alone=True)
                draws.append({**figures, "frechet": found.value})
                if seed == 0:
                    pictures.append(made)
            mean = {name: float(np.mean([one[name] for one in draws])) for name in draws[0]}
            rows.append({"space": space, "cells": count, **mean})
    return rows, pictures


def show(
    means: Sequence[NoisyMean], whitening: Whitening, generator: Generator, seed: int
) -> Images:
    """One image of each published cell."""
    random = torch.Generator().manual_seed(seed)
    (made,) = anchors.images(means, whitening, generator, 1, random)
    return made


def tables(rows: Sequence[dict[str, Any]]) -> list[report.Table]:
    """One table of all rows."""
    lines = []
    for row in rows:
        lines.append(
            (
                row["space"],
                str(row["cells"]),
                f"{row['published']:.1f}",
                f"{row['people']:.0f}",
                f"{row['largest']:.0f}",
                f"{row['clipped']:.2f}",
                f"{row['error']:.2f}",
                f"{row['frechet']:.1f}",
            )
        )
    return [report.Table("", COLUMNS, tuple(lines))]


def targets(rows: Sequence[dict[str, Any]], people: int) -> list[report.Target]:
    """Most cells of a public basis are published."""
    own = [row for row in rows if row["space"] == "public basis"]
    shown = ", ".join(f"{row['published']:.1f} of {row['cells']}" for row in own)
    met = bool(own) and all(row["published"] > row["cells"] / 2 for row in own)
    return [report.Target(f"of {people} people most cells are published", shown, met)]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with the .npz files")
    parser.add_argument("--people", type=int, default=700)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--cells", nargs="+", type=int, default=[12, 20])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--work", type=Path, default=Path("hospitals-work"))
    report.add_json(parser)
    parser.add_argument("--sheet", type=Path, help="PNG of the images of the first draw")
    given = parser.parse_args()
    torch.set_num_threads(1)
    study = load_study(ROOT / "deploy" / "studies" / "fundus.yaml")
    checkpoint = ROOT / "deploy" / "checkpoints" / "fundus-64"
    prepared = []
    for source in SOURCES:
        photographs = read_source(given.data, source, study.intake.size_px)
        part = make_part(source, photographs, checkpoint, None)
        prepared.append(PreparedPart(part, given.work / "all", study))
    rows, pictures = run(prepared, checkpoint / "codes.safetensors", given)
    if given.sheet:
        Image.fromarray(np.concatenate([line(images) for images in pictures])).save(given.sheet)
    report.give(
        given.json, "anchors_people", tables(rows), {"rows": rows}, targets(rows, given.people)
    )


def line(images: Images) -> Images:
    """At most `PICTURES` images side by side, black where there are fewer."""
    empty = np.zeros((PICTURES, *images.shape[1:]), np.uint8)
    count = min(PICTURES, len(images))
    empty[:count] = images[:count]
    return np.concatenate(list(empty), axis=1)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
