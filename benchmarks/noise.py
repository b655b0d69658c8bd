"""The noise samplers beside opendp and torch: seconds of one thread.

    python benchmarks/noise.py [--json] [--repeats 7]

Discrete Laplace of 200,000 values (scale 2^20 lattice steps: an image's latents) and Gaussian on the lattice of 2.8 million
(sigma 1 in steps of 2^-24: a model of 2.8 M parameters). `kohort` draws from an AES-256-CTR key stream; `opendp` samples
exactly, in arbitrary precision, from its own secure source; `torch` draws fp64 normal and Laplace numbers from a seedable
Mersenne Twister, on no lattice: it promises least and is shown as the price of nothing. Process time, the smallest of the
repeats after a warm-up (opendp: of one draw, which takes most of a minute).
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from common.privacy.noise import LATTICE, NoiseSource

LAPLACE, GAUSSIAN = 200_000, 2_800_000
SCALE = 2.0**20  # lattice steps
Draw = Callable[[], object]


def kohort() -> tuple[Draw, Draw]:
    """Ours."""
    source = NoiseSource()
    return lambda: source.discrete_laplace(LAPLACE, SCALE), lambda: source.gaussian_lattice(
        GAUSSIAN, 1.0
    )


def opendp() -> tuple[Draw, Draw]:
    """opendp's measurements on vectors of zeros."""
    import opendp.prelude as dp

    dp.enable_features("contrib")
    vector = dp.vector_domain(dp.atom_domain(T=int))
    laplace = dp.m.make_laplace(vector, dp.l1_distance(T=int), SCALE)
    gaussian = dp.m.make_gaussian(vector, dp.l2_distance(T=float), float(LATTICE))
    few, many = np.zeros(LAPLACE, np.int32).tolist(), np.zeros(GAUSSIAN, np.int32).tolist()
    return lambda: laplace(few), lambda: gaussian(many)


def with_torch() -> tuple[Draw, Draw]:
    """torch's floating-point numbers."""
    laplace = torch.distributions.Laplace(torch.tensor(0.0, dtype=torch.float64), SCALE)
    return lambda: laplace.sample(
        (LAPLACE,)
    ), lambda: torch.randn(GAUSSIAN, dtype=torch.float64) * LATTICE


SOURCES = {"": kohort, "opendp_": opendp, "torch_": with_torch}


def seconds(draw: Draw, repeats: int) -> float:
    """The smallest process time of `repeats` draws; where there are several, after one to warm up."""
    if repeats > 1:
        draw()
    found = []
    for _ in range(repeats):
        start = time.process_time()
        draw()
        found.append(time.process_time() - start)
    return round(min(found), 5)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, or one JSON object."""
    parser = argparse.ArgumentParser(description="The noise samplers beside opendp and torch.")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--without-opendp", action="store_true", help="a minute less")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found = {}
    for prefix, make in SOURCES.items():
        if prefix == "opendp_" and options.without_opendp:
            continue
        laplace, gaussian = make()
        repeats = 1 if prefix == "opendp_" else options.repeats
        found[f"{prefix}laplace_200k_s"] = seconds(laplace, repeats)
        found[f"{prefix}gaussian_2_8m_s"] = seconds(gaussian, repeats)
    if options.json:
        print(json.dumps(found))
        return
    print(
        "| sampler | discrete Laplace 200,000, s | Gaussian 2.8 million, s |\n| --- | --- | --- |"
    )
    for prefix in SOURCES:
        if f"{prefix}laplace_200k_s" in found:
            name = prefix.rstrip("_") or "kohort"
            print(
                f"| {name} | {found[f'{prefix}laplace_200k_s']:.3f} | {found[f'{prefix}gaussian_2_8m_s']:.3f} |"
            )


if __name__ == "__main__":
    main()
