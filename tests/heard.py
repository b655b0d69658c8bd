"""What the canaries and trained tensors of an honest model hear, drawn from its closed form."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from common.privacy.canaries import Canaries, Secret
from common.privacy.mechanisms import SubsampledGaussian
from common.privacy.noise import LATTICE, Noise
from common.privacy.tally import Tally


def honest_tally(
    secret: Secret,
    event: SubsampledGaussian,
    clip: float,
    divisor: float,
    noise: Noise,
    sizes: Sequence[int] = (),
    *,
    louder: float = 1.0,
    raw: float = 1.0,
    patients: int = 0,
) -> Tally:
    """The tally of `event.steps` private steps without a patient's gradient.

    `sizes`: of the trained tensors; by default one tensor of all. `louder`: the noise over the
    stated one. `raw`: a canary's gradient after the clip, in clip norms.
    """
    canaries = Canaries(secret)
    own, inside = canaries.own, canaries.inside
    sizes = list(sizes) or [event.dimension - own]
    ends = np.cumsum(sizes)[:-1]
    unit = clip / divisor
    sigma = event.noise_multiplier * louder
    for _ in range(event.steps):
        drawn = canaries.sampled(noise.bernoulli(event.q, own + inside))
        z = np.zeros(sum(sizes) + own)
        if sigma:
            z = noise.gaussian_lattice(len(z), sigma) * (unit / LATTICE)
        shares = np.zeros(own), np.zeros(inside)
        shares[0][drawn[0]] = raw * unit
        shares[1][drawn[1]] = raw * unit
        along = canaries.project(z[secret.places])
        canaries.observe(drawn, z[sum(sizes) :] + shares[0], along + shares[1])
        squares = np.array([float(part @ part) for part in np.split(z[: sum(sizes)], ends)])
        canaries.observe_release(sizes, squares, patients)
    return canaries.tally()
