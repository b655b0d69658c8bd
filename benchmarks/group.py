"""Grouping beside the published rule as a plain loop: seconds of one thread, and peak memory.

    python benchmarks/group.py [--json [FILE]] [--repeats 3] [--sizes 3000 10000] [--naive 1000]

Codes: a mixture of 40 Gaussians in 64 dimensions. `similar`: distances and the greedy rule;
`similar-swap`: with exchanges of pairs; `cells`: 192 public centres.
The naive rule is written here from the paper: for each group anew all distances between the rows
that are left, in float64, their sums, and a sort. Where k divides n they are `paper`'s.
Process time, the smallest of the repeats. Peak memory: of a process that only groups.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # opacus has a package benchmarks too

import numpy as np
from numpy.typing import NDArray

from benchmarks import report
from client.synthesize import partition
from common.arrays import Floats

DIMENSION = 64
CENTRES = 40
SAMPLES = 192
KS = (5, 10, 20)
MOST_SWAP_S = 0.5  # of 3,000 patients with exchanges


def codes(count: int, seed: int = 0) -> Floats:
    """A Gaussian mixture, unit variance in every coordinate."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(CENTRES, DIMENSION)) * 1.5
    points = centres[random.integers(0, CENTRES, count)] + random.normal(size=(count, DIMENSION))
    return np.asarray(points / points.std(axis=0))


def naive(points: Floats, k: int) -> set[frozenset[int]]:
    """The published rule as a loop; k must divide the number of rows."""
    left = np.arange(len(points))
    found = set()
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
    "similar-swap": partition.greedy_with_swaps,
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


def time_modes(count: int, repeats: int) -> list[dict[str, float | str]]:
    """Every mode at every k, alternating."""
    points = codes(count)
    best: dict[tuple[str, int], float] = {}
    for _ in range(repeats):
        for k in KS:
            for mode, rule in MODES.items():
                if mode == "paper" and count > 3000:
                    continue
                spent = seconds(lambda rule=rule, k=k: rule(points, k))
                best[mode, k] = min(best.get((mode, k), spent), spent)
    return [
        {"n": count, "mode": mode, "k": k, "s": round(spent, 3)}
        for (mode, k), spent in best.items()
    ]


def against_naive(count: int, k: int, repeats: int) -> dict[str, float | bool]:
    """The naive rule and `paper`, alternating; whether the groups are the same."""
    points = codes(count)
    theirs = []
    ours = []
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
    before = partition.greedy(points, k)
    after = partition.greedy_with_swaps(points, k)
    return round(squared_error(points, after) / squared_error(points, before), 3)


def only_group(mode: str, count: int, k: int) -> None:
    """Group once and print this process's peak memory, MiB."""
    MODES[mode](codes(count), k)
    status = Path("/proc/self/status").read_text()  # ru_maxrss could be the parent's
    print(int(status.split("VmHWM:")[1].split()[0]) / 1024)


def tables(found: dict[str, Any]) -> list[report.Table]:
    """Seconds by mode, the naive rule, memory, and what exchanges gain."""
    best = {(row["n"], row["mode"], row["k"]): f"{row['s']:.3f}" for row in found["modes"]}
    kinds = dict.fromkeys((row["n"], row["mode"]) for row in found["modes"])
    rows = tuple((f"{n:,}", f"`{mode}`", *(best[n, mode, k] for k in KS)) for n, mode in kinds)
    naive = tuple(
        (
            f"{one['n']:,}",
            str(one["k"]),
            f"{one['naive_s']:.3f}",
            f"{one['greedy_s']:.3f}",
            f"{one['ratio']:.0f}",
            "yes" if one["same_groups_as_paper"] else "no",
        )
        for one in found["naive"]
    )
    names = ("n", "k", "naive s", "`similar` s", "ratio", "groups of `paper` are the naive rule's")
    memory = tuple((f"{int(n):,}", str(mib)) for n, mib in found["peak_mib"].items())
    gain = found["swap_squared_error"]
    title = f"Peak memory of a process that only groups, k = {KS[0]}, `similar-swap`"
    return [
        report.Table("Seconds", ("n", "mode", *(f"k = {k}, s" for k in KS)), rows),
        report.Table("Beside the naive rule", names, naive),
        report.Table(title, ("n", "MiB"), memory),
        report.Table(
            "Squared error after swaps, of that before, n = 3,000",
            tuple(f"k = {k}" for k in gain),
            (tuple(f"{share:.2f}" for share in gain.values()),),
        ),
    ]


def targets(found: dict[str, Any]) -> list[report.Target]:
    """What 3,000 patients with exchanges may take."""
    swaps = [row for row in found["modes"] if (row["n"], row["mode"]) == (3000, "similar-swap")]
    return [
        report.Target(
            f"n = 3,000 with swaps in less than {MOST_SWAP_S} s, k = {row['k']}",
            f"{row['s']:.3f}",
            row["s"] < MOST_SWAP_S,
        )
        for row in swaps
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    report.add_json(parser)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="*", default=[3000, 10_000])
    parser.add_argument("--naive", type=int, nargs="*", default=[1000, 3000])
    parser.add_argument("--peak", nargs=3, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        only_group(options.peak[0], int(options.peak[1]), int(options.peak[2]))
        return
    rows: list[dict[str, float | str]] = []
    for count in options.sizes:
        rows += time_modes(count, options.repeats if count <= 3000 else 1)
    found: dict[str, Any] = {}
    for row in rows:
        if (row["mode"], row["k"]) == ("similar-swap", 10):
            found[f"group_{row['n']}_s"] = row["s"]
    found["modes"] = rows
    found["peak_mib"] = {
        f"{count}": round(peak_mib("similar-swap", count, KS[0])) for count in options.sizes
    }
    found["naive"] = [
        against_naive(count, KS[1], 2 if count <= 1000 else 1) for count in options.naive
    ]
    found["swap_squared_error"] = {str(k): swap_gain(codes(3000), k) for k in KS}
    report.give(options.json, "group", tables(found), found, targets(found))


if __name__ == "__main__":
    main()
