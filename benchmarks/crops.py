"""One film and a crop of it under two ids: how often that is found, and how often two people are.

    python -m benchmarks.crops --data FOLDER [--json [FILE]]

Sets: public radiographs and fundus photographs of known or supposedly distinct people, framed at
64 px. Each image is compared with a crop of itself, made of the set's own larger picture, among all
others; by the rules for copies and exposures alone, and with the search for crops. What fits above
the threshold although the set calls it two people is listed by its places.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks import report
from benchmarks.exposure import SETS, SIZE_PX, under_window
from benchmarks.public_sets import flip, read_set
from client.ingest.crop_windows import find_weights
from client.ingest.crops import ALIKE_PER_CENT, Fit, fit_crops, fit_into
from client.ingest.exposure import same_exposures
from client.ingest.images import frame_image
from client.ingest.likeness import near_duplicates, reduce_images
from client.ingest.quarantine import Unusable
from common.arrays import Floats, Images, Pixels

MOST = 30  # images of a set that are cut
MOST_STRANGERS = 300
MANY = 20_000
CROPPED = 15  # of each set
LARGE_PX = 128
UNEVEN = "3, 12, 8 and 0 %"
# shares of width and height that are cut away: left, right, top, bottom
CROPS = {
    "one side, 5 %": (0.05, 0, 0, 0),
    "one side, 10 %": (0.1, 0, 0, 0),
    "one side, 20 %": (0.2, 0, 0, 0),
    "top, 10 %": (0, 0, 0.1, 0),
    "each side, 5 %": (0.05, 0.05, 0.05, 0.05),
    "each side, 10 %": (0.1, 0.1, 0.1, 0.1),
    "each side, 12 %": (0.12, 0.12, 0.12, 0.12),
    "each side, 15 %": (0.15, 0.15, 0.15, 0.15),
    UNEVEN: (0.03, 0.12, 0.08, 0.0),
    "another aspect": (0, 0, 0.12, 0.12),
}
WINDOWED = "each side, 10 %, gamma 0.6"
BEYOND = ("each side, 15 %",)  # more than is promised
THRESHOLDS = (30, 40, 45, 50, 55, 60, 65, 70)
LEAST_RECALL = 0.9
FUNDUS = 3  # channels
ALL = "Seconds of one core, computed from those that were searched."


def cut(pixels: Pixels, shares: tuple[float, float, float, float]) -> Pixels:
    """What is left of a picture without its black margins and these shares of its sides."""
    lit = pixels.max(axis=2) > 8
    rows = np.flatnonzero(lit.any(axis=1))
    columns = np.flatnonzero(lit.any(axis=0))
    whole = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    height, width = whole.shape[:2]
    left, right, top, bottom = shares
    return whole[
        round(top * height) : height - round(bottom * height),
        round(left * width) : width - round(right * width),
    ]


def crop_all(large: Images, shares: tuple[float, float, float, float]) -> tuple[Images, list[int]]:
    """Crops as a study frames them, and the places of their images; some cannot be framed."""
    framed = []
    kept = []
    for place, pixels in enumerate(large):
        fundus = pixels.shape[2] == FUNDUS
        try:
            crop = cut(pixels, shares)
            framed.append(frame_image(crop, SIZE_PX, pixels.shape[2], field_of_view=fundus))
        except Unusable:
            continue
        kept.append(place)
    if not framed:
        return np.empty((0, SIZE_PX, SIZE_PX, large.shape[3]), np.uint8), []
    return np.stack(framed), kept


def best_fits(fits: list[Fit]) -> dict[tuple[int, int], float]:
    """The best fit of each pair, in per cent."""
    best: dict[tuple[int, int], float] = {}
    for fit in fits:
        pair = (min(fit.whole, fit.cut), max(fit.whole, fit.cut))
        best[pair] = max(best.get(pair, 0.0), fit.per_cent)
    return best


def fit_all(images: Images, people: NDArray[np.int64]) -> dict[tuple[int, int], float]:
    """The best fit of each pair of people that was looked at."""
    return best_fits(list(fit_crops(reduce_images(images), people)))


def judge_kind(images: Images, crops: Images, kept: list[int]) -> tuple[float, Floats]:
    """The share of crops that other rules find, and how well each crop fits."""
    together = np.concatenate([images, crops])
    own = {(place, len(images) + row) for row, place in enumerate(kept)}
    before = {*near_duplicates(together), *same_exposures(reduce_images(together))}
    fits = fit_all(together, np.arange(len(together)))
    found = np.array([fits.get(pair, 0.0) for pair in sorted(own)])
    return round(len(before & own) / len(own), 2), found


def judge(images: Images, large: Images) -> tuple[dict[str, object], dict[str, object], Floats]:
    """By kind of crop: what other rules find, what is found now; and the fits that are promised."""
    limit = ALIKE_PER_CENT[SIZE_PX]
    before: dict[str, object] = {}
    now: dict[str, object] = {}
    promised = []
    kinds = {name: crop_all(large, shares) for name, shares in CROPS.items()}
    ten, places = kinds["each side, 10 %"]
    kinds[WINDOWED] = (under_window(ten, 0.0, 1.0, 0.6), places)
    for name, (crops, kept) in kinds.items():
        before[name] = now[name] = "not framed"
        if 2 * len(kept) < len(images):
            continue
        before[name], found = judge_kind(images, crops, kept)
        now[name] = round(float((found > limit).mean()), 3)
        if name not in BEYOND:
            promised.append(found)
    return before, now, np.concatenate(promised)


def judge_strangers(images: Images, people: NDArray[np.str_]) -> tuple[dict[str, object], Floats]:
    """What joins two people of a set, and all fits that were looked at."""
    limit = ALIKE_PER_CENT[SIZE_PX]
    numbers = np.unique(people, return_inverse=True)[1].astype(np.int64)
    copies = {*near_duplicates(images), *same_exposures(reduce_images(images))}
    fits = {pair: fit for pair, fit in fit_all(images, numbers).items() if pair not in copies}
    joined = sorted(pair for pair, fit in fits.items() if fit > limit)
    below = [fit for fit in fits.values() if fit <= limit]
    row: dict[str, object] = {
        "images": len(images),
        "joined": " ".join(f"{i}={j}" for i, j in joined) or "none",
        "nearest that stay two": round(max(below, default=0.0)),
    }
    return row, np.array(list(fits.values()))


def judge_many(sets: list[Images], larges: list[Images]) -> tuple[dict[str, object], Floats]:
    """How some of MANY images of the sets, in eight flips, are searched for their crops.

    The time of all is computed from these.
    """
    flipped = [reduce_images(flip(images, number)) for number in range(8) for images in sets]
    of_one = sum(len(images) for images in sets)
    crops = []
    originals = []
    start = 0
    for images, large in zip(sets, larges, strict=True):
        found, kept = crop_all(large[:CROPPED], CROPS[UNEVEN])
        crops.append(reduce_images(found))
        originals += [start + place for place in kept]
        start += len(images)
    cropped = np.concatenate(crops)
    fields = np.concatenate([np.concatenate(flipped)[: MANY - len(cropped)], cropped])
    first = len(fields) - len(cropped)
    wholes = np.array(originals)

    # what each image takes once, and what each search takes
    own = np.arange(len(fields))
    before = time.process_time()
    weights = find_weights([fields])
    list(fit_into(fields[:0], fields, own[:0], own, weights))
    once_s = time.process_time() - before
    before = time.process_time()
    fits = list(fit_into(fields[wholes], fields, wholes, own, weights))
    searches_s = time.process_time() - before - once_s
    best: dict[tuple[int, int], float] = {}
    for fit in fits:
        pair = (int(wholes[fit.whole]), fit.cut)
        best[pair] = max(best.get(pair, 0.0), fit.per_cent)
    limit = ALIKE_PER_CENT[SIZE_PX]
    true = [(place, first + row) for row, place in enumerate(originals)]
    strangers = [fit for (_, other), fit in best.items() if of_one <= other < first]
    row: dict[str, object] = {
        "images": len(fields),
        "searched": len(wholes),
        "crops found": sum(best.get(pair, 0.0) > limit for pair in true),
        "pairs with a flipped one": len(wholes) * (first - of_one),
        "of these joined": sum(fit > limit for fit in strangers),
        "nearest of these": round(max(strangers, default=0.0)),
        "seconds for all": round(once_s + searches_s / len(wholes) * len(fields)),
    }
    return row, np.array(strangers or [0.0])


def main() -> None:
    """Measure, and print or write the run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    report.add_json(parser)
    given = parser.parse_args()
    report.say_conditions()

    sets = []
    larges = []
    for name in SETS.values():
        sets.append(read_set(given.data, name, SIZE_PX, MOST_STRANGERS))
        # NIH has 64 px alone, so its crops are blurred; the others are cut at 128 px
        larger = name.replace("covid_64", "covid_128")
        larges.append(read_set(given.data, larger, LARGE_PX, MOST)[0])

    before = {}
    now = {}
    strangers = {}
    crops: list[Floats] = []
    people: list[Floats] = []
    # each set in processes of its own; times are of the processor
    with ProcessPoolExecutor(len(SETS)) as pool:
        among_many = pool.submit(judge_many, [images for images, _ in sets], larges)
        pairs = [pool.submit(judge_strangers, *one) for one in sets]
        judged = [
            pool.submit(judge, images[: len(large)], large)
            for (images, _), large in zip(sets, larges, strict=True)
        ]
        for title, of_people, of_crops in zip(SETS, pairs, judged, strict=True):
            strangers[title], fits = of_people.result()
            before[title], now[title], found = of_crops.result()
            print(title, strangers[title], now[title], flush=True)
            crops.append(found)
            people.append(fits)
        many, flipped = among_many.result()
    print(many, flush=True)

    cut_fits = np.concatenate(crops)
    curve = {}
    for threshold in THRESHOLDS:
        curve[f"{threshold}"] = {
            "crops found": round(float((cut_fits > threshold).mean()), 3),
            "pairs of two people in the sets": int((np.concatenate(people) > threshold).sum()),
            "pairs with a flipped one": int((flipped > threshold).sum()),
        }
    _give(given.json, before, now, strangers, curve, many)


