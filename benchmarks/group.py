"""Grouping beside the published rule as a plain loop: seconds of one thread, and peak memory.

    python benchmarks/group.py [--json] [--repeats 3] [--sizes 3000 10000] [--naive 1000 3000]

Codes: a mixture of 40 Gaussians in 64 dimensions (the toy of methods/ksalsa.md, section 4). `similar`: distances and greedy;
`similar-swap`: with exchanges of pairs; `cells`: 192 public centres. Ours runs alternating with the naive rule, which does
what the published one does: for each group anew all distances between the rows that are left, in float64, their sums, and a
sort by distance to the seed. It is written here, from the paper; where k divides n its groups are compared with `paper`.
Process time, the smallest of the repeats. Peak memory: of a process of its own that does this one thing, interpreter included.
JSON: group_3000_s and group_10000_s are of `similar-swap`, the most work, at k = 10, the production default; the other k stand
beside them under modes.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from common.arrays import Floats

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from numpy.typing import NDArray

from client.synthesize import partition

DIMENSION, CENTRES, SAMPLES = 64, 40, 192
KS = (5, 10, 20)


def codes(count: int, seed: int = 0) -> Floats:
    """A Gaussian mixture, unit variance in every coordinate."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(CENTRES, DIMENSION)) * 1.5
    points = centres[random.integers(0, CENTRES, count)] + random.normal(size=(count, DIMENSION))
    return np.asarray(points / points.std(axis=0))


def naive(points: Floats, k: int) -> set[frozenset[int]]:
    """The published rule as a loop; k must divide the number of rows."""
    left, found = np.arange(len(points)), set()
    while len(left):
        rest = points[left]
        squares = (rest**2).sum(axis=1)
        distances = np.sqrt(np.maximum(squares[:, None] + squares - 2 * rest @ rest.T, 0.0))
        order = np.argsort(distances[distances.sum(axis=1).argmax()], kind="stable")
        found.add(frozenset(left[order[:k]].tolist()))
        left = np.delete(left, order[:k])
    return found


def cells(points: Floats, k: int) -> NDArray[np.int64]:
    """Rows in cells of about 4k; the keyed shuffle inside a cell costs nothing beside it."""
    return partition.cells_of_rows(points, codes(SAMPLES, seed=1), partition.CELL_LEAST * k)


MODES: dict[str, Callable[[Floats, int], object]] = {
    "similar": partition.greedy,
    "similar-swap": partition.greedy_swapped,
    "cells": cells,
    "paper": partition.greedy_paper,
}


def seconds(work: Callable[[], object]) -> float:
    """Process time of one call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def peak_mib(mode: str, count: int, k: int) -> float:
    """Peak memory of a process that only groups."""
    command = [sys.executable, __file__, "--peak", mode, str(count), str(k)]
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": "."}
    )
    return float(done.stdout)


def squared_error(points: Floats, group_of: NDArray[np.int64]) -> float:
    """Squared distance of rows to the mean of their part."""
    return float(
        sum(
            ((points[part] - points[part].mean(axis=0)) ** 2).sum()
            for part in partition.parts_of(group_of)
        )
    )


def timed(count: int, repeats: int) -> list[dict[str, float | str]]:
    """Every mode at every k, alternating."""
    points = codes(count)
    best: dict[tuple[str, int], float] = {}
    for _ in range(repeats):
        for k in KS:
            for mode, rule in MODES.items():
                if mode == "paper" and count > 3000:
                    continue
                spent = seconds(lambda rule=rule, k=k: rule(points, k))  # type: ignore[misc]
                best[mode, k] = min(best.get((mode, k), spent), spent)
    return [
        {"n": count, "mode": mode, "k": k, "s": round(spent, 3)}
        for (mode, k), spent in best.items()
    ]


def against_naive(count: int, k: int, repeats: int) -> dict[str, float | bool]:
    """The naive rule and `paper`, alternating; whether the groups are the same."""
    points = codes(count)
    theirs, ours = [], []
    for _ in range(repeats):
        theirs.append(seconds(lambda: naive(points, k)))
        ours.append(seconds(lambda: partition.greedy(points, k)))
    same = naive(points, k) == {
        frozenset(part) for part in partition.parts_of(partition.greedy_paper(points, k))
    }
    return {
        "n": count, "k": k, "naive_s": round(min(theirs), 3), "greedy_s": round(min(ours), 3),
        "ratio": round(min(theirs) / min(ours), 1), "same_groups_as_paper": same,
    }  # fmt: skip


def swap_gain(points: Floats, k: int) -> float:
    """Squared error after swaps as a share of that before."""
    before, after = partition.greedy(points, k), partition.greedy_swapped(points, k)
    return round(squared_error(points, after) / squared_error(points, before), 3)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="*", default=[3000, 10_000])
    parser.add_argument("--naive", type=int, nargs="*", default=[1000, 3000])
    parser.add_argument("--peak", nargs=3, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        mode, count, k = options.peak[0], int(options.peak[1]), int(options.peak[2])
        MODES[mode](codes(count), k)
        status = Path(
            "/proc/self/status"
        ).read_text()  # ru_maxrss would be the parent's, where that is larger
        print(int(status.split("VmHWM:")[1].split()[0]) / 1024)
        return
    rows = [
        row
        for count in options.sizes
        for row in timed(count, options.repeats if count <= 3000 else 1)
    ]
    memory = {f"{count}": round(peak_mib("similar-swap", count, KS[0])) for count in options.sizes}
    ratios = [against_naive(count, KS[1], 2 if count <= 1000 else 1) for count in options.naive]
    swapped = {
        f"group_{row['n']}_s": row["s"]
        for row in rows
        if (row["mode"], row["k"]) == ("similar-swap", 10)
    }
    gain = {str(k): swap_gain(codes(3000), k) for k in KS}
    if options.json:
        print(
            json.dumps(
                {
                    **swapped,
                    "modes": rows,
                    "peak_mib": memory,
                    "naive": ratios,
                    "swap_squared_error": gain,
                }
            )
        )
        return
    print("| n | mode | k | s |\n| --- | --- | --- | --- |")
    for row in rows:
        print(f"| {row['n']} | {row['mode']} | {row['k']} | {row['s']} |")
    print(
        "\n| n | k | naive s | `similar` s | ratio | groups of `paper` are those of the naive rule |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    for one in ratios:
        print(
            f"| {one['n']} | {one['k']} | {one['naive_s']} | {one['greedy_s']} | {one['ratio']} | {one['same_groups_as_paper']} |"
        )
    print(f"\nPeak MiB of `similar-swap` at k = {KS[0]}, by n: {memory}.")
    print(f"Squared error after swaps, of that before, at n = 3000: {gain}.")


if __name__ == "__main__":
    main()
