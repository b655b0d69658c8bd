"""Averages of hospitals whose cameras the checkpoint never saw.

    python -m benchmarks.other_hospitals --data FOLDER [--source NAME ...] [--k 5 10 20]
        [--rows cells similar ...] [--people N] [--seeds 5] [--checkpoint DIR] [--work DIR]
        [--study FILE] [--coarse-cells N] [--part NAME] [--json [FILE]] [--sheet FILE.png]

Each source is one hospital: IDRiD's people whom the checkpoint never saw (its own camera), and
ODIR, PALM, EyePACS and DIARETDB1, framed as a hospital frames them. Of each, two thirds of the
people are members, dealt at random within each label (benchmarks/hospital_people.py). Figures are
those of quality_fundus, against the held-out people of the same source. None chooses anything.
Every figure is a file in --work, named by the checkpoint's digest, so an interrupted run continues.
`--study` is the plan whose size and constants count, deploy/studies/fundus.yaml unless it is given.
`--coarse-cells` asks for another grid of residuals (client/synthesize/coarse.py) than the plan.
`--people` takes so many people of each source; `--sheet` shows ten photographs of each source, and
ten averages of ten people by each of `SHOWN`.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks import report
from benchmarks.average_makers import MAKERS, load_or_average
from benchmarks.average_people import ROOT
from benchmarks.average_prepared import PreparedPart
from benchmarks.hospital_people import SOURCES, make_part, read_source
from benchmarks.quality_fundus import beside_chance, far, run, say
from common.arrays import Images
from common.study.plan import Study, load_study

ROWS = ("cells", "cells, centroid", "similar", "centroid", "same-pixel")
SHOWN = ("cells", "similar", "same-pixel")
PIXEL = "same-pixel"
JUDGED_K = 10
PICTURES = 10  # of a line of the sheet
HOSPITALS = (
    "source",
    "photographs",
    "without a field",
    "members",
    "held out",
    "accepted",
    "by label",
    "relative inversion error (90 %)",
    "re-id among real images (chance)",
)
COLUMNS = (
    "k",
    "row",
    "images",
    "KID (95 %)",
    "Fréchet (95 %)",
    "of k-Same-Pixel's",
    "kappa",
    "of k-Same-Pixel's",
    "linked (chance)",
    "of k-Same-Pixel's",
    "re-id P@1 (chance)",
)


def measure_source(
    ready: PreparedPart,
    without_field: int,
    names: Sequence[str],
    ks: Sequence[int],
    seeds: int,
) -> dict[str, Any]:
    """All figures of one source; a k of which no label has enough people is left out."""
    strata = [stratum.label for stratum in ready.who.strata]
    largest = int(np.bincount(strata).max(initial=0))
    possible = [k for k in ks if largest >= k]
    return {
        "hospital": describe(ready, without_field),
        **run(ready, names, possible, seeds, say),
    }


def describe(ready: PreparedPart, without_field: int) -> dict[str, Any]:
    """How many photographs there are, which share of them a site accepts, and how well it inverts.

    A photograph without a field of view counts as one that is not accepted.
    """
    part = ready.part
    accepted = np.concatenate([ready.seen.accepted, ready.seen_heldout.accepted])
    labels = np.concatenate([part.members.labels, part.heldout.labels])
    errors = np.concatenate([ready.seen.errors, ready.seen_heldout.errors])
    by_label = {}
    for label, name in enumerate(part.classes):
        by_label[name] = float(accepted[labels == label].mean())
    return {
        "photographs": len(accepted) + without_field,
        "without_field": without_field,
        "members": len(part.members.images),
        "heldout": len(part.heldout.images),
        "accepted": float(accepted.sum() / (len(accepted) + without_field)),
        "by_label": by_label,
        "error": float(np.median(errors)),
        "error_90": float(np.quantile(errors, 0.9)),
    }


def with_cells(study: Study, cells: int) -> Study:
    """The study with another coarse grid."""
    assert study.synthesis is not None
    synthesis = study.synthesis.model_copy(update={"coarse_cells": cells})
    return study.model_copy(update={"synthesis": synthesis})


# --- tables ---------------------------------------------------------------------------------------


def list_hospitals(found: dict[str, Any]) -> report.Table:
    """One line a source."""
    lines = []
    for source, one in found.items():
        here = one["hospital"]
        by_label = ", ".join(f"{name} {share:.2f}" for name, share in here["by_label"].items())
        numbers = (here["photographs"], here["without_field"], here["members"], here["heldout"])
        lines.append(
            (
                source,
                *(str(number) for number in numbers),
                f"{here['accepted']:.3f}",
                by_label,
                f"{here['error']:.2f} ({here['error_90']:.2f})",
                beside_chance(one["real"]["recognised"]),
            )
        )
    return report.Table("The hospitals", HOSPITALS, tuple(lines))


def list_averages(source: str, one: dict[str, Any]) -> report.Table:
    """One source: at each k as many real images, then each row beside k-Same-Pixel."""
    real = one["real"]
    lines = [
        ("", "all real members", "", *far(real["floor"]), "", kappa_of(real["all"]), *[""] * 4)
    ]
    for k in sorted({row["k"] for row in one["rows"]}):
        of_k = {row["row"]: row for row in one["rows"] if row["k"] == k}
        distant = far(real[f"real floor {k}"])
        kappa = kappa_of(real[f"real {k}"])
        lines.append((str(k), "real, n/k", "", *distant, "", kappa, *[""] * 4))
        lines += [average_line(row, of_k.get(PIXEL)) for row in of_k.values()]
    return report.Table(source, COLUMNS, tuple(lines))


def average_line(row: dict[str, Any], pixel: dict[str, Any] | None) -> tuple[str, ...]:
    """The cells of one row at one k."""
    shares = dict.fromkeys(MEASURES, "")
    if pixel is not None and pixel is not row:
        for name, measure in MEASURES.items():
            share = share_of(measure(row), measure(pixel))
            shares[name] = "" if share is None else f"{share:.2f}"
    return (
        str(row["k"]),
        row["row"],
        str(row["images"]),
        *far(row["distances"]),
        shares["frechet"],
        kappa_of(row["utility"]),
        shares["kappa"],
        beside_chance(row["linkage"]),
        shares["linked"],
        beside_chance(row["reidentified"]),
    )


def kappa_of(utility: dict[str, Any] | None) -> str:
    """The cell of kappa; ± over trainings, where there are several."""
    if utility is None:
        return ""
    if utility["kappa_95"] is None:
        return f"{utility['kappa']:.3f}"
    return f"{utility['kappa']:.3f} ± {utility['kappa_95']:.3f}"


MEASURES: dict[str, Callable[[dict[str, Any]], float | None]] = {
    "frechet": lambda row: row["distances"]["frechet"],
    "kappa": lambda row: row["utility"] and row["utility"]["kappa"],
    "linked": lambda row: row["linkage"] and row["linkage"]["precision"],
    "re-id": lambda row: (
        row["reidentified"] and row["reidentified"]["precision"] - row["reidentified"]["chance"]
    ),
}


def share_of(ours: float | None, theirs: float | None) -> float | None:
    """The one as a share of the other, where both were measured."""
    if ours is None or theirs is None or theirs <= 0:
        return None
    return ours / theirs


# --- what was asked for ---------------------------------------------------------------------------


def targets(found: dict[str, Any]) -> list[report.Target]:
    """What acceptance, and `cells` at k = 10, are asked for: met where all sources meet it."""
    accepted = {source: one["hospital"]["accepted"] for source, one in found.items()}
    apart = {}
    for source, one in found.items():
        shares = one["hospital"]["by_label"].values()
        if len(shares) > 1:
            apart[source] = max(shares) - min(shares)
    judged = {source: judge_cells(one) for source, one in found.items()}

    def of(name: str) -> dict[str, float]:
        return {source: one[name] for source, one in judged.items() if name in one}

    at = f"`cells` at k = {JUDGED_K}"
    return [
        ask("accepted: at least 0.95 of the photographs", accepted, lambda x: x >= 0.95),
        ask("accepted: labels differ by at most 0.05", apart, lambda x: x <= 0.05),
        ask(
            "aligned never further than its average (Fréchet, the largest ratio of all k)",
            aligned_ratios(found),
            lambda x: x <= 1,
        ),
        ask(f"{at}: at most 1.5 of k-Same-Pixel's Fréchet", of("frechet"), lambda x: x <= 1.5),
        ask(f"{at}: at least 0.95 of k-Same-Pixel's kappa", of("kappa"), lambda x: x >= 0.95),
        ask(f"{at}: at most half of k-Same-Pixel's linkage", of("linked"), lambda x: x <= 0.5),
        ask(f"{at}: re-identified at most 0.1 above chance", of("re-id"), lambda x: x <= 0.1),
    ]


def judge_cells(one: dict[str, Any]) -> dict[str, float]:
    """By measure: the share of k-Same-Pixel's; of re-identification what exceeds chance."""
    at = {(row["row"], row["k"]): row for row in one["rows"]}
    ours = at.get(("cells", JUDGED_K))
    pixel = at.get((PIXEL, JUDGED_K))
    if ours is None or pixel is None:
        return {}
    found = {name: share_of(MEASURES[name](ours), MEASURES[name](pixel)) for name in MEASURES}
    found["re-id"] = MEASURES["re-id"](ours)
    return {name: value for name, value in found.items() if value is not None}


