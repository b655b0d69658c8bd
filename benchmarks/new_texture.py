"""Whether averages show texture that no member of their group has.

    python -m benchmarks.new_texture --data FOLDER [--source NAME ...] [--k 5 10] [--work DIR]
        [--json [FILE]]

Hospitals, people and averages are those of other_hospitals.py, from the same work folder. A patch
is an eighth of a side; its texture is the mean of a layer of the pretrained network over it, each
channel in deviations of the group's patches. A patch is new where the nearest patch of any member
is further than 95 % of the members' own patches are from the other members'.
- members: by that definition .05 are new; the table gives the member with the most
- `cells`, `cells, centroid`, same-pixel: the averages with alignment, without, and of pixels
- another hospital's: `cells` averages of the next source beside these members, to see that the
  figure tells what is foreign
Patches that reach over the edge of the field do not count. Nothing is selected here.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import report
from benchmarks.average_makers import load_or_average
from benchmarks.average_people import ROOT
from benchmarks.average_prepared import PreparedPart
from benchmarks.hospital_people import SOURCES, make_part, read_source
from common.arrays import Images
from common.models.images import to_unit
from common.models.pretrained_features import PretrainedFeatures, load_features
from common.study.plan import load_study

ROWS = ("cells", "cells, centroid", "same-pixel")
FOREIGN = "another hospital's"
MEMBER = "the member with the most"
CELLS = 8  # patches a side
DEPTH = 2  # maps of 24 by 24: edges and fine structure
OF_MEMBERS = 0.95
LIT = -0.9  # of [-1, 1]; the field is lighter
INSIDE = 0.999


def patches(images: Images, network: PretrainedFeatures) -> list[Tensor]:
    """The textures [P, C] of each image's patches that lie inside its field."""
    x = to_unit(images)
    with torch.no_grad():
        cells = F.adaptive_avg_pool2d(network.maps(x, (DEPTH,))[0], CELLS)
        lit = F.adaptive_avg_pool2d((x.amax(1, keepdim=True) > LIT).float(), CELLS)
    inside = lit.flatten(1) >= INSIDE
    textures = cells.flatten(2).transpose(1, 2)
    return [one[kept] for one, kept in zip(textures, inside, strict=True)]


class Members:
    """What the members of one group show: their patches, and how far these are from each other."""

    def __init__(self, images: Images, network: PretrainedFeatures) -> None:
        found = patches(images, network)
        self.scale = torch.cat(found).std(0).clamp_min(1e-6)
        self.textures = [one / self.scale for one in found]
        away: list[Tensor] = []
        for row, own in enumerate(self.textures):
            others = torch.cat(self.textures[:row] + self.textures[row + 1 :])
            away.append(torch.cdist(own, others).min(1).values)
        self.bound = torch.cat(away).quantile(OF_MEMBERS)
        self.most = max(float((one > self.bound).float().mean()) for one in away if len(one))

    def new_share(self, own: Tensor) -> float:
        """The share of patches [P, C] whose texture no member has."""
        nearest = torch.cdist(own / self.scale, torch.cat(self.textures)).min(1).values
        return float((nearest > self.bound).float().mean())


def measure(
    ready: PreparedPart, k: int, network: PretrainedFeatures, foreign: Images
) -> dict[str, dict[str, float]]:
    """Row → mean and largest share over the groups of `cells` (same-pixel: over its own)."""
    found: dict[str, list[float]] = {MEMBER: [], FOREIGN: []}
    strangers = patches(foreign, network)
    for row in ROWS:
        made = load_or_average(ready, row, k)
        shares = found.setdefault(row, [])
        for number, members in enumerate(made.members):
            people = np.isin(ready.part.members.person_of, members)
            group = Members(ready.part.members.images[people], network)
            own = patches(made.images[made.group_of == number], network)
            shares.append(float(np.mean([group.new_share(one) for one in own])))
            if row == ROWS[0]:
                found[MEMBER].append(group.most)
                found[FOREIGN].append(float(np.mean([group.new_share(one) for one in strangers])))
    return {
        row: {"mean": float(np.mean(shares)), "largest": max(shares)}
        for row, shares in found.items()
    }


def tables(result: dict[str, dict[str, dict[str, dict[str, float]]]]) -> list[report.Table]:
    """One table: a line for each source and k."""
    rows = []
    for source, of_k in result.items():
        for k, found in of_k.items():
            cells = (
                f"{found[row]['mean']:.2f} ({found[row]['largest']:.2f})"
                for row in (MEMBER, *ROWS, FOREIGN)
            )
            rows.append((source, k, *cells))
    title = "Share of patches whose texture no member has: mean over groups (largest)"
    return [report.Table(title, ("source", "k", MEMBER, *ROWS, FOREIGN), tuple(rows))]


def targets(result: dict[str, dict[str, dict[str, dict[str, float]]]]) -> list[report.Target]:
    """Averages shall show no more that is new than the member with the most does."""
    shown: list[str] = []
    met = bool(result)
    for source, of_k in result.items():
        for k, found in of_k.items():
            own, most = found[ROWS[0]]["mean"], found[MEMBER]["mean"]
            shown.append(f"{source} k = {k} {own:.2f} of {most:.2f}")
            met = met and own <= most
    words = "`cells`: no more new texture than the member with the most (means over groups)"
    return [report.Target(words, ", ".join(shown), met)]


def run(
    prepared: Sequence[PreparedPart], ks: Sequence[int]
) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """Source → k → row → shares."""
    network = load_features()
    result: dict[str, Any] = {}
    for place, ready in enumerate(prepared):
        following = prepared[(place + 1) % len(prepared)]
        result[ready.part.name] = {
            str(k): measure(ready, k, network, load_or_average(following, ROWS[0], k).images)
            for k in ks
        }
        print(ready.part.name, flush=True)
    return result


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with the .npz files")
    parser.add_argument("--source", nargs="+", choices=SOURCES, default=list(SOURCES))
    parser.add_argument("--k", nargs="+", type=int, default=[5, 10])
    parser.add_argument("--work", type=Path, default=Path("hospitals-work"))
    report.add_json(parser)
    given = parser.parse_args()
    torch.set_num_threads(1)
    study = load_study(ROOT / "deploy" / "studies" / "fundus.yaml")
    checkpoint = ROOT / "deploy" / "checkpoints" / "fundus-64"
    prepared = []
    for source in given.source:
        photographs = read_source(given.data, source, study.intake.size_px)
        part = make_part(source, photographs, checkpoint, None)
        prepared.append(PreparedPart(part, given.work / "all", study))
    result = run(prepared, given.k)
    report.give(given.json, "new_texture", tables(result), result, targets(result))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
