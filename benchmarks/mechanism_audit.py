"""What many draws of two fixed latents prove about each mechanism's epsilon: a lower bound.

    python -m benchmarks.mechanism_audit [--json [FILE]] [--draws 100000]

1. Two neighbouring latents, the worst in the clip set, go through the product's clip and noise.
2. The attacker decides by likelihood ratio, with a threshold from one half of the draws.
3. On the other half Clopper and Pearson bound the true and the false positive rate at 99.9 %.
4. Epsilon is at least log((true - delta) / false). A bound above the claim proves a fault.

Sound mechanisms must stay below the claim and broken ones must not. The broken ones: three faults
of public code (Tölle et al. 2022), epsilon per coordinate sold as per image, and floating-point
Laplace noise (Mironov 2012).
Not covered: a low bound proves little; 10^5 draws cannot show more than 8.8.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

from benchmarks import report
from client.synthesize.privatize import add_noise, clip, quantise
from common.arrays import Floats
from common.privacy.latent_mechanisms import Latent, LatentGaussian, LatentLaplace, PrivUnit
from common.privacy.noise import Noise, NoiseSource

CONFIDENCE = 0.999
D = 16  # coordinates
WIDE = 256  # coordinates of the batch-wide norm
DELTA = 1e-5
SLOW = 5  # PrivUnit gets one fifth of the draws


@dataclass(frozen=True)
class Subject:
    """A mechanism under audit.

    `draw(n, side, noise)` gives n log-likelihood ratios of releases of latent `side` (0 or 1).
    """

    name: str
    claimed: float
    delta: float
    draw: Callable[[int, int, Noise], Floats]
    share: int = 1  # of the draws: one in so many


def lower_bound(subject: Subject, draws: int, noise: Noise) -> float:
    """A lower bound on epsilon at 99.9 % confidence, from `draws` releases of each latent."""
    count = draws // subject.share
    own = subject.draw(count, 0, noise)
    other = -subject.draw(count, 1, noise)
    bounds = [_one_way(own, -other, subject.delta), _one_way(other, -own, subject.delta)]
    return max(0.0, *bounds)


def _one_way(own: Floats, other: Floats, delta: float) -> float:
    """The bound of `ratio >= threshold`: threshold from the first halves, rates from the second."""
    half = len(own) // 2
    grid = np.unique(np.quantile(own[:half], np.linspace(0, 1, 400)))
    threshold = max(grid, key=lambda t: _bound(own[:half] >= t, other[:half] >= t, delta))
    return _bound(own[half:] >= threshold, other[half:] >= threshold, delta)


def _bound(true: NDArray[np.bool_], false: NDArray[np.bool_], delta: float) -> float:
    """log((least true rate - delta) / largest false rate), each at 99.95 % (Clopper, Pearson)."""
    tail = (1 - CONFIDENCE) / 2
    hits = int(true.sum())
    alarms = int(false.sum())
    least = float(beta.ppf(tail, hits, len(true) - hits + 1)) if hits else 0.0
    most = (
        float(beta.ppf(1 - tail, alarms + 1, len(false) - alarms)) if alarms < len(false) else 1.0
    )
    return math.log((least - delta) / most) if least > delta else -math.inf


# --- what is shipped


def subject_of(
    mechanism: Latent, name: str, *, claimed: float | None = None, noisy: Latent | None = None
) -> Subject:
    """A mechanism on its two worst latents; a broken one claims another epsilon than `noisy`'s."""
    noisy = noisy or mechanism
    ends = worst(mechanism)
    latents = np.stack([quantise(clip(row[None], mechanism)[0], mechanism) for row in ends])

    def draw(n: int, side: int, noise: Noise) -> Floats:
        return ratio(
            add_noise(np.repeat(latents[side : side + 1], n, axis=0), noisy, noise),
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
    """Two latents [2, d] as far apart as the clip set allows: opposite corners or axis ends."""
    d = mechanism.dimension
    if mechanism.clip == "box":
        far = np.ones(d) * mechanism.radius
    elif mechanism.clip == "l1_ball":
        far = np.eye(d)[0] * mechanism.radius * d
    else:
        far = np.eye(d)[0] * mechanism.radius
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
        subject_of(ball(epsilon), "lattice Laplace, l1 ball"),
        subject_of(box(epsilon), "lattice Laplace, box"),
        subject_of(LatentGaussian(D, 1, "random", epsilon, DELTA), "analytic Gaussian, l2 ball"),
        subject_of(PrivUnit(D, epsilon), "PrivUnit"),
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
    half = ball(epsilon)
    gauss = LatentGaussian(D, 1, "random", epsilon, DELTA)
    per_coordinate = replace(half, clip="box", radius=3.0, scale=2 * 3.0 / epsilon)
    return [
        batch_norm(epsilon),
        subject_of(
            half,
            "(b) radius for diameter, Laplace",
            claimed=epsilon,
            noisy=replace(half, scale=half.scale / 2),
        ),
        radius_for_diameter_gaussian(gauss),
        deaf(epsilon),
        subject_of(
            per_coordinate, "epsilon per coordinate sold as per image, box", claimed=epsilon
        ),
        float_laplace(epsilon),
    ]


def batch_norm(epsilon: float) -> Subject:
    """(a): the batch clipped by its matrix norm: a sample keeps d times its radius."""
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
    """(c): `sensitivity = min(epsilon / 2, 4)`, so the scale is 0.5 for every epsilon up to 8."""
    unit = LatentLaplace("l1_ball", 1.0 / D, D, 1, "random", min(epsilon / 2, 4.0) / epsilon)
    return subject_of(unit, "(c) noise deaf to epsilon", claimed=epsilon)


def float_laplace(epsilon: float) -> Subject:
    """Scale right, arithmetic wrong: which float64 numbers x + b log(u) reaches depends on x."""
    ends = np.array([1.0, -1.0])
    scale = 2.0 / epsilon

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


def bounds_table(found: dict[str, dict[str, float]], draws: int) -> report.Table:
    """The rows as a table; what is caught is bold."""
    rows = []
    for name, row in found.items():
        cells = []
        for claimed, bound in row.items():
            caught = bound > float(claimed)
            cells.append(f"**{bound:.2f}**" if caught else f"{bound:.2f}")
        rows.append((name, *cells))
    title = (
        f"Lower bound on ε, {draws:,} draws of each latent "
        "(PrivUnit and (a): a fifth), 99.9 % confidence"
    )
    return report.Table(title, ("lower bound at claimed ε =", "1", "2", "4", "8"), tuple(rows))


def targets(
    good: dict[str, dict[str, float]], bad: dict[str, dict[str, float]]
) -> list[report.Target]:
    """Sound mechanisms stay below every claim; broken ones are caught at small claims."""
    quiet = [name for name, row in good.items() if all(row[e] <= float(e) for e in row)]
    caught = [name for name, row in bad.items() if row["1"] > 1 and row["2"] > 2]
    return [
        report.Target(
            "sound mechanisms stay below their claim at ε = 1, 2, 4, 8",
            f"{len(quiet)} of {len(good)}",
            len(quiet) == len(good),
        ),
        report.Target(
            "every broken mechanism is caught at a claim of 1 and 2",
            f"{len(caught)} of {len(bad)}",
            len(caught) == len(bad),
        ),
    ]


def main() -> None:
    """Print the table, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=100_000)
    report.add_json(parser)
    arguments = parser.parse_args()
    began = time.process_time()
    epsilons = (1.0, 2.0, 4.0, 8.0)
    good = table(sound, epsilons, arguments.draws)
    bad = table(broken, epsilons, arguments.draws)
    figures = {
        "draws": arguments.draws,
        "must_pass": good,
        "must_be_caught": bad,
        "cpu_s": round(time.process_time() - began, 1),
    }
    tables = [bounds_table(good | bad, arguments.draws)]
    report.give(arguments.json, "mechanism_audit", tables, figures, targets(good, bad))


if __name__ == "__main__":
    main()