def aligned_ratios(found: dict[str, Any]) -> dict[str, float]:
    """By source: the largest ratio of an aligned row's Fréchet distance to its average's."""
    ratios = {}
    for source, one in found.items():
        at = {(row["row"], row["k"]): MEASURES["frechet"](row) for row in one["rows"]}
        pairs = (("cells", "cells, centroid"), ("similar", "centroid"))
        each = [
            share_of(at.get((aligned, k)), at.get((average, k)))
            for aligned, average in pairs
            for k in {k for _, k in at}
        ]
        known = [ratio for ratio in each if ratio is not None]
        if known:
            ratios[source] = max(known)
    return ratios


def ask(words: str, measured: dict[str, float], meets: Callable[[float], bool]) -> report.Target:
    """The target with its figure for each source; nothing measured meets nothing."""
    shown = ", ".join(f"{source} {value:.2f}" for source, value in measured.items())
    met = bool(measured) and all(meets(value) for value in measured.values())
    return report.Target(words, shown, met)


# --- pictures -------------------------------------------------------------------------------------


def draw_sheet(ready: Sequence[PreparedPart], k: int) -> Image.Image:
    """For each source a line of photographs, and one of averages by each of `SHOWN`."""
    lines = []
    for one in ready:
        lines.append(one.part.members.images)
        lines += [load_or_average(one, row, k).images for row in SHOWN]
    return Image.fromarray(np.concatenate([draw_line(images) for images in lines]))


