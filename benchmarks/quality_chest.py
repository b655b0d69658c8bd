"""What privatized chest radiographs are worth, and what they give away.

    python -m benchmarks.quality_chest --data FOLDER [--part choose|pneumonia|nih] [--seeds 3]
        [--json [FILE]] [--work DIR] [--flow FILE]

pneumonia  PneumoniaMNIST at 32 px: two thirds of its training split are public, one third plays the
           patients, the official test split is the test
choose     coordinates and level of the release, judged on the validation split
nih        ChestX-ray14 with real patient ids, 64 px reduced to 32 px, roles by patient
A row is a release by the product's own steps from `random` groups. Measured of it:
- AUC of a small classifier trained on the release and tested on real images
- `kept`: how often a classifier of public real images says what it says of most members
- linkage: whether the patient whose latent is nearest is a member, and what chance gives
- bits per dimension, pixels at 0 or 255, and with `nih` re-identification by a retrained network
Every row is a file in --work. Noise is seeded: the images are public.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import chest_pictures, report
from benchmarks.chest_releases import (
    DELTA,
    FLOW,
    TEMPERATURE,
    People,
    Release,
    Releases,
    Row,
    nih,
    one_each,
    pneumonia,
    rows_of,
)
from common.arrays import Floats, Images, Labels
from common.measure import attack_scores, classifier
from common.measure.scores import area_under_curve
from common.models import latents
from common.models.glow import Glow
from common.models.glow_pixels import from_uint8
from server.evaluate import siamese

PICTURES = Path(__file__).parent / "pictures"
RECIPE = classifier.Recipe(shift_px=2, flip=False)
LEAST_SHARE = 0.9  # of the unprivatized averages' AUC, at epsilon 8 and k = 10
PARTS = ("choose", "pneumonia", "nih")


# ---- what a release is worth, and what it gives away ---------------------------------------------
def score(network: classifier.Classifier, images: Images) -> Floats:
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


def measure_row(
    releases: Releases, row: Row, seeds: int, judge: classifier.Classifier
) -> dict[str, Any]:
    """All figures of a row but re-identification."""
    aucs = []
    for seed in range(seeds):
        made = releases.release(row, seed)
        network = classifier.fit(made.images, made.labels, 2, seed=seed, recipe=RECIPE)
        aucs.append(area_under_curve(score(network, releases.test.images), releases.test.labels))
    made = releases.release(row, 0)
    says = score(judge, releases.patients.images) > 0
    most = np.array([says[members].mean() > 0.5 for members in made.members])
    figures: dict[str, Any] = {
        "auc": [round(value, 4) for value in aucs],
        "releases": len(made.images),
        "kept": round(float(((score(judge, made.images) > 0) == most).mean()), 3),
        "bits": round(bits(made.images, releases.flow), 2),
        "saturated": round(float(np.isin(made.images, (0, 255)).mean()), 4),
        "statement": made.statement,
    }
    return figures | linkage(releases, made, row)


def linkage(releases: Releases, made: Release, row: Row) -> dict[str, float]:
    """How often one of the 1 (10) patients nearest to a release in the public PCA's space is in its
    group, and by chance.
    """
    basis = releases.basis(32, "all")
    released = basis.reduce(latents.encode_images(made.images, releases.flow))
    nearest = np.argsort(attack_scores.distances(released, basis.reduce(releases.codes)), axis=1)[
        :, :10
    ]
    hits = np.array(
        [np.isin(found, members) for found, members in zip(nearest, made.members, strict=True)]
    )
    share = float(np.mean([len(members) for members in made.members])) / len(releases.codes)
    return {
        "top1": round(float(hits[:, 0].mean()), 4),
        "chance1": round(share, 4),
        "top10": round(float(hits.any(1).mean()), 4),
        "chance10": round(1 - (1 - share) ** 10, 4),
    }


def reidentify(releases: Releases, row: Row, everybody: People, seeds: int) -> dict[str, Any]:
    """P@1, its chance and AUC of a network retrained on releases of the public patients, asked with
    a person's second image.
    """
    found = []
    for seed in range(seeds):
        first = one_each(releases.public)
        theirs = releases.release(row, seed + 100, first, codes_of(releases, first))
        # train on the public patients' images and on releases of them
        sizes = [len(members) for members in theirs.members]
        views = np.repeat(theirs.images, sizes, axis=0)
        viewed = first.patient_of[np.concatenate(theirs.members)]
        images = np.concatenate([releases.public.images, views])
        persons = np.concatenate([releases.public.patient_of, viewed])
        network = siamese.train(images, persons, seed=seed)
        # ask with each patient's second image
        made = releases.release(row, seed)
        asked = second_images(everybody)
        apart = attack_scores.distances(
            network.embed(everybody.images[asked]), network.embed(made.images)
        )
        own = np.zeros(apart.shape, bool)
        for query, image in enumerate(asked):
            person = everybody.patient_of[image]
            own[query] = [person in releases.patients.patient_of[m] for m in made.members]
        figures = siamese.reidentify(apart, own)
        if figures is not None:
            found.append((figures.precision, figures.chance, figures.auc))
    mean = np.mean(found, axis=0)
    return {
        "p1": round(float(mean[0]), 3),
        "p1_chance": round(float(mean[1]), 3),
        "reid_auc": round(float(mean[2]), 3),
    }


def codes_of(releases: Releases, people: People) -> Floats:
    """Latents of other people's images."""
    return latents.encode_images(people.images, releases.flow)


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
    releases = Releases(public, patients, test, options.flow)
    judge = classifier.fit(public.images, public.labels, 2, seed=1000, recipe=RECIPE)
    for row in rows_of(part):
        measure = partial(measure_row, releases, row, options.seeds, judge)
        figures = kept_in(options.work, f"{part} {row.name}", measure)
        if part == "nih" and row.kind != "mean image":
            again = partial(reidentify, releases, row, everybody, options.seeds)
            figures |= kept_in(options.work, f"{part} reid {row.name}", again)
        print(f"{part}: {row.name}: AUC {np.mean(figures['auc']):.3f}", file=sys.stderr, flush=True)
        yield {"part": part, "name": row.name, **asdict(row), **figures}
    if part == "pneumonia":
        draw(releases)


