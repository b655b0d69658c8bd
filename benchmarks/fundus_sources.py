"""The public fundus photographs of several cameras, framed by the rule of the hospitals.

    python -m benchmarks.fundus_sources --data FOLDER --out DIR [--size 64]

Writes idrid.npz (the people of role `public` in benchmarks/fundus_split.py) and csdi.npz, which
`kohort-server pretrain` reads. Both sets are CC BY 4.0. The photographs of the other sources are
for measuring: nothing is trained on them.
Framing is common/field_of_view.py, as at a hospital and as for a folder of photographs.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks import fundus_split
from common.field_of_view import find_field, frame_field

PIXELS = 128  # of the files
MEASURED = ("palm", "odir", "eyepacs", "diaretdb1")


@dataclass(frozen=True)
class Photographs:
    """Framed photographs uint8 [N, S, S, 3]; names, patients, labels [N], sides where known.

    `without_field`: how many others were left out, because no field of view was found.
    """

    images: NDArray[np.uint8]
    names: NDArray[np.str_]
    patients: NDArray[np.str_]
    labels: NDArray[np.str_]
    right: NDArray[np.bool_] | None
    without_field: int = 0

    def __len__(self) -> int:
        return len(self.names)


def read_idrid(data: Path, role: str, size_px: int, count: int | None = None) -> Photographs:
    """The people of `role` in IDRiD, one photograph each: all, or `count` by a fixed shuffle."""
    people = fundus_split.split(PIXELS, data)[role]
    return _framed(
        people.images,
        people.names,
        people.names,
        people.grades.astype(str),
        people.right,
        size_px,
        count,
    )


def idrid_people(data: Path, size_px: int) -> dict[str, fundus_split.People]:
    """The people of every role of IDRiD, one framed photograph [S, S, 3] each."""
    roles = {name: read_idrid(data, name, size_px) for name in fundus_split.ROLES}
    found = {}
    for name, them in roles.items():
        if them.right is None:
            raise AssertionError("IDRiD's sides are known")
        grades = them.labels.astype(np.int64)
        found[name] = fundus_split.People(them.images, them.names, grades, them.right)
    return found


def read_other(data: Path, source: str, size_px: int, count: int | None = None) -> Photographs:
    """The photographs of `source`, csdi or one of MEASURED: all, or `count` by a fixed shuffle."""
    with np.load(data / f"fundus_{source}_{PIXELS}.npz", allow_pickle=False) as file:
        right = file["eye"] == "R" if "eye" in file.files else None
        labels = file["class_names"][file["labels"]]
        return _framed(
            file["images"],
            file["name"],
            file["patient"],
            labels.astype(str),
            right,
            size_px,
            count,
        )


def _framed(
    images: NDArray[np.uint8],
    names: NDArray[np.str_],
    patients: NDArray[np.str_],
    labels: NDArray[np.str_],
    right: NDArray[np.bool_] | None,
    size_px: int,
    count: int | None,
) -> Photographs:
    """Those of the photographs, or of `count` of them, in which a field of view is found."""
    rows = np.arange(len(images))
    if count is not None:
        rows = np.random.default_rng(0).permutation(len(images))[:count]
    found = []
    kept = []
    for row in rows.tolist():
        image = images[row]
        field = find_field(image)
        if field is None:
            continue
        found.append(frame_field(image, field, size_px, resize))
        kept.append(row)
    if right is not None:
        right = right[kept]
    missing = len(rows) - len(kept)
    return Photographs(np.stack(found), names[kept], patients[kept], labels[kept], right, missing)


def resize(pixels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Colour pixels at another height and width, antialiased."""
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with idrid_128.npz")
    parser.add_argument("--out", type=Path, required=True, help="folder for the two files")
    parser.add_argument("--size", type=int, choices=(64, 128), default=PIXELS)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    sources = {
        "idrid": read_idrid(given.data, "public", given.size),
        "csdi": read_other(given.data, "csdi", given.size),
    }
    for name, source in sources.items():
        np.savez(
            given.out / f"{name}.npz",
            images=source.images,
            names=source.names,
            patients=source.patients,
            laterality=source.right,
        )
        print(f"{name}: {len(source)} photographs of {len(set(source.patients.tolist()))} people")


if __name__ == "__main__":
    main()
