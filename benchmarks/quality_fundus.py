"""What k-anonymous averages are worth and what they give away, beside classical ones.

    python -m benchmarks.quality_fundus --data FOLDER [--part fundus|chest] [--k 5 10 20]
        [--rows similar cells ...] [--seeds 5] [--checkpoint DIR] [--chest-checkpoint DIR]
        [--work DIR] [--json [FILE]] [--plot FILE.png] [--sheet FILE.png]

fundus  IDRiD at 64 px. The 299 people whom the checkpoint has not seen are dealt into members and
        held-out people at random within each grade; the others are the attacker's reference. The
        demo's own choice by label would look like membership. All eyes are shown as right eyes.
chest   NIH radiographs with real patient ids; a member's last image is kept back for the attacker.
One site holds all members. No test image selects anything. Every figure is a file in --work, named
by the checkpoint's digest, so an interrupted run continues.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks import report
from benchmarks.average_figures import few_rows, figures, load_or_make, real_rows
from benchmarks.average_makers import MAKERS, load_or_average
from benchmarks.average_people import ROOT, Part, chest_part, fundus_part
from benchmarks.average_prepared import PreparedPart
from benchmarks.curve import curve
from common.storage.files import atomic_write
from common.study.plan import load_study

SHOWN = ("similar", "similar, by colour", "cells", "random", "centroid", "same-pixel")
COLUMNS = (
    "k",
    "row",
    "images",
    "KID (95 %)",
    "Fréchet (95 %)",
    "kappa",
    "of real n/k",
    "accuracy",
    "macro-F1",
    "recall",
    "worst AUC (95 %)",
    "by chance",
    "TPR at 1 % FPR",
    "worst attacker",
    "linked (chance)",
    "re-id P@1 (chance)",
)
TITLES = {"fundus": "IDRiD, 64 px", "chest": "NIH ChestX-ray14, 64 px"}


def table(
    part: Part, rows: Sequence[dict[str, Any]], real: dict[str, Any], ks: Sequence[int]
) -> report.Table:
    """One table a part."""
    lines = []

    def add(*cells: str) -> None:
        lines.append((*cells, *[""] * (len(COLUMNS) - len(cells))))

    count = str(len(part.members.images))
    add("", "all real members", count, *far(real["floor"]), *worth(real["all"], None))
    add("", "all, inverted", count, *far(real["inverted_floor"]))
    for k in ks:
        for kind in ("real", "inverted"):
            distant = far(real[f"{kind} floor {k}"])
            add(str(k), f"{kind}, n/k", "", *distant, *worth(real[f"{kind} {k}"], None))
        for row in (r for r in rows if r["k"] == k):
            reached: tuple[str, ...] = ("",) * 5
            if row["utility"]:
                reached = worth(row["utility"], real[f"real {k}"]["kappa"])
            numbers = (str(row["images"]), *far(row["distances"]))
            add(str(k), row["row"], *numbers, *reached, *leakage(row))
    sizes = f"{count} member images, {len(part.heldout.images)} held out"
    return report.Table(f"{TITLES[part.name]}: {sizes}", COLUMNS, tuple(lines))


def far(found: dict[str, Any]) -> tuple[str, str]:
    """The cells of the distances with their intervals; too few images for one leave it empty."""
    cells = []
    for name, digits in (("kernel", 3), ("frechet", 2)):
        cell = ""
        if found[name] is not None:
            cell = f"{found[name]:.{digits}f}"
        if found.get(f"{name}_95"):
            low, high = found[f"{name}_95"]
            cell += f" ({low:.{digits}f}-{high:.{digits}f})"
        cells.append(cell)
    return cells[0], cells[1]


def worth(found: dict[str, Any], as_many: float | None) -> tuple[str, ...]:
    """The cells of the classifier; `as_many`: kappa of as many real images."""
    share = "" if as_many is None else f"{found['kappa'] / max(as_many, 1e-9):.2f}"
    kappa = f"{found['kappa']:.3f}"
    if found["kappa_95"] is not None:  # one seed has no spread
        kappa += f" ± {found['kappa_95']:.3f}"
    recall = " ".join(f"{r:.2f}" for r in found["recall"])
    return kappa, share, f"{found['accuracy']:.3f}", f"{found['macro_f1']:.3f}", recall


def leakage(row: dict[str, Any]) -> tuple[str, ...]:
    """The cells of the attacks."""
    worst = row["membership"]["worst"]
    low, high = worst["auc_interval"]
    return (
        f"{worst['auc']:.3f} ({low:.2f}-{high:.2f})",
        f"{row['membership']['chance']:.3f}",
        f"{worst['tpr']:.3f}",
        worst["attacker"],
        beside_chance(row["linkage"]),
        beside_chance(row["reidentified"]),
    )


def beside_chance(found: dict[str, Any] | None) -> str:
    """The cell of a precision."""
    return f"{found['precision']:.2f} ({found['chance']:.2f})" if found else ""


def run(
    ready: PreparedPart,
    names: Sequence[str],
    ks: Sequence[int],
    seeds: int,
    show: Callable[[str], None],
) -> dict[str, Any]:
    """All figures of one part."""
    real = load_or_make(ready.work / f"real-{seeds}.json", lambda: real_rows(ready, seeds))
    for k in ks:
        real |= load_or_make(
            ready.work / f"real-{k}-{seeds}.json", partial(few_rows, ready, k, seeds)
        )
    rows = []
    for k in ks:
        for name in names:
            started = time.process_time()
            rows.append(figures(ready, name, k, seeds))
            show(f"{ready.part.name} k={k} {name}: {time.process_time() - started:.1f} CPU-s")
    rejected = int((~ready.seen.accepted).sum())
    return {
        "real": real,
        "rows": rows,
        "rejected": rejected,
        "members": len(ready.part.members.images),
    }


def sheet(ready: PreparedPart, k: int) -> bytes:
    """PNG: the first images of each row of `SHOWN`, one row a line, largest label last."""
    lines = []
    for row in SHOWN:
        released = load_or_average(ready, row, k)
        images = released.images[np.argsort(released.labels, kind="stable")]
        picked = images[np.linspace(0, len(images) - 1, 10).astype(int)]
        lines.append(np.concatenate(list(picked), axis=1))
    whole = np.concatenate(lines)
    stream = io.BytesIO()
    Image.fromarray(whole).quantize(128).save(stream, "PNG", optimize=True)
    return stream.getvalue()


def targets(rows: Sequence[dict[str, Any]], real: dict[str, Any]) -> list[report.Target]:
    """What the default grouping is asked for."""
    at = {(row["row"], row["k"]): row for row in rows}
    lines = []
    for k in sorted({k for _, k in at}):
        default = at.get(("similar", k))
        if default is None:
            continue
        far_off = default["distances"]["kernel"]
        kappa = default["utility"]["kappa"]
        for other in ("same-pixel", "same-pca", "centroid"):
            if (other, k) not in at:
                continue
            theirs = at[other, k]["distances"]["kernel"]
            asked = f"k = {k}: KID below {other}'s ({theirs:.3f})"
            lines.append(report.Target(asked, f"{far_off:.3f}", far_off < theirs))
            theirs = at[other, k]["utility"]["kappa"]
            asked = f"k = {k}: kappa above {other}'s ({theirs:.3f})"
            lines.append(report.Target(asked, f"{kappa:.3f}", kappa > theirs))
        share = kappa / max(real[f"real {k}"]["kappa"], 1e-9)
        asked = f"k = {k}: at least 0.9 of the kappa of as many real images"
        lines.append(report.Target(asked, f"{share:.2f}", share >= 0.9))
        if k == 10:
            auc = default["membership"]["worst"]["auc"]
            asked = "k = 10: worst attacker's AUC at most 0.55"
            lines.append(report.Target(asked, f"{auc:.3f}", auc <= 0.55))
    return lines


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with the .npz files")
    parser.add_argument("--part", choices=("fundus", "chest"), default="fundus")
    parser.add_argument("--k", nargs="+", type=int, default=[5, 10, 20])
    parser.add_argument("--rows", nargs="+", choices=list(MAKERS), default=list(MAKERS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--checkpoint", type=Path, default=ROOT / "deploy" / "checkpoints" / "fundus-64"
    )
    parser.add_argument("--chest-checkpoint", type=Path)
    parser.add_argument("--work", type=Path, default=Path("quality-work"))
    report.add_json(parser)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--sheet", type=Path, help="PNG of averages of 10")
    given = parser.parse_args()
    torch.set_num_threads(1)
    study = load_study(ROOT / "deploy" / "studies" / "fundus.yaml")
    if given.part == "chest" and given.chest_checkpoint is None:
        parser.error("--part chest needs --chest-checkpoint")
    if given.part == "fundus":
        part = fundus_part(given.checkpoint, given.data)
    else:
        part = chest_part(given.chest_checkpoint, given.data)
    ready = PreparedPart(part, given.work, study)
    found = run(ready, given.rows, given.k, given.seeds, say)
    if given.sheet:
        atomic_write(given.sheet, sheet(ready, 10))
    if given.plot:
        atomic_write(given.plot, curve({part.name: found}))
    tables = [table(part, found["rows"], found["real"], given.k)]
    asked = targets(found["rows"], found["real"])
    report.give(given.json, f"quality_fundus.{part.name}", tables, {part.name: found}, asked)


def say(text: str) -> None:
    """Show progress."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
