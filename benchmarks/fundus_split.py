"""Three disjoint roles for the 510 people of IDRiD: one split for benchmarks and pretraining.

    python -m benchmarks.fundus_split --data FOLDER [--size 64] [--role public] [--out FILE.npz]

members  the 189 photographs that play patients in deploy/demo/fundus
heldout  110 others, stratified by grade, on which nothing is ever trained
public   the 211 that remain, for starting checkpoints
Byte-identical photographs are one person under the first name and the highest grade.
Guarantees: roles depend on names, grades and the demo's table alone, not on pixels or a seed.
Sides: the demo's table for members, else the side of the optic disc, of which two were corrected by
eye. `--out` writes a role as the .npz that `kohort-server pretrain` reads.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from benchmarks import report

ROOT = Path(__file__).parents[1]
DEMO_TABLE = ROOT / "deploy" / "demo" / "fundus" / "labels.csv"
ROLES = ("members", "heldout", "public")
HELDOUT = 110
LEFT_BY_EYE = frozenset(
    # the disc is pale, lesions opposite are brighter
    {"train/IDRiD_126", "train/IDRiD_325"}
)


@dataclass(frozen=True)
class People:
    """One photograph each: `images` uint8 [N, S, S, 3], `names` str [N], `grades` int64 [N] (0-4),
    `right` bool [N].
    """

    images: NDArray[np.uint8]
    names: NDArray[np.str_]
    grades: NDArray[np.int64]
    right: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, which: NDArray[np.generic]) -> People:
        return People(self.images[which], self.names[which], self.grades[which], self.right[which])


def people(size_px: int, data: Path) -> People:
    """The 510 people of idrid_{size_px}.npz in the file's order; raises FileNotFoundError where the
    data do not lie.
    """
    with np.load(data / f"idrid_{size_px}.npz", allow_pickle=False) as file:
        images, names, grades, digests = (
            file[key] for key in ("images", "name", "labels", "source_md5")
        )
    first, group = np.unique(digests, return_index=True, return_inverse=True)[1:]
    highest = np.zeros(len(first), np.int64)
    np.maximum.at(highest, group, grades)
    order = np.argsort(first)
    kept = first[order]
    right = right_eyes(images[kept], names[kept], demo_sides())
    return People(images[kept], names[kept].astype(str), highest[order], right)


def split(size_px: int, data: Path) -> dict[str, People]:
    """The people by role: members, heldout, public; disjoint, together all 510."""
    everyone = people(size_px, data)
    role = roles(everyone.names, everyone.grades, set(demo_sides()))
    return {name: everyone[role == name] for name in ROLES}


def roles(
    names: NDArray[np.str_], grades: NDArray[np.int64], members: set[str], heldout: int = HELDOUT
) -> NDArray[np.str_]:
    """The role of each name: `heldout` of those that are no member, grade by grade in the order of
    the names' SHA-256.
    """
    role = np.array(["members" if name in members else "public" for name in names], dtype="<U7")
    free = np.flatnonzero(role == "public")
    exact = {
        grade: heldout * float((grades[free] == grade).mean())
        for grade in sorted(set(grades[free].tolist()))
    }
    counts = {grade: int(share) for grade, share in exact.items()}
    for grade in sorted(exact, key=lambda grade: counts[grade] - exact[grade])[
        : heldout - sum(counts.values())
    ]:
        counts[grade] += 1
    for grade, count in counts.items():
        same = sorted(
            free[grades[free] == grade],
            key=lambda i: hashlib.sha256(str(names[i]).encode()).digest(),
        )
        role[same[:count]] = "heldout"
    return role


def demo_sides(table: Path = DEMO_TABLE) -> dict[str, bool]:
    """IDRiD name → whether it is a right eye, for the photographs of the demo."""
    with table.open(encoding="utf-8") as file:
        return {row["idrid"]: row["laterality"] == "R" for row in csv.DictReader(file)}


def right_eyes(
    images: NDArray[np.uint8], names: NDArray[np.str_], known: dict[str, bool]
) -> NDArray[np.bool_]:
    """bool [N]: `known`, else whether the optic disc is on the right, by agreement with the mean of
    all (mirrored) discs.

    On the demo's 189 photographs, whose sides are known, one is wrong. Pixels of other people
    enter, labels do not.
    """
    spots = np.stack([_spots(image) for image in images])
    sign = np.sign(spots @ np.where(np.arange(spots.shape[1]) % 56 < 28, -1.0, 1.0))
    for _ in range(20):
        sign = np.where(spots @ (spots * sign[:, None]).mean(0) > 0, 1.0, -1.0)
    found = [sign[i] > 0 and name not in LEFT_BY_EYE for i, name in enumerate(names.tolist())]
    return np.array(
        [known.get(name, bool(side)) for name, side in zip(names.tolist(), found, strict=True)]
    )


def _spots(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The bright spots of the middle rows of the green channel minus their mirror image, 32·56
    values of norm 1.
    """
    green = Image.fromarray(image[..., 1]).resize((64, 64), Image.Resampling.BOX)
    fine, coarse = (
        np.asarray(green.filter(ImageFilter.GaussianBlur(r)), np.float64) for r in (2, 10)
    )
    bright = np.maximum(fine - coarse, 0)[16:48, 4:60]
    difference = (bright - bright[:, ::-1]).ravel()
    return np.asarray(difference / (np.linalg.norm(difference) + 1e-9))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", type=Path, required=True, help="folder with idrid_64.npz")
    parser.add_argument("--size", type=int, choices=(64, 128), default=64)
    parser.add_argument("--role", choices=ROLES, default="public")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    parts = split(given.size, given.data)
    if given.out:
        one = parts[given.role]
        np.savez(
            given.out, images=one.images, names=one.names, laterality=one.right, labels=one.grades
        )
    table = {name: np.bincount(part.grades, minlength=5).tolist() for name, part in parts.items()}
    if given.json:
        print(json.dumps(table))
        return
    rows = []
    for name, counts in table.items():
        numbers = (sum(counts), *counts, int(parts[name].right.sum()))
        rows.append((name, *map(str, numbers)))
    columns = ("role", "people", "grade 0", "1", "2", "3", "4", "right eyes")
    print(report.Table("", columns, tuple(rows)).markdown())


if __name__ == "__main__":
    main()