def draw(releases: Releases) -> None:
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
        made = releases.release(row, 0)
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
TITLES = {
    "choose": "Coordinates and level, judged on the validation split",
    "pneumonia": "PneumoniaMNIST, official test split",
    "nih": "ChestX-ray14 by patient, 64 px reduced to 32 px",
}


def table(part: str, results: list[dict[str, Any]]) -> report.Table:
    """The rows of a part."""
    again = any("p1" in r for r in results)
    heads = (*HEADS, "re-id P@1 / chance", "re-id AUC") if again else HEADS
    rows = []
    for r in results:
        cells = [r["name"], f"{np.mean(r['auc']):.3f}", " ".join(f"{a:.3f}" for a in r["auc"])]
        cells += [f"{r['kept']:.2f}", f"{r['top1']:.3f} / {r['chance1']:.3f}"]
        cells += [f"{r['top10']:.3f} / {r['chance10']:.3f}", f"{r['bits']:.2f}"]
        cells += [f"{r['saturated']:.3f}"]
        if again and "p1" in r:
            cells += [f"{r['p1']:.3f} / {r['p1_chance']:.3f}", f"{r['reid_auc']:.3f}"]
        elif again:
            cells += ["", ""]
        rows.append(tuple(cells))
    return report.Table(TITLES[part], heads, tuple(rows))


def targets(results: list[dict[str, Any]]) -> list[report.Target]:
    """What epsilon 8 per patient must keep of the AUC of unprivatized averages."""
    aucs = {r["name"]: float(np.mean(r["auc"])) for r in results if r["part"] == "pneumonia"}
    private = aucs.get("gaussian k=10 eps=8")
    plain = aucs.get("average k=10")
    if private is None or plain is None:
        return []
    asked = f"ε = 8 per patient, k = 10: at least {LEAST_SHARE} of the AUC of unprivatized averages"
    got = f"{private:.3f}, {private / plain:.2f} times {plain:.3f}"
    return [report.Target(asked, got, private >= LEAST_SHARE * plain)]


def main() -> None:
    """Run the parts and print tables, or one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with the .npz files")
    parser.add_argument("--part", choices=PARTS, action="append")
    parser.add_argument("--seeds", type=int, default=3)
    report.add_json(parser)
    parser.add_argument("--work", type=Path, default=Path("quality-chest"))
    parser.add_argument("--flow", type=Path, default=FLOW)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    parts = options.part or list(PARTS)
    if options.json not in (None, "-") and len(parts) > 1:
        parser.error("--json FILE: name one --part for a file")
    results: list[dict[str, Any]] = []
    for part in parts:
        results += run(part, options)
    plot(results)
    tables = []
    for part in parts:
        tables.append(table(part, [r for r in results if r["part"] == part]))
    figures = {"temperature": TEMPERATURE, "delta": DELTA, "rows": results}
    report.give(options.json, f"quality_chest.{parts[0]}", tables, figures, targets(results))


if __name__ == "__main__":
    main()
