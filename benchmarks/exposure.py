"""One exposure in two windows under two ids: how often it is found, and how often two people are.

    python -m benchmarks.exposure --data FOLDER [--json [FILE]]

Sets: public radiographs and fundus photographs of known or supposedly distinct people, framed at
64 px. Each image is compared with itself under other windows, and with those of all other people.
What correlates above the threshold although the set calls it two people is listed by its places.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks import report
from benchmarks.public_sets import flip, read_set
from client.ingest.exposure import ONE_EXPOSURE_PER_CENT, same_exposures, structure_of
from client.ingest.likeness import near_duplicates, reduce_images
from common.arrays import Flags, Floats, Images

SIZE_PX = 64
MOST = 600  # images of a set
SETS = {
    "NIH": "chest_nih_64",
    "NIH and COVID-19": "cxr_nih_covid_64",
    "Hannover": "chest_hannover_128",
    "tuberculosis": "chest_tb_128",
    "COVID-CXNet": "chest_cxnet_128",
    "IDRiD": "idrid_128",
    "PALM": "fundus_palm_128",
    "ODIR": "fundus_odir_128",
    "EyePACS": "fundus_eyepacs_128",
    "CSDI": "fundus_csdi_128",
}
WINDOWS = {
    "gamma 0.6": (0.0, 1.0, 0.6),
    "gamma 1.5, darker": (0.0, 1.3, 1.5),
    "15 to 85 %": (0.15, 0.85, 1.0),
    "30 to 90 %": (0.3, 0.9, 1.0),
    "10 to 60 %": (0.1, 0.6, 1.0),
}
WIDE = ("gamma 0.6", "gamma 1.5, darker", "15 to 85 %")
LEAST_RECALL = 0.9
SCALES = (5_000, 20_000, 50_000)


def under_window(images: Images, low: float, high: float, gamma: float) -> Images:
    """The images as another window shows them."""
    shares = np.clip((images / 255 - low) / (high - low), 0, 1) ** gamma
    return np.asarray(np.rint(255 * shares), dtype=np.uint8)


def unit_structures(images: Images) -> Floats:
    """Structures of zero mean and unit length, [N, places]."""
    structures = structure_of(reduce_images(images)).astype(np.float64)
    structures -= structures.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(structures, axis=1, keepdims=True)
    return np.asarray(structures / np.maximum(lengths, 1e-9))


def judge(images: Images, people: NDArray[np.str_]) -> tuple[dict[str, object], dict[str, float]]:
    """What joins two people of a set, and how often one exposure is found, by window."""
    threshold = ONE_EXPOSURE_PER_CENT[SIZE_PX] / 100
    structures = unit_structures(images)
    strangers: Flags = np.triu(people[:, None] != people[None, :], 1)
    products = structures @ structures.T
    found = [(i, j) for i, j in same_exposures(reduce_images(images)) if strangers[i, j]]
    copies = set(near_duplicates(images))
    below = products[strangers & (products <= threshold)]
    row: dict[str, object] = {
        "images": len(images),
        "pairs of people": int(strangers.sum()),
        "joined before": len([pair for pair in copies if strangers[pair]]),
        "joined now": len(found),
        "new": " ".join(f"{i}={j}" for i, j in sorted(set(found) - copies)) or "none",
        "nearest that stay two": round(float(below.max()), 2),
    }
    recall = {}
    for name, window in WINDOWS.items():
        other = unit_structures(under_window(images, *window))
        recall[name] = round(float(((structures * other).sum(axis=1) > threshold).mean()), 3)
    return row, recall


def judge_many(sets: list[Images], count: int) -> dict[str, object]:
    """Seconds of one thread for `count` images of the sets in eight flips, and what is joined.

    Where these are fewer, the rest is the same images in another window.
    """
    again = [under_window(images, *WINDOWS["gamma 1.5, darker"]) for images in sets]
    found = []
    for each in (sets, again):
        for number in range(8):
            found += [reduce_images(flip(images, number)) for images in each]
    fields = np.concatenate(found)
    distinct = len(fields) // 2
    of_one_set = distinct // 8
    fields = fields[:count]
    start = time.process_time()
    pairs = list(same_exposures(fields))
    took_s = time.process_time() - start
    windows = sum(j - i == distinct for i, j in pairs)
    flipped = sum((i % distinct) // of_one_set != (j % distinct) // of_one_set for i, j in pairs)
    return {
        "images": count,
        "seconds": round(took_s, 1),
        "pairs": count * (count - 1) // 2,
        "of one image in two windows": max(0, count - distinct),
        "found": windows,
        "joined with a flipped one": flipped,
    }


def main() -> None:
    """Measure, and print or write the run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    report.add_json(parser)
    given = parser.parse_args()
    report.say_conditions()

    joined = {}
    recalls = {}
    sets = []
    for title, name in SETS.items():
        images, people = read_set(given.data, name, SIZE_PX, MOST)
        sets.append(images)
        joined[title], recalls[title] = judge(images, people)
    scales = {f"{count}": judge_many(sets, count) for count in SCALES}

    worst = min(recall[name] for recall in recalls.values() for name in WIDE)
    targets = (
        report.Target(
            f"one exposure found in windows that keep the lungs: at least {LEAST_RECALL}",
            f"{worst}",
            worst >= LEAST_RECALL,
        ),
    )
    tables = (
        _table("Two people of a set", joined, "New: places in the set, looked at by eye."),
        _table("One exposure, share found by its second window", recalls),
    )
    figures = {"joined": joined, "recall": recalls, "scales": scales}
    scale = _table("Scale", scales, "Images of all sets, flipped and turned in eight ways.")
    report.give(given.json, "exposure", (*tables, scale), figures, targets)


def _table(title: str, rows: dict[str, object], note: str = "") -> report.Table:
    """Rows by name, their keys as columns."""
    first = next(iter(rows.values()))
    assert isinstance(first, dict)
    cells = []
    for name, row in rows.items():
        assert isinstance(row, dict)
        cells.append((name, *map(str, row.values())))
    return report.Table(title, ("", *first), tuple(cells), note)


if __name__ == "__main__":
    main()
