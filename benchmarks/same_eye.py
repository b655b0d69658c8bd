"""One eye photographed twice under two ids: how often it is found, and how often strangers are.

    python -m benchmarks.same_eye --data FOLDER [--json [FILE]]

Sets: public fundus photographs, framed at 128 px; with patients where the set names them. Each is
compared with all photographs of other patients, straight and mirrored. Second
photographs are made of the set's own: turned, moved, enlarged, lit from a side and with noise, at
three strengths; strength 1 is up to 10 degrees, 12 px, 7 % and 30 % of the light.
The last row is all sets at once, which is what a site with several cameras has.
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks import report
from benchmarks.public_sets import flip, read_set
from client.ingest.same_eye import PERHAPS, SAME_EYE, Search, find_same_eyes
from client.ingest.vessels import SIDE_PX
from common.arrays import Floats, Images, Pixels

SETS = {
    "IDRiD": "idrid_128",
    "PALM": "fundus_palm_128",
    "ODIR": "fundus_odir_128",
    "EyePACS": "fundus_eyepacs_128",
    "CSDI": "fundus_csdi_128",
    "DIARETDB1": "fundus_diaretdb1_128",
}
STRENGTHS = (0.5, 1.0, 1.5)
SECONDS = 40  # made of each strength
MANY = 5_000  # eyes, by flips of all sets
SECONDS_AMONG_MANY = 100
THRESHOLDS = (0.25, 0.3, PERHAPS, 0.4, 0.45, SAME_EYE, 0.55, 0.6)
CLEAR = ("IDRiD", "EyePACS")  # photographs without haze
LEAST_RECALL = 0.9


def photograph_again(pixels: Pixels, strength: float, chance: np.random.Generator) -> Pixels:
    """The photograph as a second one might show the eye."""
    turn = np.radians(chance.uniform(-10, 10) * strength)
    scale = 1 + chance.uniform(-0.07, 0.07) * strength
    right, down = chance.uniform(-12, 12, 2) * strength
    cosine = np.cos(turn) / scale
    sine = np.sin(turn) / scale
    middle = (SIDE_PX - 1) / 2
    across = middle - cosine * (middle + right) - sine * (middle + down)
    below = middle + sine * (middle + right) - cosine * (middle + down)
    matrix = (cosine, sine, across, -sine, cosine, below)
    picture = Image.fromarray(pixels).transform(
        (SIDE_PX, SIDE_PX), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC
    )
    places = (np.arange(SIDE_PX) - middle) / middle
    slopes = chance.uniform(-0.3, 0.3, 2) * strength
    light = (1 + slopes[0] * places + slopes[1] * places[:, None]) * chance.uniform(0.7, 1.1)
    values = np.asarray(picture) * light[..., None]
    values += chance.normal(0, 3 * strength, values.shape)
    values[np.hypot(places, places[:, None]) > 1] = 0
    return np.clip(values, 0, 255).astype(np.uint8)


def judge_all(images: Images, people: NDArray[np.int64]) -> tuple[Search, float]:
    """The search in all sets at once, and the seconds that it takes."""
    start = time.process_time()
    search = find_same_eyes(images, people.tolist())
    return search, round(time.process_time() - start, 1)


def judge_many(images: Images) -> dict[str, object]:
    """What MANY eyes take, and how often a second photograph is found among them."""
    chance = np.random.default_rng(1)
    chosen = np.sort(chance.choice(len(images), SECONDS_AMONG_MANY, replace=False))
    again = [photograph_again(images[place], 1.0, chance) for place in chosen]
    flipped = np.concatenate([flip(images, number) for number in range(8)])
    together = np.concatenate([flipped[: MANY - len(again)], np.stack(again)])
    start = time.process_time()
    search = find_same_eyes(together, range(len(together)))
    took_s = round(time.process_time() - start, 1)
    own = dict(zip(range(MANY - len(again), MANY), chosen.tolist(), strict=True))
    found = false = 0
    for match in search.above(SAME_EYE):
        first, second = (own.get(row, row) for row in (match.first, match.second))
        found += second == match.first
        false += first // len(images) != second // len(images)
    return {
        "photographs": MANY,
        "s": took_s,
        "pairs": search.pairs,
        "second photographs": len(again),
        "joined": found,
        "joined with a flipped one": false,
    }


def scores(matches: Search, *, mirrored: bool) -> Floats:
    """The scores of straight or mirrored pairs."""
    found = matches.mirrored if mirrored else matches.straight
    return np.array([match.score for match in found] or [0.0])


def judge(
    images: Images, people: NDArray[np.str_]
) -> tuple[dict[str, object], dict[str, object], Search]:
    """What a set's own pairs give, how often a second photograph is found, and the search."""
    search = find_same_eyes(images, np.unique(people, return_inverse=True)[1].tolist())
    straight = scores(search, mirrored=False)
    mirrored = scores(search, mirrored=True)
    row: dict[str, object] = {
        "photographs": len(images),
        "pairs": search.pairs,
        "joined": int((straight >= SAME_EYE).sum()),
        "listed": int(((straight >= PERHAPS) & (straight < SAME_EYE)).sum()),
        "mirrored joined": int((mirrored >= SAME_EYE).sum()),
        "mirrored listed": int(((mirrored >= PERHAPS) & (mirrored < SAME_EYE)).sum()),
        "best mirrored": round(float(mirrored.max()), 2),
    }
    return row, _recall(images), search


