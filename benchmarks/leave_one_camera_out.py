"""A small checkpoint of every camera but one, judged on the one that it never saw.

    python -m benchmarks.leave_one_camera_out --data FOLDER [--source NAME ...] [--steps 3000]
        [--size 32] [--work DIR] [--json [FILE]] [--sheet FILE.png]

Of each source two thirds of the people may train and one third is tested (IDRiD: the roles of
benchmarks/fundus_split.py). For each source a generator and its encoder are trained by the recipe
of `pretrain --cameras` on all other sources; one more is trained on all six. Both invert the tested
photographs of the source, by the rules of a site. The difference is what it costs not to know a
camera. Nothing is chosen here, and nothing of it ships: four of the sources may not.
Every checkpoint is a folder in --work, so an interrupted run continues.
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

from benchmarks import fundus_sources, report
from benchmarks.fundus_sources import Photographs
from benchmarks.quality_fundus import say
from benchmarks.quality_generator import CAP_BYTES, generator_of
from client.synthesize.invert import Inversion, invert, reconstruct
from client.synthesize.looks import look_from, show_in
from client.synthesize.reference import InversionPlan, Reference, make_reference
from common.models.encoder import Encoder, load_encoder
from common.models.images import to_uint8
from common.models.stylegan import Generator, load_generator
from common.study.training import GanPlan
from common.wire.tensors import read
from server.pretrain.gan import pretrain
from server.pretrain.gan_plan import PretrainPlan
from server.pretrain.session import Session
from server.public_data.images import Source
from server.public_data.sources import join_sources

SOURCES = ("idrid", "csdi", *fundus_sources.MEASURED)
NOBODY = "none"  # is left out
TESTED = 1 / 3  # of the people
LEAST_OF_A_LABEL = 8
WIDTH = 24
LATENT = 64
PICTURES = 10
COLUMNS = (
    "tested source",
    "photographs",
    "accepted, never seen",
    "by label",
    "accepted, known",
    "relative error (90 %), never seen",
    "known",
)


@dataclass(frozen=True)
class Camera:
    """The photographs of one source, of other people in each part."""

    trains: Photographs
    tests: Photographs


def read_camera(data: Path, name: str, size_px: int) -> Camera:
    """A source at twice the size where it trains, as pretraining reads it."""
    if name == "idrid":
        return Camera(
            fundus_sources.read_idrid(data, "public", 2 * size_px),
            fundus_sources.read_idrid(data, "heldout", size_px),
        )
    tested = tested_people(fundus_sources.read_other(data, name, size_px))
    return Camera(
        rows_of(fundus_sources.read_other(data, name, 2 * size_px), tested, False),
        rows_of(fundus_sources.read_other(data, name, size_px), tested, True),
    )


def tested_people(found: Photographs) -> frozenset[str]:
    """A third of the people, by a fixed shuffle of their names."""
    people = np.unique(found.patients)
    order = np.random.default_rng(2026).permutation(len(people))
    return frozenset(people[order[: round(TESTED * len(people))]].tolist())


def rows_of(found: Photographs, people: frozenset[str], of_them: bool) -> Photographs:
    """The photographs of those people, or of all others; sides are left out, for two sources
    do not know them.
    """
    keep = np.isin(found.patients, list(people)) == of_them
    return Photographs(
        found.images[keep], found.names[keep], found.patients[keep], found.labels[keep], None
    )


def public_source(name: str, found: Photographs) -> Source:
    """The photographs as pretraining takes them; the digest is a name, for nothing is published."""
    return Source(
        found.images,
        tuple(found.names.tolist()),
        None,
        name,
        None,
        tuple(found.patients.tolist()),
    )


# --- a checkpoint ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Networks:
    """A trained pair and what its own samples say."""

    generator: Generator
    encoder: Encoder
    plan: InversionPlan
    known: Reference


def train(cameras: dict[str, Camera], left_out: str, folder: Path, size: int, steps: int) -> None:
    """Write the checkpoint of all sources but one into `folder`, unless it is there."""
    if (folder / "done").exists():
        return
    given = [public_source(n, camera.trains) for n, camera in cameras.items() if n != left_out]
    plan = PretrainPlan(size_px=size, width=WIDTH, latent=LATENT, encoder_width=WIDTH, cameras=True)

    def show(step: int, share: float) -> None:
        if step % 250 == 0:
            say(f"without {left_out}: step {step} of {steps}")

    session = Session(steps=steps, resume=True, progress=show)
    pretrain(join_sources(given), plan, folder, session)
    (folder / "done").touch()


def load(folder: Path, size: int) -> Networks:
    """The checkpoint of a folder, with the plan of a site."""
    gan = read(folder / "gan.safetensors", max_bytes=CAP_BYTES)
    weights = read(folder / "encoder.safetensors", max_bytes=CAP_BYTES)
    sizes = GanPlan.model_construct(width=WIDTH, latent=LATENT)
    generator = load_generator(gan, sizes, size, 3).eval()
    encoder = load_encoder(weights, WIDTH, LATENT, size, 3).eval()
    plan = InversionPlan()
    return Networks(
        generator, encoder, plan, make_reference(generator, encoder, plan, generator_of(0))
    )


def inverted(found: Photographs, networks: Networks) -> Inversion:
    """The photographs inverted as at a site."""
    return invert(found.images, networks.generator, networks.encoder, networks.plan, networks.known)


# --- figures --------------------------------------------------------------------------------------


def measure(found: Photographs, inversion: Inversion) -> dict[str, Any]:
    """Acceptance, by label where a label has some photographs, and relative errors.

    A photograph without a field of view counts as one that is not accepted.
    """
    by_label = {}
    for label in np.unique(found.labels).tolist():
        rows = found.labels == label
        if rows.sum() >= LEAST_OF_A_LABEL:
            by_label[label] = float(inversion.accepted[rows].mean())
    return {
        "photographs": len(found) + found.without_field,
        "accepted": float(inversion.accepted.sum() / (len(found) + found.without_field)),
        "by_label": by_label,
        "error": float(np.median(inversion.errors)),
        "error_90": float(np.quantile(inversion.errors, 0.9)),
    }


def table(figures: dict[str, dict[str, dict[str, Any]]]) -> report.Table:
    """One line a source."""
    lines = []
    for name, one in figures.items():
        unseen, known = one["unseen"], one["known"]
        by_label = ", ".join(f"{label} {share:.2f}" for label, share in unseen["by_label"].items())
        lines.append(
            (
                name,
                str(unseen["photographs"]),
                f"{unseen['accepted']:.3f}",
                by_label,
                f"{known['accepted']:.3f}",
                f"{unseen['error']:.2f} ({unseen['error_90']:.2f})",
                f"{known['error']:.2f} ({known['error_90']:.2f})",
            )
        )
    return report.Table("The source that was left out", COLUMNS, tuple(lines))


def targets(figures: dict[str, dict[str, dict[str, Any]]]) -> list[report.Target]:
    """What is asked of a camera that no training knew."""
    accepted = {name: one["unseen"]["accepted"] for name, one in figures.items()}
    apart = {
        name: max(shares) - min(shares)
        for name, one in figures.items()
        if len(shares := list(one["unseen"]["by_label"].values())) > 1
    }
    shown = [", ".join(f"{n} {value:.2f}" for n, value in one.items()) for one in (accepted, apart)]
    return [
        report.Target(
            "accepted: at least 0.95 of the photographs",
            shown[0],
            all(share >= 0.95 for share in accepted.values()),
        ),
        report.Target(
            "accepted: labels differ by at most 0.05",
            shown[1],
            all(share <= 0.05 for share in apart.values()),
        ),
    ]


def draw(found: Photographs, networks: Networks, inversion: Inversion) -> np.ndarray:
    """A line of photographs above a line of their inversions, in the photographs' looks."""
    made = show_in(
        reconstruct(inversion.codes[:PICTURES], networks.generator),
        networks.known.look_on(),
        look_from(inversion.looks[:PICTURES]),
    )
    return np.concatenate(
        [np.concatenate(list(line), 1) for line in (found.images[:PICTURES], to_uint8(made))]
    )


