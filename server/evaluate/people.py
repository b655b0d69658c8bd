"""The public people of a rehearsal: members, who took part, and held-out people, who did not.

In: a folder of photographs with labels.csv (columns file, label and, if known, laterality L or R);
or an .npz with `images`, `names`, `labels` and, if known, `laterality`. One image a person.
Out: `PublicPeople`.
Not covered: proof that the people are public and took part. The operator answers for that.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.arrays import Labels
from common.errors import ConfigurationError, damage_named
from common.storage.files import read_capped
from common.study.plan import Study
from server.evaluate.downstream import Labelled
from server.public_data.images import SOURCE_CAP_BYTES, arrays_of, read_source

TABLE_CAP_BYTES = 1 << 22
SIDES = {"": 0, "L": 1, "R": 2}
LabelAndSide = tuple[str, str]


@dataclass(frozen=True)
class PublicPeople:
    """Labelled images of people who took part (`members`) and of people who did not (`heldout`).

    Beside each stand its strata [N], label and side as one number. `name` says in a report who the
    people are.
    """

    members: Labelled
    members_strata: Labels
    heldout: Labelled
    heldout_strata: Labels
    name: str


def read_public_people(members: Path, heldout: Path, study: Study) -> PublicPeople:
    """Return the people of two sources at the plan's size, with the plan's labels."""
    inside, inside_strata = _read_source(members, study)
    outside, outside_strata = _read_source(heldout, study)
    name = (
        f"{len(inside.images)} public people of {members.name} as members, "
        f"{len(outside.images)} held out"
    )
    return PublicPeople(inside, inside_strata, outside, outside_strata, name)


def _read_source(place: Path, study: Study) -> tuple[Labelled, Labels]:
    """Labelled images of one source, and their strata: label and side as one number.

    A label is a position in the plan's strata.
    """
    rows = _read_table(place) if place.is_dir() else _read_arrays(place)
    intake = study.intake
    is_fundus = study.modality == "fundus"
    source = read_source(place, intake.size_px, intake.channels, field_of_view=is_fundus)
    labels = []
    sides = []
    for name in source.names:
        given, side = rows.get(name, ("", ""))
        labels.append(_stratum(f"{place}: {name}", given, study))
        sides.append(SIDES.get(side, 0))

    # the side counts only where the plan groups by it
    found = np.array(labels, np.int64)
    strata = found * len(SIDES)
    if study.intake.stratify_laterality:
        strata = strata + np.array(sides, np.int64)
    return Labelled(source.images, found), strata


def _stratum(where: str, label: str, study: Study) -> int:
    """The position of a label, after merging, in the plan's strata."""
    strata = study.strata()
    merged = study.intake.merge_labels.get(label, label)
    if merged not in strata:
        raise ConfigurationError(
            f"{where}: label is {label!r}, expected one of {', '.join(strata)}"
        )
    return strata.index(merged)


def _read_table(folder: Path) -> dict[str, LabelAndSide]:
    """Label and side by file, from labels.csv."""
    table = folder / "labels.csv"
    if not table.is_file():
        raise ConfigurationError(
            f"{table}: missing",
            hint="a CSV file with columns file, label and, if known, laterality",
        )
    data = read_capped(table, TABLE_CAP_BYTES)
    found = {}
    with damage_named(ConfigurationError(f"{table}: not a CSV table in UTF-8")):
        for row in csv.DictReader(io.StringIO(data.decode("utf-8-sig"))):
            found[row.get("file") or ""] = (row.get("label") or "", row.get("laterality") or "")
    return found


def _read_arrays(path: Path) -> dict[str, LabelAndSide]:
    """Label and side by name, from the arrays of an .npz."""
    data = read_capped(path, SOURCE_CAP_BYTES)
    arrays = arrays_of(data, path, ("images", "names", "labels", "laterality"))
    _check_arrays(path, arrays)
    sides = np.full(len(arrays["names"]), "")
    if "laterality" in arrays:
        sides = np.where(arrays["laterality"].astype(bool), "R", "L")
    found = {}
    for name, label, side in zip(arrays["names"], arrays["labels"], sides, strict=True):
        found[str(name)] = (str(label), str(side))
    return found


def _check_arrays(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    """Raise ConfigurationError unless every person has one row in each array and an own name."""
    counts = {}
    for key, array in arrays.items():
        counts[key] = array.shape[0] if array.ndim else 0
        if key != "images" and array.ndim != 1:
            counts[key] = -1
    if "laterality" in arrays and arrays["laterality"].dtype.kind not in "iub":
        counts["laterality"] = -1
    complete = {"images", "names", "labels"} <= set(counts)
    equal = len(set(counts.values())) <= 1
    if not complete or not equal or len(set(arrays["names"].tolist())) < counts["names"]:
        raise ConfigurationError(
            f"{path}: expected `images`, `names` and `labels` (and `laterality`) of one length, "
            f"no name twice, found {counts}",
            hint="or give a folder of photographs with labels.csv",
        )
