"""What two fixed latents and many draws prove about each mechanism's epsilon: `python -m benchmarks.mechanism_audit`.

Two neighbouring latents, the worst that the clip set holds, go through the product's own clip, lattice and noise
(client/synthesize/privatize.py), many times each. The attacker knows both latents and the mechanism and decides by likelihood
ratio: the threshold is chosen on one half of the draws; on the other half Clopper and Pearson bound its true and false positive
rates at 99.9 %, and epsilon is at least log((true - delta) / false). A bound above the claim proves a fault.

Sound mechanisms must stay below their claim; deliberately broken ones must not: CADP's three bugs (methods/dp-glow.md,
section 2), epsilon per coordinate sold as epsilon per image, and Laplace noise in floating point (Mironov 2012). A low bound
proves little: 10^5 draws cannot show more than 8.8. tests/contracts/test_mechanism_audit.py runs the same code with fewer draws.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

from client.synthesize.privatize import clip, noised_sums, quantise
from common.arrays import Floats
from common.privacy.mechanisms import Latent, LatentGaussian, LatentLaplace, PrivUnit
from common.privacy.noise import Noise, NoiseSource

CONFIDENCE = 0.999
D, WIDE = 16, 256  # coordinates; of the batch-wide norm
DELTA = 1e-5
SLOW = 5  # PrivUnit gets one fifth of the draws


@dataclass(frozen=True)
class Subject:
    """A mechanism under audit: `draw(n, side, noise)` gives n log-likelihood ratios of releases of latent `side` (0 or 1)."""

    name: str
    claimed: float
    delta: float
    draw: Callable[[int, int, Noise], Floats]
    share: int = 1  # of the draws: one in so many


def lower_bound(subject: Subject, draws: int, noise: Noise) -> float:
    """A lower bound on epsilon that holds with 99.9 % confidence, from `draws` releases of each latent; 0 at least."""
    count = draws // subject.share
    own, other = subject.draw(count, 0, noise), -subject.draw(count, 1, noise)
    bounds = [_one_way(own, -other, subject.delta), _one_way(other, -own, subject.delta)]
    return max(0.0, *bounds)


def _one_way(own: Floats, other: Floats, delta: float) -> float:
    """Bound from accepting `ratio >= threshold`: the threshold from the first halves, the rates from the second."""
    half = len(own) // 2
    grid = np.unique(np.quantile(own[:half], np.linspace(0, 1, 400)))
    threshold = max(grid, key=lambda t: _bound(own[:half] >= t, other[:half] >= t, delta))
    return _bound(own[half:] >= threshold, other[half:] >= threshold, delta)


def _bound(true: NDArray[np.bool_], false: NDArray[np.bool_], delta: float) -> float:
    """log((least true rate - delta) / largest false rate), each at 99.95 % by Clopper and Pearson 1934."""
    tail = (1 - CONFIDENCE) / 2
    hits, alarms = int(true.sum()), int(false.sum())
    least = float(beta.ppf(tail, hits, len(true) - hits + 1)) if hits else 0.0
    most = (
        float(beta.ppf(1 - tail, alarms + 1, len(false) - alarms)) if alarms < len(false) else 1.0
    )
    return math.log((least - delta) / most) if least > delta else -math.inf


# --- what is shipped


def shipped(
    mechanism: Latent, name: str, *, claimed: float | None = None, noisy: Latent | None = None
) -> Subject:
    """A mechanism on its two worst latents through the product's code; a broken one claims another epsilon than `noisy`'s."""
    noisy = noisy or mechanism
    ends = worst(mechanism)
    latents = np.stack([quantise(clip(row[None], mechanism)[0], mechanism) for row in ends])

    def draw(n: int, side: int, noise: Noise) -> Floats:
        return ratio(
            noised_sums(np.repeat(latents[side : side + 1], n, axis=0), noisy, noise),
            latents,
            noisy,
        )

    share = SLOW if isinstance(mechanism, PrivUnit) else 1
    return Subject(
        name,
        mechanism.epsilon_per_image if claimed is None else claimed,
        mechanism.delta,
        draw,
        share,
    )


def worst(mechanism: Latent) -> Floats:
    """Two latents [2, d] as far apart as the clip set allows: opposite corners, or opposite ends of one axis."""
    corner = (
        np.ones(mechanism.dimension) if mechanism.clip == "box" else np.eye(mechanism.dimension)[0]
    )
    far = corner * mechanism.radius * (mechanism.dimension if mechanism.clip == "l1_ball" else 1)
    return np.stack([far, -far])


def ratio(released: NDArray[np.int64], latents: NDArray[np.int64], mechanism: Latent) -> Floats:
    """log p(release | latent 0) - log p(release | latent 1) up to a positive factor, [n]."""
    if isinstance(mechanism, LatentLaplace):
        away = [np.abs(released - latent).sum(axis=1, dtype=np.float64) for latent in latents]
        return np.asarray((away[1] - away[0]) / mechanism.sum_scale_in_steps)
    inner = released.astype(np.float64) @ (latents[0] - latents[1]).astype(np.float64)
    if isinstance(mechanism, LatentGaussian):
        return np.asarray(inner / mechanism.sum_deviation_in_steps**2)
    return np.asarray(inner / np.linalg.norm(released.astype(np.float64), axis=1))


def sound(epsilon: float) -> list[Subject]:
    """Everything that we ship, at one epsilon per image."""
    return [
        shipped(ball(epsilon), "lattice Laplace, l1 ball"),
        shipped(box(epsilon), "lattice Laplace, box"),
        shipped(LatentGaussian(D, 1, "random", epsilon, DELTA), "analytic Gaussian, l2 ball"),
        shipped(PrivUnit(D, epsilon), "PrivUnit"),
    ]


def ball(epsilon: float) -> LatentLaplace:
    """Laplace in the l1 ball of radius 0.8 d with this epsilon per image."""
    return LatentLaplace("l1_ball", 0.8, D, 1, "random", 2 * 0.8 * D / epsilon)


def box(epsilon: float) -> LatentLaplace:
    """Laplace in the box of 3 with this epsilon per image."""
    return LatentLaplace("box", 3.0, D, 1, "random", 2 * 3.0 * D / epsilon)


# --- what is broken on purpose


def broken(epsilon: float) -> list[Subject]:
    """CADP's three bugs and two more, each claiming `epsilon` per image."""
    half, gauss = ball(epsilon), LatentGaussian(D, 1, "random", epsilon, DELTA)
    per_coordinate = replace(half, clip="box", radius=3.0, scale=2 * 3.0 / epsilon)
    return [
        batch_norm(epsilon),
        shipped(
            half,
            "(b) radius for diameter, Laplace",
            claimed=epsilon,
            noisy=replace(half, scale=half.scale / 2),
        ),
        radius_for_diameter_gaussian(gauss),
        deaf(epsilon),
        shipped(per_coordinate, "epsilon per coordinate sold as per image, box", claimed=epsilon),
        float_laplace(epsilon),
    ]