def _give(
    to: str | None,
    before: Mapping[str, Mapping[str, object]],
    now: Mapping[str, Mapping[str, object]],
    strangers: Mapping[str, Mapping[str, object]],
    curve: Mapping[str, Mapping[str, object]],
    many: Mapping[str, object],
) -> None:
    """Print or write tables and targets."""
    shares = [
        float(str(share))
        for row in now.values()
        for kind, share in row.items()
        if kind not in BEYOND and share != "not framed"
    ]
    false = int(str(many["of these joined"]))
    tried = int(str(many["pairs with a flipped one"]))
    targets = (
        report.Target(
            f"crops of up to an eighth of each side found, each kind and set: at least "
            f"{LEAST_RECALL}",
            f"{min(shares)}",
            min(shares) >= LEAST_RECALL,
        ),
        report.Target(f"flipped ones joined, of {tried:,} pairs: none", f"{false}", not false),
    )
    tables = (
        _table("Share of crops found without this search", before),
        _table("Share of crops found", now),
        _table("Two people of a set", strangers, "Joined: places in the set, looked at by eye."),
        _table("By threshold, in per cent", curve),
        _table("Many images, by flips and quarter turns of all sets", {"": many}, ALL),
    )
    figures = {"before": before, "now": now, "strangers": strangers, "curve": curve, "many": many}
    report.give(to, "crops", tables, figures, targets)


def _table(title: str, rows: Mapping[str, Mapping[str, object]], note: str = "") -> report.Table:
    """Rows by name, their keys as columns."""
    columns = next(iter(rows.values()))
    cells = [(name, *map(str, row.values())) for name, row in rows.items()]
    return report.Table(title, ("", *columns), tuple(cells), note)


if __name__ == "__main__":
    main()