def run(
    data: Path, names: Sequence[str], work: Path, size: int, steps: int
) -> tuple[dict[str, Any], list[np.ndarray]]:
    """All figures, and for each source two lines of pictures."""
    cameras = {name: read_camera(data, name, size) for name in SOURCES}
    folders = {name: work / f"{size}px-{steps}-without-{name}" for name in (*names, NOBODY)}
    for name, folder in folders.items():
        train(cameras, name, folder, size, steps)
    everyone = load(folders[NOBODY], size)
    figures = {}
    lines = []
    for name in names:
        tests = cameras[name].tests
        stranger = load(folders[name], size)
        unseen = inverted(tests, stranger)
        figures[name] = {
            "unseen": measure(tests, unseen),
            "known": measure(tests, inverted(tests, everyone)),
        }
        lines.append(draw(tests, stranger, unseen))
        say(f"{name}: {figures[name]}")
    return figures, lines


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with the .npz files")
    parser.add_argument("--source", nargs="+", choices=SOURCES, default=list(SOURCES))
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--size", type=int, choices=(32, 64), default=32)
    parser.add_argument("--work", type=Path, default=Path("cameras-work"))
    report.add_json(parser)
    parser.add_argument("--sheet", type=Path, help="PNG of photographs and inversions")
    given = parser.parse_args()
    torch.set_num_threads(1)
    figures, lines = run(given.data, given.source, given.work, given.size, given.steps)
    if given.sheet:
        width = max(line.shape[1] for line in lines)
        wide = [np.pad(line, ((0, 0), (0, width - line.shape[1]), (0, 0))) for line in lines]
        Image.fromarray(np.concatenate(wide)).save(given.sheet)
    report.give(given.json, "leave_one_camera_out", [table(figures)], figures, targets(figures))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