def batch_norm(epsilon: float) -> Subject:
    """(a): the batch clipped by its matrix norm (largest column sum), noise 2R / epsilon: a sample keeps d times its radius."""
    scale = 2.0 / epsilon * 2**10
    mechanism = LatentLaplace("l1_ball", 1.0 / WIDE, WIDE, 1, "random", 2.0 / epsilon)
    batch = np.zeros((16, WIDE))
    batch[0] = np.resize([1.0, -1.0, 0.5, 0.0], WIDE)
    clipped = batch * min(1.0, 1.0 / float(np.linalg.norm(batch, ord=1)))
    latents = np.stack([np.trunc(clipped[0] * 2**10), np.trunc(-clipped[0] * 2**10)]).astype(
        np.int64
    )

    def draw(n: int, side: int, noise: Noise) -> Floats:
        added = noise.discrete_laplace(n * WIDE, scale).reshape(n, WIDE)
        return ratio(latents[side] + added, latents, mechanism)

    return Subject("(a) batch-wide matrix norm", epsilon, 0.0, draw, share=5)


def radius_for_diameter_gaussian(mechanism: LatentGaussian) -> Subject:
    """(b): the Gaussian's deviation for one radius although two latents lie two radii apart."""
    latents = np.stack([quantise(row, mechanism) for row in worst(mechanism)])
    deviation = mechanism.sum_deviation_in_steps / 2

    def draw(n: int, side: int, noise: Noise) -> Floats:
        added = noise.gaussian_lattice(n * D, deviation / 2**24).reshape(n, D)
        return ratio(latents[side] + added, latents, mechanism)

    return Subject("(b) radius for diameter, Gaussian", mechanism.epsilon, DELTA, draw)


