"""Seconds of the noise samplers beside opendp and torch, one thread.

    python benchmarks/noise.py [--json [FILE]] [--repeats 7]

Drawn: 200,000 discrete Laplace values of scale 2^20; 2.8 million Gaussian values on the lattice.
Measured: process time, the smallest of the repeats after a warm-up (opendp: one draw).
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # opacus has a package benchmarks too

from benchmarks import report
from common.privacy.noise import LATTICE, NoiseSource

LAPLACE = 200_000
GAUSSIAN = 2_800_000
MOST_LAPLACE_S = 0.1
MOST_GAUSSIAN_S = 0.04
SCALE = 2.0**20  # lattice steps
Draw = Callable[[], object]


def kohort() -> tuple[Draw, Draw]:
    """Ours."""
    source = NoiseSource()

    def laplace() -> object:
        return source.discrete_laplace(LAPLACE, SCALE)

    def gaussian() -> object:
        return source.gaussian_lattice(GAUSSIAN, 1.0)

    return laplace, gaussian


def opendp() -> tuple[Draw, Draw]:
    """opendp's measurements on vectors of zeros."""
    import opendp.prelude as dp

    dp.enable_features("contrib")
    vector = dp.vector_domain(dp.atom_domain(T=int))
    laplace = dp.m.make_laplace(vector, dp.l1_distance(T=int), SCALE)
    gaussian = dp.m.make_gaussian(vector, dp.l2_distance(T=float), float(LATTICE))
    few = np.zeros(LAPLACE, np.int32).tolist()
    many = np.zeros(GAUSSIAN, np.int32).tolist()
    return lambda: laplace(few), lambda: gaussian(many)


def with_torch() -> tuple[Draw, Draw]:
    """torch's floating-point numbers."""
    laplace = torch.distributions.Laplace(torch.tensor(0.0, dtype=torch.float64), SCALE)

    def gaussian() -> object:
        return torch.randn(GAUSSIAN, dtype=torch.float64) * LATTICE

    return lambda: laplace.sample((LAPLACE,)), gaussian


SOURCES = {"": kohort, "opendp_": opendp, "torch_": with_torch}


def seconds(draw: Draw, repeats: int) -> float:
    """The smallest process time of `repeats` draws; several draws are warmed up by one."""
    if repeats > 1:
        draw()
    found = []
    for _ in range(repeats):
        start = time.process_time()
        draw()
        found.append(time.process_time() - start)
    return round(min(found), 5)


def table(found: dict[str, float]) -> report.Table:
    """A row a sampler."""
    rows = []
    for prefix in SOURCES:
        if f"{prefix}laplace_200k_s" in found:
            name = prefix.rstrip("_") or "kohort"
            laplace = f"{found[f'{prefix}laplace_200k_s']:.3f}"
            rows.append((name, laplace, f"{found[f'{prefix}gaussian_2_8m_s']:.3f}"))
    columns = ("sampler", "discrete Laplace 200,000, s", "Gaussian 2.8 million, s")
    return report.Table("Seconds of one thread", columns, tuple(rows))


def targets(found: dict[str, float]) -> list[report.Target]:
    """What kohort's samplers may take at most."""
    laplace = found["laplace_200k_s"]
    gaussian = found["gaussian_2_8m_s"]
    return [
        report.Target(
            f"200,000 discrete Laplace draws in at most {MOST_LAPLACE_S} s",
            f"{laplace:.3f}",
            laplace <= MOST_LAPLACE_S,
        ),
        report.Target(
            f"2.8 million Gaussian draws in at most {MOST_GAUSSIAN_S} s",
            f"{gaussian:.3f}",
            gaussian <= MOST_GAUSSIAN_S,
        ),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, or one JSON object."""
    parser = argparse.ArgumentParser(description="The noise samplers beside opendp and torch.")
    report.add_json(parser)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--without-opendp", action="store_true", help="a minute less")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    report.say_conditions()
    found = {}
    for prefix, make in SOURCES.items():
        if prefix == "opendp_" and options.without_opendp:
            continue
        laplace, gaussian = make()
        repeats = 1 if prefix == "opendp_" else options.repeats
        found[f"{prefix}laplace_200k_s"] = seconds(laplace, repeats)
        found[f"{prefix}gaussian_2_8m_s"] = seconds(gaussian, repeats)
    report.give(options.json, "noise", [table(found)], found, targets(found))


if __name__ == "__main__":
    main()
