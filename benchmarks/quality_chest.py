"""What privatized chest radiographs are worth, and what they give away: a classifier's AUC over epsilon, k and mechanism.

    python -m benchmarks.quality_chest [--part choose|pneumonia|nih] [--seeds 3] [--json] [--work DIR] [--data DIR] [--flow FILE]

`pneumonia`: PneumoniaMNIST at 32 px. Two thirds of its training split are public (the shipped flow and the PCA come from them),
one third plays the patients (no patient ids: one image, one patient), the official test split is the test, read once a row.
`choose`: coordinates and level of the release, judged on the validation split. `nih`: ChestX-ray14 with real patient ids, 64 px
reduced to 32 px, roles by patient (benchmarks/chest_split.py), the same flow with a PCA of the public patients.

A row is a release made by the product's own steps (client/synthesize/privatize.py) from `random` groups, then: AUC of a small
classifier trained on the release and tested on real images; `kept`: how often a classifier trained on public real images says of
a release what it says of most of its members; linkage: whether the patient whose latent is nearest to the release's is a member
of its group (top 1, top 10, and what chance gives); bits per dimension; pixels at 0 or 255. With `nih` also re-identification by
a network retrained on releases of public patients (server/evaluate/siamese.py), asked with another image of the person.
Every row is a file in --work, so an interrupted run continues. Noise is seeded: the images are public.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import chest_pictures
from benchmarks.chest_split import radiographs
from client.synthesize import privatize as steps
from common.arrays import Floats, Images, Labels
from common.measure import attacks, classifier
from common.models import latents
from common.models.glow import Glow
from common.models.glow_checkpoint import load
from common.models.glow_pixels import from_uint8
from common.privacy.latent_mechanisms import Latent, LatentGaussian, LatentLaplace, PrivUnit
from common.privacy.noise import SeededNoiseSource
from server.demo.hospitals import DEPLOY, as_ingested
from server.evaluate import siamese

SIZE_PX, TEMPERATURE, DELTA = 32, 0.7, 1e-5
COORDINATES, LEVEL = 16, "all"  # chosen on the validation split: --part choose
FLOW = DEPLOY / "checkpoints" / "chest-32" / "glow.safetensors"
PICTURES = Path(__file__).parent / "pictures"
RECIPE = classifier.Recipe(shift_px=2, flip=False)
SINGLES = 400  # releases of single images that a row makes at most


@dataclass(frozen=True)
class People:
    """uint8 images [N, 32, 32, 1], label 0 or 1 [N], patient index [N]."""

    images: Images
    labels: Labels
    patient_of: Labels


@dataclass(frozen=True)
class Row:
    """One release.

    `epsilon`: per patient, except `laplace box`: per coordinate; None: no privacy.
    """

    kind: str
    k: int = 1
    epsilon: float | None = None
    coordinates: int = COORDINATES
    level: str = LEVEL

    @property
    def name(self) -> str:
        """What the table says; also the file in --work."""
        text = self.kind + (f" k={self.k}" if self.k > 1 else "")
        text += f" eps={self.epsilon:g}" if self.epsilon is not None else ""
        return text + (
            ""
            if (self.coordinates, self.level) == (COORDINATES, LEVEL)
            else f" d={self.coordinates} {self.level}"
        )


def rows_of(part: str) -> list[Row]:
    """The rows of a part."""
    if part == "choose":
        sizes = [(d, level) for level in ("all", "top") for d in (8, 16, 32)]
        return [Row("gaussian", 10, 7.5, d, level) for d, level in sizes]
    base = [Row("real"), Row("mean image"), Row("pixel average", 10), Row("average", 10)]
    if part == "nih":
        private = [
            Row("gaussian", 10, 8.0),
            Row("privunit", 1, 8.0),
            Row("laplace box", 1, 12.0),
            Row("laplace box", 1, 3.0),
        ]
        return [Row("real"), Row("average", 10), *private]
    private = [Row("gaussian", 10, e) for e in (8.0, 4.0, 2.0, 1.0, 16.0)] + [
        Row("gaussian", 20, e) for e in (8.0, 2.0)
    ]
    private += [
        Row("laplace l1", 10, 8.0),
        Row("privunit", 1, 8.0),
        Row("laplace box", 1, 12.0),
        Row("laplace box", 1, 3.0),
    ]
    private += [
        Row("dp-pix", 10, 8.0),
        Row("pixel laplace", 10, 8.0),
        Row("laplace l1", 10, 2.0),
        Row("laplace l1", 10, 16.0),
    ]
    private += [
        Row("privunit", 1, 4.0),
        Row("privunit", 1, 2.0),
        Row("laplace box", 10, 3.0),
        Row("laplace box", 10, 1.0),
    ]
    private += [Row("gaussian", 5, e) for e in (1.0, 2.0, 4.0, 8.0, 16.0)]
    return [*base, Row("average", 5), Row("average", 20), Row("average, all latents", 10), *private]


# ---- data ----------------------------------------------------------------------------------------
def pneumonia(data: Path, test: str) -> tuple[People, People, People]:
    """Public, patients, test of PneumoniaMNIST; nobody's image is byte for byte among another
    role's.
    """
    with np.load(data / "pneumoniamnist_28.npz", allow_pickle=False) as file:
        arrays = {
            name: file[name]
            for name in ("train_images", "train_labels", f"{test}_images", f"{test}_labels")
        }
    public = np.arange(len(arrays["train_images"])) % 3 != 0
    known: set[bytes] = set()

    def people(images: Images, labels: Labels) -> People:
        fresh = [i for i, image in enumerate(images) if image.tobytes() not in known]
        known.update(image.tobytes() for image in images)
        shown = np.stack([as_ingested(images[i], SIZE_PX) for i in fresh])
        return People(shown, labels.ravel()[fresh].astype(np.int64), np.arange(len(fresh)))

    train, labels = arrays["train_images"], arrays["train_labels"]
    first = people(train[public], labels[public])
    patients = people(train[~public], labels[~public])
    return first, patients, people(arrays[f"{test}_images"], arrays[f"{test}_labels"])


def nih(data: Path) -> tuple[People, People, People]:
    """Public, patients, test of ChestX-ray14 by patient; 64 px to 32 px by 2 x 2 means."""

    def people(role: str) -> People:
        found = radiographs(data / "cxr_nih_covid_64.npz", role)
        n = len(found.images)
        small = (
            found.images.reshape(n, SIZE_PX, 2, SIZE_PX, 2, 1).mean((2, 4)).round().astype(np.uint8)
        )
        return People(small, found.labels, found.patient_of)

    return people("public"), people("members"), people("heldout")


def one_each(people: People) -> People:
    """Each patient's first image, with the patient's highest label: what a stratum would hold."""
    names, first = np.unique(people.patient_of, return_index=True)
    labels = np.array([people.labels[people.patient_of == name].max() for name in names])
    return People(people.images[first], labels, names)


# ---- releases ------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Release:
    """uint8 images [G, 32, 32, 1], label [G], rows of the members in the cohort, and what a
    statement would say.
    """

    images: Images
    labels: Labels
    members: list[Labels]
    statement: str = ""


class Workshop:
    """Makes releases from one part's patients."""

    def __init__(self, public: People, patients: People, test: People, flow: Path) -> None:
        self.public, self.patients, self.test = public, patients, test
        self.flow = Glow(SIZE_PX, 1, 3, 6, 32)
        load(self.flow, flow)
        self.flow.eval()

    @cached_property
    def public_codes(self) -> Floats:
        """Latents of the public images, [N, D]."""
        return latents.encoded(self.public.images, self.flow)

    @cached_property
    def codes(self) -> Floats:
        """Latents of the patients' images, [N, D]."""
        return latents.encoded(self.patients.images, self.flow)

    def width(self, level: str) -> int:
        """Latent coordinates of a level."""
        return self.flow.dimension if level == "all" else self.flow.top_dimension

    def basis(self, coordinates: int, level: str) -> latents.Basis:
        """The public PCA."""
        return latents.fit(self.public_codes[:, -self.width(level) :], coordinates)

    def release(
        self, row: Row, seed: int, people: People | None = None, codes: Floats | None = None
    ) -> Release:
        """The release of a row, from the patients or from other people (an attacker's)."""
        people, codes = people or self.patients, self.codes if codes is None else codes
        rng = np.random.default_rng([seed, 7])
        groups = random_groups(people, row.k, rng)
        labels = np.array([people.labels[members[0]] for members in groups])
        if row.kind == "real":
            return Release(
                people.images, people.labels, [np.array([i]) for i in range(len(people.images))]
            )
        if row.kind in ("mean image", "pixel average", "dp-pix", "pixel laplace"):
            return Release(in_pixels(row, people.images, groups, rng), labels, groups)
        whole = row.kind in (
            "laplace box",
            "average, all latents",
        )  # the seed's own: every coordinate
        mechanism, basis = (
            self.mechanism(row),
            None if whole else self.basis(row.coordinates, row.level),
        )
        reduced = codes if basis is None else basis.reduced(codes[:, -basis.coordinates :])
        clipped = steps.clip(reduced, mechanism)
        noise, means = SeededNoiseSource(seed), []
        for members in groups:
            each = [steps.quantise(clipped[i], mechanism) for i in members]
            plain = np.sum(each, axis=0) * (mechanism.lattice_step / len(each))
            means.append(
                steps._noised_mean(each, mechanism, noise) if row.epsilon is not None else plain
            )
        random = torch.Generator().manual_seed(seed)
        images = steps._decode(means, self.flow, (TEMPERATURE, TEMPERATURE), random, basis)
        return Release(
            images, labels, groups, mechanism.statement() if row.epsilon is not None else ""
        )

    def mechanism(self, row: Row) -> Latent:
        """The row's mechanism; without an epsilon that of a clip which hardly ever binds."""
        epsilon, d = row.epsilon, row.coordinates
        if row.kind == "gaussian" and epsilon is not None:
            return LatentGaussian(d, row.k, "random", epsilon, DELTA)
        if row.kind == "privunit" and epsilon is not None:
            return PrivUnit(d, epsilon)
        if row.kind == "laplace l1" and epsilon is not None:
            return LatentLaplace(
                "l1_ball", 0.8, d, row.k, "random", 2 * 0.8 * d / (row.k * epsilon)
            )
        if row.kind == "laplace box" and epsilon is not None:
            return LatentLaplace(
                "box", 3.0, self.flow.dimension, row.k, "random", 6.0 / (row.k * epsilon)
            )
        return LatentLaplace(
            "box", 10.0, self.flow.dimension if "all" in row.kind else d, row.k, "random", 1.0
        )


