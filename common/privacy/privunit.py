"""PrivUnit: a private direction for one direction, drawn by rejection on an integer lattice.

In: an image's direction as integers int64 [d], public constants, noise. Out: integers [d].
Guarantees: pure epsilon for one image. The comparison with the cap is exact in integers, so no
rounding depends on the image. Running time depends on coins and on the cap's mass alone.
Not covered: a length, more than 64 dimensions, or an epsilon above 16 (rejection gets slow).

Sources: Bhowmick et al. 2018 (arXiv 1812.00984); Asi, Feldman and Talwar 2022 (arXiv 2205.02466).
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from common.errors import Bug
from common.privacy.noise import LATTICE, Noise

LARGEST_DIMENSION = 64
LARGEST_EPSILON = 16.0
SLACK = 2.0**-13  # of epsilon, for directions that are uniform up to rounding
GAMMA_STEPS = 2**20  # gamma is a multiple of 1 / GAMMA_STEPS, rounded down: a larger cap tells less
SHARE_GRID = 256  # values of e0 that are tried
DEVIATION = LATTICE  # of a coordinate of V, in its own integers: 2^24
# Largest coordinate of a direction: keeps <V, v> below 2^53, where float64 sums are exact.
LONGEST = 1 << 18
BLOCKS = (16, 4096)  # fewest and most candidates drawn at a time
# Relative distance to the cap's edge below which the comparison is made in exact integers.
DOUBT = 1e-9


@dataclass(frozen=True)
class Cap:
    """The public constants of a draw, with which two directions differ by at most e^epsilon.

    With a coin of bias p = e^e0 / (1 + e^e0) the draw lies in the cap {V: <V, v> >= gamma |V| |v|},
    otherwise outside it. The cap holds the share 1 / (1 + e^(epsilon - e0)) of all directions,
    whatever v. e0 is chosen by the expected cosine (Asi, Feldman and Talwar 2022).

    `p`: the coin's bias. `gamma_steps / GAMMA_STEPS`: the cap's cosine. `mass`: its share of all
    directions.
    """

    p: float
    gamma_steps: int
    mass: float
    expected_cosine: float

    @property
    def block(self) -> int:
        """Candidates drawn at a time: about three times what the rarer side needs on average."""
        return min(max(BLOCKS[0], round(3.0 / self.mass)), BLOCKS[1])


@lru_cache(maxsize=32)
def cap(dimension: int, epsilon: float) -> Cap:
    """Return the constants with the largest expected cosine for this dimension and epsilon.

    No data enters.
    """
    budget = epsilon - SLACK
    caps = [_cap(dimension, budget, budget * i / SHARE_GRID) for i in range(SHARE_GRID)]
    return max(caps, key=lambda found: found.expected_cosine)


def _cap(dimension: int, epsilon: float, coin_epsilon: float) -> Cap:
    """The cap where the coin spends `coin_epsilon` of epsilon.

    Its mass is 1/2 I_{1 - gamma^2}((d - 1) / 2, 1/2).
    """
    from scipy.special import betainc, betaincinv

    p = 1.0 / (1.0 + math.exp(-coin_epsilon))
    mass = 1.0 / (1.0 + math.exp(epsilon - coin_epsilon))
    half = (dimension - 1) / 2
    steps = math.floor(math.sqrt(1.0 - float(betaincinv(half, 0.5, 2.0 * mass))) * GAMMA_STEPS)
    gamma = steps / GAMMA_STEPS
    mass = 0.5 * float(betainc(half, 0.5, 1.0 - gamma**2))
    log_c = math.lgamma(dimension / 2) - math.lgamma(half) - 0.5 * math.log(math.pi)
    # E[T; T >= gamma] of a uniform cosine T.
    moment = math.exp(log_c + half * math.log1p(-(gamma**2))) / (dimension - 1)
    return Cap(p, steps, mass, moment * (p / mass - (1.0 - p) / (1.0 - mass)))


def draw(
    direction: NDArray[np.int64], dimension: int, epsilon: float, noise: Noise
) -> NDArray[np.int64]:
    """Return one release for one direction: int64 [d] of length 2^24 or more.

    A zero direction draws uniformly, which keeps epsilon. Raises Bug for a direction of another
    shape or with integers above `LONGEST`.
    """
    if direction.shape != (dimension,) or int(np.abs(direction).max(initial=0)) > LONGEST:
        raise Bug(
            f"privunit: expected {dimension} integers of at most {LONGEST}, "
            f"got shape {direction.shape}"
        )
    constants = cap(dimension, epsilon)
    # A zero direction: a uniform one in its place makes the draw uniform, in the same time.
    if not direction.any():
        direction = _directions(BLOCKS[0], dimension, noise)[0] >> 10
    wanted = bool(noise.bernoulli(constants.p, 1)[0])
    while True:
        candidates = _directions(constants.block, dimension, noise)
        inside = in_cap(candidates, direction, constants.gamma_steps)
        hits = np.flatnonzero(inside == wanted)
        if len(hits):
            chosen: NDArray[np.int64] = candidates[hits[0]]
            return chosen


def in_cap(
    candidates: NDArray[np.int64], direction: NDArray[np.int64], gamma_steps: int
) -> NDArray[np.bool_]:
    """Return whether each candidate [n, d] has a cosine of at least gamma with the direction.

    Decided exactly, bool [n].
    """
    floats = candidates.astype(np.float64)
    inner = floats @ direction.astype(np.float64)
    squares = np.einsum("nd,nd->n", floats, floats)
    own = int((direction * direction).sum())
    left = (inner * GAMMA_STEPS) ** 2
    right = float(gamma_steps) ** 2 * own * squares
    inside = (inner >= 0) & (left >= right)

    # Near the cap's edge float64 may err: there the same comparison in exact integers.
    for i in np.flatnonzero(np.abs(left - right) <= DOUBT * right):
        square = sum(int(x) ** 2 for x in candidates[i])
        above = (int(inner[i]) * GAMMA_STEPS) ** 2 >= gamma_steps**2 * own * square
        inside[i] = inner[i] >= 0 and above
    return np.asarray(inside, dtype=np.bool_)


def _directions(count: int, dimension: int, noise: Noise) -> NDArray[np.int64]:
    """Candidates [n, d]: rounded Gaussians of standard deviation 2^24, uniform up to rounding.

    Those shorter than 2^24 are left out; no image decides which. So a candidate stands within
    sqrt(d) / 2^25 of a uniform direction. `SLACK` of epsilon covers that (1e-5 at d = 64).
    """
    drawn = noise.gaussian_lattice(count * dimension, 1.0).reshape(count, dimension)
    kept: NDArray[np.int64] = drawn[(drawn * drawn).sum(axis=1) >= DEVIATION**2]
    return kept