def draw_line(images: Images) -> Images:
    """`PICTURES` images side by side, evenly chosen; black where there are fewer."""
    line = np.zeros((PICTURES, *images.shape[1:]), np.uint8)
    count = min(PICTURES, len(images))
    line[:count] = images[np.linspace(0, len(images) - 1, count).astype(int)]
    return np.concatenate(list(line), axis=1)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with the .npz files")
    parser.add_argument("--source", nargs="+", choices=SOURCES, default=list(SOURCES))
    parser.add_argument("--k", nargs="+", type=int, default=[5, 10, 20])
    parser.add_argument("--rows", nargs="+", choices=list(MAKERS), default=list(ROWS))
    parser.add_argument("--people", type=int, help="so many people of each source")
    parser.add_argument("--coarse-cells", type=int, help="of another grid than the plan's")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--checkpoint", type=Path, default=ROOT / "deploy" / "checkpoints" / "fundus-64"
    )
    parser.add_argument("--study", type=Path, default=ROOT / "deploy" / "studies" / "fundus.yaml")
    parser.add_argument("--work", type=Path, default=Path("hospitals-work"))
    parser.add_argument("--part", default="", help="a name for this checkpoint's run")
    report.add_json(parser)
    parser.add_argument("--sheet", type=Path, help="PNG of photographs and averages of ten")
    given = parser.parse_args()
    torch.set_num_threads(1)
    study = load_study(given.study)
    if given.coarse_cells is not None:
        study = with_cells(study, given.coarse_cells)
    work = given.work / ("all" if given.people is None else f"{given.people}-people")
    found = {}
    prepared = []
    for source in given.source:
        started = time.process_time()
        photographs = read_source(given.data, source, study.intake.size_px)
        part = make_part(source, photographs, given.checkpoint, given.people)
        ready = PreparedPart(part, work, study)
        missing = 0 if given.people else photographs.without_field
        found[source] = measure_source(ready, missing, given.rows, given.k, given.seeds)
        prepared.append(ready)
        say(f"{source}: {time.process_time() - started:.0f} CPU-s in all")
    if given.sheet:
        draw_sheet(prepared, JUDGED_K).save(given.sheet)
    tables = [list_hospitals(found), *(list_averages(name, one) for name, one in found.items())]
    name = ".".join(filter(None, ("other_hospitals", given.part)))
    report.give(given.json, name, tables, found, targets(found))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