def random_groups(people: People, k: int, rng: np.random.Generator) -> list[Labels]:
    """Parts of k to 2k - 1 rows of one label, by chance alone; of single images at most `SINGLES`."""
    groups: list[Labels] = []
    for label in np.unique(people.labels):
        rows = rng.permutation(np.flatnonzero(people.labels == label))
        groups += np.array_split(rows, max(1, len(rows) // k))
    if k > 1:
        return groups
    return [groups[i] for i in rng.permutation(len(groups))[:SINGLES]]


def in_pixels(row: Row, images: Images, groups: list[Labels], rng: np.random.Generator) -> Images:
    """Averages in pixel space: plain, of everybody, with Laplace noise, or DP-Pix (Fan 2018) with 8
    x 8 cells; m = all pixels.
    """
    if row.kind == "mean image":
        return np.repeat(images.mean(0).round().astype(np.uint8)[None], len(groups), axis=0)
    means = np.stack([images[members].mean(0) for members in groups])
    if row.kind == "pixel average":
        return np.asarray(means.round(), np.uint8)
    assert row.epsilon is not None
    sensitivity = 255.0 * SIZE_PX**2 / row.k
    if row.kind == "pixel laplace":
        return np.asarray(
            np.clip(means + rng.laplace(0, sensitivity / row.epsilon, means.shape), 0, 255),
            np.uint8,
        )
    cell = 8
    grid = SIZE_PX // cell
    cells = means.reshape(-1, grid, cell, grid, cell, 1).mean((2, 4))
    cells = cells + rng.laplace(0, sensitivity / (cell**2 * row.epsilon), cells.shape)
    return np.asarray(np.clip(cells, 0, 255).repeat(cell, 1).repeat(cell, 2), np.uint8)


# ---- what a release is worth, and what it gives away ---------------------------------------------
def auc(scores: Floats, labels: Labels) -> float:
    """Area under the curve of scores [N] for label 1 against 0: the share of pairs in the right
    order, ties for half.
    """
    ones, zeros = scores[labels == 1][:, None], scores[labels == 0][None]
    return float(((ones > zeros) + 0.5 * (ones == zeros)).mean())


def scored(network: classifier.Classifier, images: Images) -> Floats:
    """How much likelier label 1 is than 0, [N]."""
    with torch.no_grad():
        x = (
            torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - network.mean
        ) / network.deviation
        logits = classifier._logits(network.weights, x)
    return np.asarray((logits[:, 1] - logits[:, 0]).double().numpy())


def bits(images: Images, flow: Glow) -> float:
    """Mean bits per dimension under the public flow."""
    with torch.no_grad():
        found = [
            flow.bits_per_dimension(flow.encode(from_uint8(images[i : i + 64]))[1])
            for i in range(0, len(images), 64)
        ]
    return float(torch.cat(found).mean())


def measured(shop: Workshop, row: Row, seeds: int, judge: classifier.Classifier) -> dict[str, Any]:
    """All figures of a row but re-identification."""
    aucs = []
    for seed in range(seeds):
        made = shop.release(row, seed)
        network = classifier.fit(made.images, made.labels, 2, seed=seed, recipe=RECIPE)
        aucs.append(auc(scored(network, shop.test.images), shop.test.labels))
    made = shop.release(row, 0)
    says = scored(judge, shop.patients.images) > 0
    most = np.array([says[members].mean() > 0.5 for members in made.members])
    figures: dict[str, Any] = {
        "auc": [round(value, 4) for value in aucs],
        "releases": len(made.images),
        "kept": round(float(((scored(judge, made.images) > 0) == most).mean()), 3),
        "bits": round(bits(made.images, shop.flow), 2),
        "saturated": round(float(np.isin(made.images, (0, 255)).mean()), 4),
        "statement": made.statement,
    }
    return figures | linkage(shop, made, row)


def linkage(shop: Workshop, made: Release, row: Row) -> dict[str, float]:
    """How often one of the 1 (10) patients nearest to a release in the public PCA's space is in its
    group, and by chance.
    """
    basis = shop.basis(32, "all")
    released = basis.reduced(latents.encoded(made.images, shop.flow))
    nearest = np.argsort(attacks.distances(released, basis.reduced(shop.codes)), axis=1)[:, :10]
    hits = np.array(
        [np.isin(found, members) for found, members in zip(nearest, made.members, strict=True)]
    )
    share = float(np.mean([len(members) for members in made.members])) / len(shop.codes)
    return {
        "top1": round(float(hits[:, 0].mean()), 4),
        "chance1": round(share, 4),
        "top10": round(float(hits.any(1).mean()), 4),
        "chance10": round(1 - (1 - share) ** 10, 4),
    }


def reidentified(shop: Workshop, row: Row, everybody: People, seeds: int) -> dict[str, Any]:
    """P@1, its chance and AUC of a network retrained on releases of the public patients, asked with
    a person's second image.
    """
    found = []
    for seed in range(seeds):
        first = one_each(shop.public)
        theirs = shop.release(row, seed + 100, first, shop_codes(shop, first))
        views = [
            (theirs.images[g], first.patient_of[i])
            for g, members in enumerate(theirs.members)
            for i in members
        ]
        images = np.concatenate([shop.public.images, np.stack([image for image, _ in views])])
        persons = np.concatenate(
            [shop.public.patient_of, np.array([person for _, person in views])]
        )
        network = siamese.train(images, persons, seed=seed)
        made = shop.release(row, seed)
        asked = second_images(everybody)
        apart = attacks.distances(
            network.embed(everybody.images[asked]), network.embed(made.images)
        )
        own = np.array(
            [
                [everybody.patient_of[i] in shop.patients.patient_of[m] for m in made.members]
                for i in asked
            ]
        )
        figures = siamese.reidentify(apart, own)
        if figures is not None:
            found.append((figures.precision, figures.chance, figures.auc))
    mean = np.mean(found, axis=0)
    return {
        "p1": round(float(mean[0]), 3),
        "p1_chance": round(float(mean[1]), 3),
        "reid_auc": round(float(mean[2]), 3),
    }


def shop_codes(shop: Workshop, people: People) -> Floats:
    """Latents of other people's images."""
    return latents.encoded(people.images, shop.flow)


def second_images(people: People) -> Labels:
    """The row of each patient's second image; releases are made of the first."""
    rows = (np.flatnonzero(people.patient_of == name) for name in np.unique(people.patient_of))
    return np.array([images[1] for images in rows if len(images) > 1])


# ---- the run -------------------------------------------------------------------------------------
def kept_in(work: Path, key: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The result stored under `key`, made now if it is not there."""
    path = work / f"{key.replace(' ', '_').replace(',', '')}.json"
    if not path.exists():
        path.write_text(json.dumps(make()))
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def run(part: str, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Every row's figures."""
    if part == "nih":
        public, everybody, test = nih(options.data)
        patients = one_each(everybody)
    else:
        public, patients, test = pneumonia(options.data, "val" if part == "choose" else "test")
        everybody = patients
    shop = Workshop(public, patients, test, options.flow)
    judge = classifier.fit(public.images, public.labels, 2, seed=1000, recipe=RECIPE)
    for row in rows_of(part):
        measure = partial(measured, shop, row, options.seeds, judge)
        figures = kept_in(options.work, f"{part} {row.name}", measure)
        if part == "nih" and row.kind != "mean image":
            again = partial(reidentified, shop, row, everybody, options.seeds)
            figures |= kept_in(options.work, f"{part} reid {row.name}", again)
        print(f"{part}: {row.name}: AUC {np.mean(figures['auc']):.3f}", file=sys.stderr, flush=True)
        yield {"part": part, "name": row.name, **asdict(row), **figures}
    if part == "pneumonia":
        draw(shop)


def draw(shop: Workshop) -> None:
    """The strip of examples: two of each label."""
    shown = {"original|(one member)": Row("real"), "average|k=10": Row("average", 10)}
    shown |= {
        f"gaussian k=10|eps={e:g}": Row("gaussian", 10, e) for e in (16.0, 8.0, 4.0, 2.0, 1.0)
    }
    shown |= {
        "privunit|eps=8": Row("privunit", 1, 8.0),
        "box, k=1|12/coord.": Row("laplace box", 1, 12.0),
    }
    shown["box, k=1|3/coord."] = Row("laplace box", 1, 3.0)
    columns = {}
    for name, row in shown.items():
        made = shop.release(row, 0)
        columns[name] = made.images[
            np.concatenate([np.flatnonzero(made.labels == label)[:2] for label in (0, 1)])
        ]
    chest_pictures.strip(PICTURES / "chest_strip.png", columns)


def plot(results: list[dict[str, Any]]) -> None:
    """AUC against epsilon."""
    rows = [r for r in results if r["part"] == "pneumonia"]
    lines: dict[str, list[tuple[float, float]]] = {}
    for r in rows:
        if r["epsilon"] is not None and r["kind"] not in ("dp-pix", "pixel laplace"):
            unit = ", per coordinate" if r["kind"] == "laplace box" else ""
            lines.setdefault(f"{r['kind']} k={r['k']}{unit}", []).append(
                (r["epsilon"], float(np.mean(r["auc"])))
            )
    shown = ("real", "average", "mean image")
    flat = {
        r["name"]: float(np.mean(r["auc"]))
        for r in rows
        if r["epsilon"] is None and r["kind"] in shown
    }
    title = "PneumoniaMNIST, 32 px: trained on the release, tested on real images (AUC)"
    if lines:
        chest_pictures.curves(PICTURES / "chest_auc.png", title, lines, flat)


HEADS = (
    "release",
    "AUC (mean)",
    "AUC of each seed",
    "kept",
    "link top 1 / chance",
    "top 10 / chance",
    "bits",
    "0 or 255",
)


def table(results: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    again = any("p1" in r for r in results)
    heads = [*HEADS, *(["re-id P@1 / chance", "re-id AUC"] if again else [])]
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for r in results:
        cells = [
            r["name"],
            f"{np.mean(r['auc']):.3f}",
            " ".join(f"{a:.3f}" for a in r["auc"]),
            f"{r['kept']:.2f}",
        ]
        cells += [
            f"{r['top1']:.3f} / {r['chance1']:.3f}",
            f"{r['top10']:.3f} / {r['chance10']:.3f}",
        ]
        cells += [f"{r['bits']:.2f}", f"{r['saturated']:.3f}"]
        if again:
            cells += (
                [f"{r['p1']:.3f} / {r['p1_chance']:.3f}", f"{r['reid_auc']:.3f}"]
                if "p1" in r
                else ["", ""]
            )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run the parts and print tables, or one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=("choose", "pneumonia", "nih"), action="append")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--work", type=Path, default=Path("quality-chest"))
    parser.add_argument(
        "--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data"
    )
    parser.add_argument("--flow", type=Path, default=FLOW)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    results = [
        row for part in options.part or ("choose", "pneumonia", "nih") for row in run(part, options)
    ]
    plot(results)
    if options.json:
        print(json.dumps({"temperature": TEMPERATURE, "delta": DELTA, "rows": results}))
        return
    for part in dict.fromkeys(r["part"] for r in results):
        print(f"\n### {part}\n\n{table([r for r in results if r['part'] == part])}")


if __name__ == "__main__":
    main()
