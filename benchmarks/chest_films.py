"""What averages of films are worth that a chest checkpoint has never seen.

    python -m benchmarks.chest_films --data FOLDER [--flow NAME=FOLDER] [--seeds 5] [--part judge]
        [--json [FILE]]

In: the .npz files of chest_sources, chest_tb_128 and chest_cxnet_128, which no checkpoint knows.
choose  the directions and the prior's temperature, judged on people whose sources are public:
        children of PneumoniaMNIST, and NIH patients that the training left out
judge   every checkpoint on films that no choice saw: a tuberculosis clinic and a collection of many
        detectors
unseen  the tuberculosis clinic alone, with the directions as they ship
Measured: bits per dimension; the share of films whose latent the clip shortens; the AUC of a
classifier trained on the release and tested on real films of the same source. Noise is seeded: the
films are public.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks import report
from benchmarks.chest_releases import DELTA, People, noised_means, random_groups
from benchmarks.chest_sources import ADULT, arrays, gather, shrink
from benchmarks.chest_split import role_of
from benchmarks.quality_chest import RECIPE, score
from client.synthesize import privatize as steps
from common.arrays import Floats, Images, Labels
from common.measure import classifier
from common.measure.scores import area_under_curve
from common.models import basis, latents
from common.models.glow import Glow
from common.models.glow_checkpoint import load
from common.models.glow_pixels import from_uint8
from common.privacy.latent_mechanisms import Latent, LatentGaussian, LatentLaplace
from server.demo.hospitals import DEPLOY, as_ingested
from server.pretrain.picture_directions import fit_to_pictures
from server.public_data.film import Changes, film_boxes, film_views

# levels, steps a level, width, doublings
LAYOUTS = {32: (3, 6, 32, 0), 64: (3, 6, 32, 1)}
CHECKPOINTS = DEPLOY / "checkpoints"
K = 10
FAR = 40.0  # a box that no film reaches
EPSILON = 8.0
TEMPERATURE = 0.7  # of directions whose spreads nobody scaled
COMPONENTS = (16, 32)  # and the temperatures of what is not released: candidates
PRIORS = (0.7, 0.3)
LARGEST_PX = 64  # of what the classifier sees
FRAMES = Changes(plain=0, turn=0, gamma=0, contrast=0, brightness=0, softened=0)
PLAIN_SHARE = 0.95  # of the pixel averages' AUC, for averages without noise
NOISED_SHARE = 0.9


@dataclass(frozen=True)
class Knowing:
    """A checkpoint, its public directions and the temperature of what is not released."""

    name: str
    flow: Glow
    basis: basis.Basis
    prior: float
    temperature: float = TEMPERATURE

    @property
    def size_px(self) -> int:
        """The side of its images."""
        return self.flow.size_px


@dataclass(frozen=True)
class Task:
    """Films of one source with a label 0 or 1: rows of the patients and of the test."""

    name: str
    images: Images
    labels: Labels
    patients: Labels
    test: Labels


# ---- films ---------------------------------------------------------------------------------------
def pneumonia(data: Path, size_px: int, test: str) -> Task:
    """A third of PneumoniaMNIST's training split plays the patients; a split is the test."""
    found = arrays(data / "pneumoniamnist_28.npz")
    kept = np.arange(len(found["train_images"])) % 3 == 0
    known = {image.tobytes() for image in found["train_images"]}
    fresh = np.array([image.tobytes() not in known for image in found[f"{test}_images"]])
    crops = np.concatenate([found["train_images"][kept], found[f"{test}_images"][fresh]])
    labels = np.concatenate([found["train_labels"][kept], found[f"{test}_labels"][fresh]])
    images = np.stack([as_ingested(crop, size_px) for crop in crops])
    people = np.arange(len(images))
    return Task(
        "children, pneumonia",
        images,
        labels.ravel().astype(np.int64),
        people[: kept.sum()],
        people[kept.sum() :],
    )


