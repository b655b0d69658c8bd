"""How near inversions are to the photographs of five hospitals, and how near what averages keep is.

    python -m benchmarks.inversion_errors --data FOLDER [--source NAME ...] [--work DIR]
        [--json [FILE]]

Hospitals and people are those of other_hospitals.py, with its work folder; no average is made. An
error is the root mean square difference inside the field, in the photograph's own deviation there,
in the photograph's own look: what a person who lays both side by side sees.
- code: the image of the refined code
- kept: the same with the photograph's residual in the coarse grid, of which averages are made
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import report
from benchmarks.average_people import ROOT
from benchmarks.average_prepared import PreparedPart
from benchmarks.hospital_people import SOURCES, make_part, read_source
from client.synthesize.coarse import add_residual
from client.synthesize.invert import Inversion
from client.synthesize.looks import look_at, relative_errors, show_in
from common.arrays import Floats, Images
from common.models.images import to_unit
from common.study.plan import load_study

PRESETS = {"fundus-64": "fundus.yaml", "fundus-128": "fundus-128.yaml"}  # by checkpoint
KINDS = ("code", "kept")
BATCH = 32


def measure_errors(ready: PreparedPart) -> dict[str, dict[str, float]]:
    """Kind → median and 90 % of the errors of all photographs, refused ones too."""
    part = ready.part
    sides = ((part.members.images, ready.seen), (part.heldout.images, ready.seen_heldout))
    rows = np.concatenate([errors_of(ready, images, found) for images, found in sides], axis=1)
    return {
        kind: {"median": float(np.median(row)), "at_90": float(np.quantile(row, 0.9))}
        for kind, row in zip(KINDS, rows, strict=True)
    }


def errors_of(ready: PreparedPart, images: Images, found: Inversion) -> Floats:
    """The errors [2, N] of uint8 images [N, S, S, 3] by kind."""
    generator = ready.networks.generator
    assert generator is not None
    common = ready.known.look_on()
    batches: list[Floats] = []
    for start in range(0, len(images), BATCH):
        some = slice(start, start + BATCH)
        x = to_unit(images[some])
        with torch.no_grad():
            seen = look_at(x, common)
            codes = torch.from_numpy(np.array(found.codes[some]))
            rebuilt = generator.synthesis(codes).clamp(-1, 1)
            residuals = torch.from_numpy(np.array(found.coarse[some]))[:, :-1]
            whole = [
                add_residual(image[None], residual, field[None])
                for image, residual, field in zip(rebuilt, residuals, seen.fields, strict=True)
            ]
            shown = (rebuilt, torch.cat(whole).clamp(-1, 1))
            errors = [
                relative_errors(show_in(one, common, seen.own), x, seen.fields) for one in shown
            ]
        batches.append(np.stack(errors))
    return np.concatenate(batches, axis=1)


def tables(result: dict[str, dict[str, Any]]) -> list[report.Table]:
    """One line a source: for each checkpoint both kinds."""
    names = [f"{checkpoint}, {kind}" for checkpoint in PRESETS for kind in KINDS]
    rows = []
    for source, found in result.items():
        each = (found[checkpoint][kind] for checkpoint in PRESETS for kind in KINDS)
        cells = (f"{one['median']:.2f} ({one['at_90']:.2f})" for one in each)
        rows.append((source, str(found["photographs"]), *cells))
    title = "Error in the photograph's own deviation: median (90 %)"
    return [report.Table(title, ("source", "photographs", *names), tuple(rows))]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with the .npz files")
    parser.add_argument("--source", nargs="+", choices=SOURCES, default=list(SOURCES))
    parser.add_argument("--work", type=Path, default=Path("hospitals-work"))
    report.add_json(parser)
    given = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, dict[str, Any]] = {}
    for source in given.source:
        result[source] = {}
        for name, preset in PRESETS.items():
            study = load_study(ROOT / "deploy" / "studies" / preset)
            photographs = read_source(given.data, source, study.intake.size_px)
            part = make_part(source, photographs, ROOT / "deploy" / "checkpoints" / name)
            result[source]["photographs"] = len(part.members.images) + len(part.heldout.images)
            result[source][name] = measure_errors(PreparedPart(part, given.work / "all", study))
        print(source, flush=True)
    report.give(given.json, "inversion_errors", tables(result), result)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