def deaf(epsilon: float) -> Subject:
    """(c): `sensitivity = min(epsilon / 2, 4)`: the scale is 0.5 for every epsilon up to 8, in a ball of radius 1."""
    unit = LatentLaplace("l1_ball", 1.0 / D, D, 1, "random", min(epsilon / 2, 4.0) / epsilon)
    return shipped(unit, "(c) noise deaf to epsilon", claimed=epsilon)


def float_laplace(epsilon: float) -> Subject:
    """Scale right, arithmetic wrong: x + b log(u) in float64 cannot reach every number, and which depends on x (Mironov 2012)."""
    ends, scale = np.array([1.0, -1.0]), 2.0 / epsilon

    def draw(n: int, side: int, noise: Noise) -> Floats:
        uniform = ((noise.uniform_u64(n) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
        signs = np.where(noise.bernoulli(0.5, n), 1.0, -1.0)
        released = ends[side] + signs * (scale * -np.log(uniform))
        reached = [_reachable(released, end, scale) for end in ends]
        away = [np.abs(released - end) for end in ends]
        exact = np.where(reached[0] == reached[1], 0.0, np.where(reached[0], 100.0, -100.0))
        return np.asarray((away[1] - away[0]) / scale + exact)

    return Subject("float64 Laplace, scale correct", epsilon, 0.0, draw)


def _reachable(released: Floats, end: float, scale: float, width: int = 6) -> NDArray[np.bool_]:
    """Whether some uniform number near the implied one gives exactly this release from `end`."""
    away = released - end
    implied = np.rint(np.exp(-np.abs(away) / scale) * 2.0**53 - 0.5)
    found = np.zeros(len(released), np.bool_)
    for step in range(-width, width + 1):
        uniform = np.clip(implied + step + 0.5, 0.5, 2.0**53 - 0.5) * 2.0**-53
        found |= end + np.sign(away) * (scale * -np.log(uniform)) == released
    return found


# --- the table


def table(
    subjects: Callable[[float], Iterable[Subject]], epsilons: Iterable[float], draws: int
) -> dict[str, dict[str, float]]:
    """{mechanism: {claimed epsilon: lower bound}}."""
    rows: dict[str, dict[str, float]] = {}
    for epsilon in epsilons:
        for subject in subjects(epsilon):
            found = lower_bound(subject, draws, NoiseSource())
            rows.setdefault(subject.name, {})[f"{epsilon:g}"] = round(found, 2)
    return rows


def main() -> None:
    """Print the table, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=100_000)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    began, epsilons = time.process_time(), (1.0, 2.0, 4.0, 8.0)
    good, bad = (table(what, epsilons, arguments.draws) for what in (sound, broken))
    seconds = round(time.process_time() - began, 1)
    if arguments.json:
        print(
            json.dumps(
                {
                    "draws": arguments.draws,
                    "must_pass": good,
                    "must_be_caught": bad,
                    "cpu_s": seconds,
                }
            )
        )
        return
    print(
        f"{arguments.draws:,} draws of each latent (PrivUnit and (a): a fifth), 99.9 % confidence; {seconds} CPU seconds\n"
    )
    print("| lower bound at claimed epsilon = | 1 | 2 | 4 | 8 |\n|---|---|---|---|---|")
    for name, row in (good | bad).items():
        caught = [f"**{row[e]:.2f}**" if row[e] > float(e) else f"{row[e]:.2f}" for e in row]
        print(f"| {name} | {' | '.join(caught)} |")


if __name__ == "__main__":
    main()