def _recall(images: Images) -> dict[str, object]:
    """The share of second photographs that are found among all of a set, by strength."""
    chance = np.random.default_rng(0)
    many = min(SECONDS, len(images) // len(STRENGTHS))
    again = []
    for step, strength in enumerate(STRENGTHS):
        for place in range(step * many, (step + 1) * many):
            again.append(photograph_again(images[place], strength, chance))
    together = np.concatenate([images, np.stack(again)])
    search = find_same_eyes(together, list(range(len(together))))
    best = np.zeros(len(again))
    for match in search.straight:
        if match.second - len(images) == match.first:
            best[match.first] = match.score
    row: dict[str, object] = {}
    for step, strength in enumerate(STRENGTHS):
        own = best[step * many : (step + 1) * many]
        row[f"{strength}"] = round(float((own >= SAME_EYE).mean()), 3)
        row[f"{strength}, listed"] = round(float((own >= PERHAPS).mean()), 3)
    return row


def main() -> None:
    """Measure, and print or write the run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    report.add_json(parser)
    given = parser.parse_args()
    report.say_conditions()

    found: dict[str, object] = {}
    recalls: dict[str, object] = {}
    sets = [read_set(given.data, name, SIDE_PX) for name in SETS.values()]
    images = np.concatenate([one for one, _ in sets])
    people = np.unique(np.concatenate([one for _, one in sets]), return_inverse=True)[1]
    # each search in a process of its own; times are of the processor
    with ProcessPoolExecutor(len(SETS) + 2) as pool:
        judged = [pool.submit(judge, *one) for one in sets]
        all_at_once = pool.submit(judge_all, images, people)
        among_many = pool.submit(judge_many, images)
        for title, one in zip(SETS, judged, strict=True):
            found[title], recalls[title], _ = one.result()
            print(title, found[title], recalls[title], flush=True)
        search, took_s = all_at_once.result()
        many = among_many.result()

    # all sets at once: what a site with several cameras has, and the time it takes
    straight = scores(search, mirrored=False)
    mirrored = scores(search, mirrored=True)
    curve = {}
    for threshold in THRESHOLDS:
        false = int((mirrored >= threshold).sum())
        curve[f"{threshold}"] = {
            "straight pairs": int((straight >= threshold).sum()),
            "mirrored pairs": false,
            "mirrored of a million": round(1e6 * false / search.pairs, 2),
        }

    worst = min(float(_cell(recalls[title], "1.0")) for title in CLEAR)
    false = int((mirrored >= SAME_EYE).sum())
    targets = (
        report.Target(
            f"second photographs of strength 1 found in {' and '.join(CLEAR)}: at least "
            f"{LEAST_RECALL}",
            f"{worst}",
            worst >= LEAST_RECALL,
        ),
        report.Target(f"mirrored pairs joined, of {search.pairs:,}: none", f"{false}", not false),
    )
    tables = (
        _table("Pairs of each set", found),
        _table("Second photographs, share found by strength", recalls),
        _table(f"All {len(images):,} photographs at once, by threshold", curve),
        report.Table("Time", ("photographs", "s"), ((f"{len(images)}", f"{took_s}"),)),
        _table("Many eyes, by flips and quarter turns of all sets", {"": many}),
    )
    figures = {
        "pairs": found,
        "recall": recalls,
        "curve": curve,
        "seconds": took_s,
        "many": many,
    }
    report.give(given.json, "same_eye", tables, figures, targets)


def _cell(row: object, column: str) -> str:
    assert isinstance(row, dict)
    return str(row[column])


def _table(title: str, rows: dict[str, object]) -> report.Table:
    """Rows by name, their keys as columns."""
    first = next(iter(rows.values()))
    assert isinstance(first, dict)
    cells = []
    for name, row in rows.items():
        assert isinstance(row, dict)
        cells.append((name, *map(str, row.values())))
    return report.Table(title, ("", *first), tuple(cells))


if __name__ == "__main__":
    main()