def left_out(data: Path, size_px: int, label: str) -> Task:
    """NIH adults that no training saw: two thirds of the patients give, the others test.

    `label`: view (AP against PA), sex (F against M) or finding.
    """
    found = arrays(data / "cxr_nih_covid_64.npz")
    ours = found["labels"] < 2
    roles = role_of(found["patient"][ours])
    out = np.array([roles.get(str(p), "public") != "public" for p in found["patient"]])
    keep = ours & out & (found["age"] >= ADULT)
    labels = {
        "view": found["view"] == "AP",
        "sex": found["sex"] == "F",
        "finding": found["labels"] == 1,
    }
    images = shrink(found["images"][keep], size_px)
    patients = found["patient"][keep]
    names = np.random.default_rng(0).permutation(np.unique(patients))
    giving = np.isin(patients, names[: 2 * len(names) // 3])
    rows = np.arange(len(images))
    # one film of a patient, as a release takes one latent of each
    _, first = np.unique(patients, return_index=True)
    given = rows[giving & np.isin(rows, first)]
    task = f"NIH adults left out, {label}"
    return Task(task, images, labels[label][keep].astype(np.int64), given, rows[~giving])


def tuberculosis(data: Path, size_px: int) -> Task:
    """A source that no checkpoint knows: two thirds give, a third tests."""
    found = arrays(data / "chest_tb_128.npz")
    rows = np.random.default_rng(0).permutation(len(found["images"]))
    cut = 2 * len(rows) // 3
    images = shrink(found["images"], size_px)
    labels = found["labels"].astype(np.int64)
    return Task("unseen clinic, tuberculosis", images, labels, rows[:cut], rows[cut:])


def collections(data: Path, size_px: int) -> Iterator[tuple[str, Images]]:
    """Films of each source by name, most of which no checkpoint knows."""
    children = pneumonia(data, size_px, "test")
    films = children.images[children.test]
    yield "children", films
    frames = np.random.default_rng(0)
    framed = film_views(torch.from_numpy(films), film_boxes(films), frames, FRAMES)
    yield "children in other frames", framed.numpy()
    yield "NIH adults left out", left_out(data, size_px, "view").images
    yield "unseen: tuberculosis clinic", tuberculosis(data, size_px).images
    others = arrays(data / "chest_cxnet_128.npz")["images"]
    yield "unseen: many detectors", shrink(others, size_px)


# ---- what a checkpoint makes of them -------------------------------------------------------------
@torch.no_grad()
def bits(flow: Glow, images: Images) -> float:
    """Median bits per dimension."""
    found = []
    for start in range(0, len(images), 64):
        log_p = flow.encode(from_uint8(images[start : start + 64]))[1]
        found.append(flow.bits_per_dimension(log_p))
    return float(torch.cat(found).median())


def clipped_share(knowing: Knowing, images: Images) -> float:
    """Share of films whose reduced latent is longer than the clip's radius, sqrt(d)."""
    codes = latents.encode_images(images, knowing.flow)
    reduced = knowing.basis.reduce(codes[:, -knowing.basis.coordinates :])
    return float((np.linalg.norm(reduced, axis=1) > knowing.basis.components**0.5).mean())


def pixel_averages(task: Task, seed: int) -> tuple[Images, Labels]:
    """Averages of K films in pixel space."""
    groups, labels = grouped(task, seed)
    films = task.images[task.patients]
    means = np.stack([films[members].mean(0) for members in groups])
    return np.asarray(means.round(), np.uint8), labels


def grouped(task: Task, seed: int) -> tuple[list[Labels], Labels]:
    """Random groups of one label, rows of the patients, and each group's label."""
    labels = task.labels[task.patients]
    people = People(task.images[task.patients], labels, np.arange(len(labels)))
    groups = random_groups(people, K, np.random.default_rng([seed, 7]))
    return groups, np.array([labels[members[0]] for members in groups])


def release(
    knowing: Knowing, task: Task, codes: Floats, epsilon: float | None, seed: int
) -> tuple[Images, Labels]:
    """Averages by the product's steps; None draws no noise and hardly ever clips."""
    groups, labels = grouped(task, seed)
    d = knowing.basis.components
    mechanism: Latent = LatentLaplace("box", FAR, d, K, "random", 1.0)
    if epsilon is not None:
        mechanism = LatentGaussian(d, K, "random", epsilon, DELTA)
    reduced = knowing.basis.reduce(codes[:, -knowing.basis.coordinates :])
    clipped = steps.clip(reduced, mechanism)
    means = noised_means(clipped, groups, mechanism, epsilon is not None, seed)
    random = torch.Generator().manual_seed(seed)
    warm = (knowing.temperature, knowing.prior)
    return steps.decode_means(means, knowing.flow, warm, random, knowing.basis), labels


def seen(images: Images) -> Images:
    """What the classifier sees: at most LARGEST_PX, by means of blocks."""
    if images.shape[1] <= LARGEST_PX:
        return images
    shape = (LARGEST_PX, LARGEST_PX)
    small = [Image.fromarray(x[..., 0]).resize(shape, Image.Resampling.BOX) for x in images]
    return np.stack([np.asarray(x) for x in small])[..., None]


def worth(task: Task, images: Images, labels: Labels, seed: int) -> float:
    """AUC on the task's real test films of a classifier trained on `images`."""
    network = classifier.fit(seen(images), labels, 2, seed=seed, recipe=RECIPE)
    return area_under_curve(score(network, seen(task.images[task.test])), task.labels[task.test])


def measure_films(task: Task, seeds: int) -> dict[str, list[float]]:
    """The AUC of the real films and of their pixel averages, for each seed."""
    found: dict[str, list[float]] = {"real": [], "pixels": []}
    given = task.images[task.patients], task.labels[task.patients]
    for seed in range(seeds):
        found["real"].append(worth(task, *given, seed))
        found["pixels"].append(worth(task, *pixel_averages(task, seed), seed))
    return found


def measure_releases(
    knowing: Knowing, task: Task, codes: Floats, seeds: int
) -> dict[str, list[float]]:
    """The AUC of averages of the patients' codes without noise and with it, for each seed."""
    found: dict[str, list[float]] = {"plain": [], "private": []}
    for seed in range(seeds):
        found["plain"].append(worth(task, *release(knowing, task, codes, None, seed), seed))
        found["private"].append(worth(task, *release(knowing, task, codes, EPSILON, seed), seed))
    return found


# ---- the runs ------------------------------------------------------------------------------------
def flow_of(folder: Path) -> Glow:
    """The flow of a checkpoint's folder, whose name ends in its size."""
    size_px = int(folder.name.rpartition("-")[2])
    flow = Glow(size_px, 1, *LAYOUTS[size_px])
    load(flow, folder / "glow.safetensors")
    return flow.eval()


def shipped(name: str, folder: Path, prior: float, components: int, temperature: float) -> Knowing:
    """A checkpoint with its own directions."""
    directions = basis.load(folder / "basis.safetensors").first(components)
    return Knowing(name, flow_of(folder), directions, prior, temperature)


def candidates(name: str, folder: Path, data: Path) -> Iterator[Knowing]:
    """Directions by the latents' variance and by the pictures, with two temperatures each."""
    flow = flow_of(folder)
    images, weights, _ = gather(data, flow.size_px)
    codes = latents.encode_images(images, flow)
    variance = basis.fit(codes, max(COMPONENTS))
    pictures = fit_to_pictures(codes, images, max(COMPONENTS), weights)
    for d in COMPONENTS:
        for prior in PRIORS:
            for way, directions in (("variance", variance), ("pictures", pictures)):
                text = f"{name}: {d} by {way}, prior {prior}"
                yield Knowing(text, flow, directions.first(d), prior)


def shares(aucs: dict[str, list[float]]) -> tuple[float, float]:
    """What is left of the pixel averages' AUC without noise, and with it."""
    pixels = float(np.mean(aucs["pixels"]))
    return float(np.mean(aucs["plain"])) / pixels, float(np.mean(aucs["private"])) / pixels


def row_of(name: str, task: str, aucs: dict[str, list[float]]) -> tuple[str, ...]:
    """The cells of a measured task."""
    means = [f"{np.mean(values):.3f}" for values in aucs.values()]
    return (name, task, *means, *(f"{share:.2f}" for share in shares(aucs)))


HEADS = (
    "checkpoint",
    "films and label",
    "real",
    "pixel averages",
    "averages",
    f"averages, ε = {EPSILON:g}",
    "share without noise",
    f"share at ε = {EPSILON:g}",
)


def tasks_of(part: str, data: Path, size_px: int) -> list[Task]:
    """The tasks of a part."""
    if part == "unseen":
        return [tuberculosis(data, size_px)]
    if part == "judge":
        return [tuberculosis(data, size_px), pneumonia(data, size_px, "test")]
    tasks = [left_out(data, size_px, label) for label in ("view", "sex")]
    return [pneumonia(data, size_px, "val"), *tasks]


def main() -> None:
    """Measure the checkpoints and print tables, or one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with the .npz files")
    parser.add_argument("--part", choices=("choose", "judge", "unseen"), default="judge")
    parser.add_argument("--flow", action="append", default=[], help="NAME=FOLDER")
    parser.add_argument("--prior", type=float, default=0.7)
    parser.add_argument("--components", type=int, default=16)
    parser.add_argument("--temperature", type=float, default=TEMPERATURE)
    parser.add_argument("--seeds", type=int, default=5)
    report.add_json(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    given = dict(flow.split("=", 1) for flow in options.flow)
    folders = {name: Path(folder) for name, folder in given.items()}
    if not folders:
        folders = {folder.name: folder for folder in sorted(CHECKPOINTS.glob("chest-*"))}

    # the checkpoints, or the candidates of each
    every: list[Knowing] = []
    for name, folder in folders.items():
        if options.part == "choose":
            every += candidates(name, folder, options.data)
        else:
            warm = options.prior, options.components, options.temperature
            every.append(shipped(name, folder, *warm))

    # how well each knows the films
    known = []
    figures: list[dict[str, object]] = []
    for knowing in every if options.part == "judge" else ():
        for source, images in collections(options.data, knowing.size_px):
            found = bits(knowing.flow, images), clipped_share(knowing, images)
            known.append((knowing.name, source, f"{found[0]:.2f}", f"{found[1]:.0%}"))
            figures.append({"name": knowing.name, "source": source, "bits": found[0]})
            figures[-1]["clipped"] = found[1]

    # what its releases are worth
    rows = []
    targets = []
    for flow in folders:
        ours = [knowing for knowing in every if knowing.name.partition(":")[0] == flow]
        for task in tasks_of(options.part, options.data, ours[0].size_px):
            films = measure_films(task, options.seeds)
            codes = latents.encode_images(task.images[task.patients], ours[0].flow)
            for knowing in ours:
                aucs = films | measure_releases(knowing, task, codes, options.seeds)
                rows.append(row_of(knowing.name, task.name, aucs))
                print(" | ".join(rows[-1]), file=sys.stderr, flush=True)
                figures.append({"name": knowing.name, "task": task.name, **aucs})
                if task.name.startswith("unseen"):
                    targets += targets_of(knowing.name, aucs)
    tables = [report.Table("AUC, k = 10", HEADS, tuple(rows))]
    if known:
        heads = ("checkpoint", "films", "bits per dimension (median)", "clipped")
        tables.insert(0, report.Table("How well a checkpoint knows films", heads, tuple(known)))
    report.give(options.json, f"chest_films.{options.part}", tables, {"rows": figures}, targets)


def targets_of(name: str, aucs: dict[str, list[float]]) -> list[report.Target]:
    """What averages must keep of the pixel averages' AUC on films that nobody knew."""
    plain, private = shares(aucs)
    return [
        report.Target(
            f"{name}, without noise: at least {PLAIN_SHARE} of the pixel averages' AUC",
            f"{plain:.2f}",
            plain >= PLAIN_SHARE,
        ),
        report.Target(
            f"{name}, ε = {EPSILON:g}: at least {NOISED_SHARE} of the pixel averages' AUC",
            f"{private:.2f}",
            private >= NOISED_SHARE,
        ),
    ]


if __name__ == "__main__":
    main()
