"""How good a fundus starting checkpoint is, beside real photographs that it never saw.

    python -m benchmarks.quality_generator --data FOLDER [--checkpoint DIR ...]
        [--pictures DIR] [--json [FILE]] [--quick]

Data: IDRiD, framed as at a hospital, by benchmarks/fundus_split.py. Members are inverted and
averaged in groups of 5, 10 and 20 (`similar`). All is compared with the held-out people; the public
ones are the floor.
Per checkpoint:
- kernel distance of samples, inversions, averages (with and without alignment), pixel averages
- fine structure: mean absolute difference from a 4 px local mean, as a share of the held-out ones'
- relative inversion error, share accepted, inversions per CPU-second
A generator draws whole discs in one look. So its samples and inversions are shown in the look and
the field of a photograph, as averages are in those of their members. Nothing is selected here.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from benchmarks import fundus_sources, fundus_split, report
from client.state.group_store import Group
from client.synthesize.align import (
    AlignmentPlan,
    align,
    gather_statistics,
    measure_patients,
    render,
)
from client.synthesize.appearance import Shown, gather_appearances
from client.synthesize.group import Roster, form_groups, patient_codes, roster
from client.synthesize.invert import Inversion, invert, reconstruct
from client.synthesize.looks import look_from, show_in
from client.synthesize.reference import InversionPlan, Reference, make_reference
from common.arrays import Images
from common.models.encoder import load_encoder
from common.models.images import to_uint8, to_unit
from common.models.look import field_of
from common.models.pretrained_features import load_features
from common.models.stylegan import load_critic, load_generator
from common.study.training import GanPlan
from common.wire.tensors import read
from server.evaluate import distances
from server.evaluate.extractors import FEATURE_UNIT
from server.public_data.cameras import cut

SHIPPED = fundus_split.ROOT / "deploy" / "checkpoints" / "fundus-64"
SIZE_PX = 64
WIDTH = 24
LATENT = 128
CAP_BYTES = 1 << 28
MERGED = np.array([0, 1, 1, 2, 2])  # deploy/studies/fundus.yaml: none, mild-moderate, severe
KEY = b"kohort-benchmark-quality-generator"
SIZES = (5, 10, 20)
STEPS = (0, 10, 20)


class Bench:
    """One checkpoint and what it makes of the same people."""

    def __init__(
        self, folder: Path, people: dict[str, fundus_split.People], alignment: AlignmentPlan
    ) -> None:
        size = GanPlan.model_construct(width=WIDTH, latent=LATENT)
        gan = read(folder / "gan.safetensors", max_bytes=CAP_BYTES)
        encoder = read(folder / "encoder.safetensors", max_bytes=CAP_BYTES)
        self.generator = load_generator(gan, size, SIZE_PX, 3)
        self.critic = load_critic(gan, size, SIZE_PX, 3)
        self.encoder = load_encoder(encoder, WIDTH, LATENT, SIZE_PX, 3)
        self.people = people
        self.alignment = alignment
        self.plan = InversionPlan()

    @cached_property
    def known(self) -> Reference:
        """What the generator says before an image is seen."""
        return make_reference(self.generator, self.encoder, self.plan, generator_of(0))

    @cached_property
    def members(self) -> Inversion:
        """The members' inversions."""
        return self.inverted(self.people["members"].images)

    @cached_property
    def heldout(self) -> Inversion:
        """The held-out people's inversions."""
        return self.inverted(self.people["heldout"].images)

    @cached_property
    def who(self) -> Roster:
        """The members by merged grade and side, without rejected ones."""
        people = self.people["members"]
        names = [f"{i:05d}" for i in range(len(people))]
        each = np.arange(len(people))
        sides = np.where(people.right, 2, 1)
        return roster(
            names,
            each,
            MERGED[people.grades],
            key=KEY,
            laterality_of=sides,
            usable=self.members.accepted,
        )

    def inverted(self, images: Images, **changed: int) -> Inversion:
        """The inversions of `images` under the plan with `changed` fields."""
        return invert(
            images, self.generator, self.encoder, replace(self.plan, **changed), self.known
        )

    def show(self, found: Inversion, photographs: Images) -> Images:
        """Every inverted image as the generator shows its code, in its photograph's field."""
        return self._as_photographed(reconstruct(found.codes, self.generator), found, photographs)

    def _as_photographed(self, made: Tensor, found: Inversion, photographs: Images) -> Images:
        """Generated images [N, C, S, S], each in the look and the field of a photograph."""
        shown = show_in(made, self.known.look_on(), look_from(found.looks))
        return to_uint8(cut(shown, field_of(to_unit(photographs))))

    def groups(self, k: int) -> tuple[Group, ...]:
        """Groups of `k` by mode `similar`."""
        codes = patient_codes(self.members.points, self.who)
        return form_groups(self.who, k, "similar", key=KEY, codes=codes).groups

    def averages(self, groups: tuple[Group, ...]) -> dict[str, Images]:
        """One image a group: by centroid, aligned, and the mean of the photographs' pixels."""
        photographs = self.people["members"].images
        common = self.known.look_on()
        patients = measure_patients(
            photographs, self.members, self.who, self.generator, self.critic, self.alignment, common
        )
        statistics = gather_statistics(groups, patients, self.generator, self.alignment)
        centroids = torch.stack([one.centroid for one in statistics])
        aligned = align(
            statistics, self.generator, self.critic, self.alignment, self.known.spread
        ).codes
        shown = Shown(common, gather_appearances(groups, self.who, photographs, self.members))
        pixels = [photographs[[int(m) for m in group.members]].mean(0).round() for group in groups]
        return {
            "centroid": render(centroids, self.generator, generator_of(1), shown),
            "aligned": render(aligned, self.generator, generator_of(1), shown),
            "pixel average": np.stack(pixels).astype(np.uint8),
        }

    def samples(self, count: int) -> Images:
        """Samples of the prior with noise maps, each in the look and field of a held-out person's
        photograph; `count` is at most their number.
        """
        draw = generator_of(2)
        seen = self.people["heldout"].images[:count]
        found = replace(self.heldout, looks=self.heldout.looks[:count])
        with torch.no_grad():
            made = [
                self.generator(torch.randn(10, LATENT, generator=draw), draw)
                for _ in range(-(-count // 10))
            ]
        return self._as_photographed(torch.cat(made)[:count], found, seen)


def generator_of(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fine_structure(images: Images) -> float:
    """Mean absolute difference from the local mean of 4 px, in grey levels."""
    x = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float()
    mean = F.interpolate(F.avg_pool2d(x, 4), scale_factor=4, mode="bilinear", align_corners=False)
    return float((x - mean).abs()[:, :, 16:48, 16:48].mean())


class Judge:
    """The held-out photographs, seen by the pretrained features."""

    def __init__(self, heldout: Images) -> None:
        self.network = load_features()
        self.real = self.network.of_images(heldout) / FEATURE_UNIT
        self.fine = fine_structure(heldout)

    def __call__(self, images: Images) -> dict[str, float]:
        """Kernel distance to the held-out with its interval, and share of their fine structure."""
        features = self.network.of_images(images) / FEATURE_UNIT
        distance = distances.estimate_kernel(features, self.real)
        return {
            "images": len(images),
            "kernel": round(distance.value, 4),
            "low": round(distance.interval[0], 4),
            "high": round(distance.interval[1], 4),
            "fine": round(fine_structure(images) / self.fine, 3),
        }


def measure_rows(bench: Bench, judge: Judge, sizes: tuple[int, ...]) -> dict[str, dict[str, float]]:
    """Row name → figures for one checkpoint."""
    people = bench.people
    heldout = bench.heldout
    rows = {
        "real (public), the floor": judge(people["public"].images),
        "samples": judge(bench.samples(len(people["heldout"]))),
        "inversions of held-out": judge(bench.show(heldout, people["heldout"].images)),
        "inversions of members": judge(bench.show(bench.members, people["members"].images)),
    }
    for k in sizes:
        for name, images in bench.averages(bench.groups(k)).items():
            rows[f"{name}, k = {k}"] = judge(images)
    return rows


def inversion_figures(bench: Bench) -> dict[str, float]:
    """Errors, what is accepted, and what is rejected that should be."""
    people = bench.people
    heldout = bench.heldout
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (8, SIZE_PX, SIZE_PX, 3)).astype(np.uint8)
    foreign = bench.inverted(np.concatenate([noise, 255 - people["heldout"].images[:8]]))
    turned = bench.inverted(np.ascontiguousarray(np.rot90(people["heldout"].images[:8], 1, (1, 2))))
    return {
        "threshold": round(bench.known.threshold, 4),
        "median error, held-out": round(float(np.median(heldout.errors)), 4),
        "95 % error, held-out": round(float(np.quantile(heldout.errors, 0.95)), 4),
        "accepted, held-out": round(float(heldout.accepted.mean()), 3),
        "accepted, members": round(float(bench.members.accepted.mean()), 3),
        "accepted, noise and negatives": round(float(foreign.accepted.mean()), 3),
        "accepted, turned by 90 degrees": round(float(turned.accepted.mean()), 3),
    }


def speeds(bench: Bench, count: int = 8, repeats: int = 2) -> dict[str, dict[str, float]]:
    """Refinement steps → median error and inversions per CPU-second (the best of alternating
    repeats).
    """
    images = bench.people["heldout"].images[:count]
    seconds: dict[int, list[float]] = {steps: [] for steps in STEPS}
    error = {}
    for _ in range(repeats):
        for steps in STEPS:
            began = time.process_time()
            error[steps] = float(np.median(bench.inverted(images, steps=steps).errors))
            seconds[steps].append(time.process_time() - began)
    found = {}
    for steps in STEPS:
        rate = round(count / min(seconds[steps]), 2)
        found[str(steps)] = {"median error": round(error[steps], 4), "per CPU-second": rate}
    return found


def pictures(bench: Bench, folder: Path, columns: int = 8) -> None:
    """The two contact sheets, JPEG: stages of groups of 5, and averages of 5, 10 and 20."""
    folder.mkdir(parents=True, exist_ok=True)
    photographs = bench.people["members"].images
    found = bench.members
    groups = bench.groups(5)
    groups = tuple(groups[i] for i in np.linspace(0, len(groups) - 1, columns).astype(int))
    first = [int(group.members[0]) for group in groups]
    made = bench.averages(groups)
    rows = [photographs[first], bench.show(found, photographs)[first], *made.values()]
    save(rows, folder / "fundus_stages.jpg")
    rows = []
    for k in SIZES:
        groups = bench.groups(k)
        if not groups:  # a quick run
            continue
        some = tuple(groups[i] for i in np.linspace(0, len(groups) - 1, columns).astype(int))
        made = bench.averages(some)
        rows += [made["aligned"], made["pixel average"]]
    save(
        [*rows, bench.samples(columns), bench.people["heldout"].images[:columns]],
        folder / "fundus_averages.jpg",
    )


def save(rows: list[Images], path: Path) -> None:
    """Rows of equally many images, enlarged twice, as one picture."""
    sheet = np.concatenate([np.concatenate(list(row), 1) for row in rows])
    Image.fromarray(sheet.repeat(2, 0).repeat(2, 1)).save(path, quality=88)


FORMS = {
    "rows": (
        "kernel distance, 95 % interval (fine structure)",
        "{kernel:.3f}, {low:.3f} to {high:.3f} ({fine:.2f})",
    ),
    "inversion": ("inversion", "{}"),
    "speed": (
        "refinement steps: median error, images per CPU-second",
        "{median error:.4f}, {per CPU-second:.1f}",
    ),
}


def tables(result: dict[str, Any]) -> list[report.Table]:
    """A table for each part that was measured, a column for each checkpoint."""
    found = []
    first = next(iter(result.values()))
    for part, (title, form) in FORMS.items():
        if part in first:
            rows = tuple((row, *cells(result, part, row, form)) for row in first[part])
            found.append(report.Table("", (title, *result), rows))
    return found


def cells(result: dict[str, Any], part: str, row: str, form: str) -> list[str]:
    """A row's cell of each checkpoint."""
    shown = []
    for one in result.values():
        cell = one[part][row]
        shown.append(form.format(**cell) if isinstance(cell, dict) else form.format(cell))
    return shown


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with idrid_128.npz")
    parser.add_argument("--checkpoint", type=Path, nargs="+", default=[SHIPPED])
    parser.add_argument("--pictures", type=Path, help="folder for the first checkpoint's sheets")
    report.add_json(parser)
    parser.add_argument(
        "--quick", action="store_true", help="a few people and steps, to see whether it runs"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    people = fundus_sources.idrid_people(given.data, SIZE_PX)
    if given.quick:
        people = {role: part[np.arange(40)] for role, part in people.items()}
    judge = Judge(people["heldout"].images)
    result: dict[str, Any] = {}
    for folder in given.checkpoint:
        bench = Bench(
            folder, people, AlignmentPlan(steps=2 if given.quick else AlignmentPlan.steps)
        )
        sizes = SIZES[:1] if given.quick else SIZES
        if given.pictures and folder == given.checkpoint[0]:
            pictures(bench, given.pictures)
        result[folder.name] = {
            "rows": measure_rows(bench, judge, sizes),
            "inversion": inversion_figures(bench),
            "speed": speeds(bench),
        }
    report.give(given.json, "quality_generator", tables(result), result)


if __name__ == "__main__":
    main()
