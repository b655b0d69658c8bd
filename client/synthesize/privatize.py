"""Privatized images: one noised mean of clipped latents per group (or per single image), decoded to an image.

In: for each group, one array of images per member patient; the plan's flow; the mechanism; a noise source; where the plan
reduces dimensions, its public basis. Out: one 8-bit image per group, and the mechanism that was applied.
Guaranteed (numbers as in methods/dp-glow.md section 5, in the code and in the tests):
 1. encode in batches of one fixed size, so that no image changes another's kernel
 2. a latent that is not finite, or beyond 1e4, is of no image of this flow: the image counts as the zero latent
 3. only the released coordinates go on: the top level, or all, or their first public principal components
 4. clip per image in float64, then average a patient's images: whatever they show, one patient counts as one clipped latent
 5. quantise toward zero to the lattice; the radius is checked in int64
 6. sum over the group's patients in int64: one patient moves it by at most the mechanism's sensitivity
 7. discrete Laplace or rounded Gaussian noise, scaled to that sensitivity for k patients (a larger group gets the same noise on
    its sum); PrivUnit draws a direction for the one latent instead
 8. divide by the number of patients; all that follows is post-processing
 9. scale to the spread of a latent at the temperature
10. coordinates that are not released come fresh from the prior, at a temperature of their own; decode, clamp, 8 bit
Not: who is in a group (group.py), charging the ledger before the call, or keeping the result so that a second request gets the
same bytes (client/daemon/site.py, client/single/single.py). For groups that the images choose, epsilon is per average and the choice is not
covered. A member that counts as the zero latent stays in the group: leaving it out would let its image decide who is in.

Shibata et al. 2023 (arXiv 2212.10688), with the clip, the lattice and the spread that the paper leaves out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from common.arrays import Floats, Images, Integers
from common.errors import Bug, ConfigurationError, PolicyError, RefusedError
from common.models.basis import Basis
from common.models.glow import Glow, find_unfamiliar
from common.models.latents import BATCH, decode_latents, encode_images
from common.privacy import privunit
from common.privacy.latent_mechanisms import Latent, LatentLaplace, PrivUnit
from common.privacy.noise import LATTICE, Noise

__all__ = [
    "BATCH",
    "Privatized",
    "clip",
    "encode_released",
    "matched",
    "noised_sums",
    "patient_latent",
    "privatize",
    "quantise",
]

GIANT = 1e100  # larger entries count as this, so that a norm cannot overflow


@dataclass(frozen=True)
class Privatized:
    """uint8 images [G, H, W, C], one per group in the order given, and the mechanism they were drawn from."""

    images: Images
    mechanism: Latent


def privatize(
    groups: Sequence[Sequence[Images]],
    model: Glow,
    mechanism: Latent,
    temperature: float,
    noise: Noise,
    *,
    prior_temperature: float | None = None,
    basis: Basis | None = None,
    practice: bool = False,
) -> Privatized:
    """One privatized image per group.

    `groups[g][p]` holds all images of member p of group g, uint8 [n, H, W, C], n >= 1; for `privunit`, and wherever k is 1, a
    group is one patient. `temperature` is the spread of the noised mean, `prior_temperature` (the same by default) that of the
    coordinates that are not released: fine grain where they are the lower levels. Both are public and come after the noise.
    `basis`: public directions of the flow's top level or of all its coordinates; the mechanism then has as many coordinates as
    it has.
    Raises PolicyError (E-GROUP-SIZE) for a group of fewer than k patients, PolicyError (E-NOISE) for a repeatable noise source
    outside `practice`, ConfigurationError when the mechanism's dimension is not the flow's or the basis', RefusedError for a
    flow whose weights are not finite.
    """
    if not (noise.private or practice):
        raise PolicyError(
            "privatize: the noise source repeats itself; expected NoiseSource", code="E-NOISE"
        )
    _check_dimensions(model, mechanism, basis)
    for group in groups:
        if len(group) < mechanism.k or any(len(images) < 1 for images in group):
            raise PolicyError(
                f"privatize: a group has fewer than k={mechanism.k} patients", code="E-GROUP-SIZE"
            )
        if isinstance(mechanism, PrivUnit) and len(group) != 1:
            raise PolicyError(
                f"privatize: privunit takes one patient, got {len(group)}", code="E-GROUP-SIZE"
            )
    means = [
        _noised_mean(_patients(group, model, mechanism, basis), mechanism, noise)
        for group in groups
    ]
    random = torch.Generator().manual_seed(int(noise.uniform_u64(1)[0] >> np.uint64(1)))
    rest = temperature if prior_temperature is None else prior_temperature
    return Privatized(_decode(means, model, (temperature, rest), random, basis), mechanism)


def _check_dimensions(model: Glow, mechanism: Latent, basis: Basis | None) -> None:
    """The mechanism privatizes exactly the coordinates that there are, of a flow that has numbers for weights."""
    if not all(bool(torch.isfinite(value).all()) for value in model.parameters()):
        raise RefusedError(
            "privatize: the flow has weights that are not finite", hint="take another checkpoint"
        )
    levels = (model.top_dimension, model.dimension)
    if basis is not None and basis.coordinates not in levels:
        raise ConfigurationError(
            f"privatize: a basis of {basis.coordinates} coordinates, expected {levels[0]} or {levels[1]}"
        )
    allowed = levels if basis is None else (basis.components,)
    if mechanism.dimension not in allowed:
        expected = (
            f"{levels[0]} (top) or {levels[1]} (all)"
            if basis is None
            else f"the basis' {basis.components}"
        )
        raise ConfigurationError(
            f"privatize: mechanism of {mechanism.dimension} coordinates, expected {expected}"
        )


def encode_released(images: Images, model: Glow, dimension: int) -> Floats:
    """Steps 1 to 3 without a basis: the last `dimension` latent coordinates of uint8 [N, H, W, C], float64 [N, d], finite."""
    latents = encode_images(images, model)  # 1, 2
    wild = find_unfamiliar([torch.from_numpy(latents)]).numpy()
    latents = np.where(wild[:, None], 0.0, latents)
    return latents[:, latents.shape[1] - dimension :]  # 3: the top level stands last


def clip(latents: Floats, mechanism: Latent) -> Floats:
    """Step 4: each row of [N, d] on its own into the clip set, float64; the radius is the one on the lattice, rounded down.

    For `privunit` the set is the sphere: a row is also scaled up to it, and only a zero row stays inside.
    """
    latents = np.asarray(latents, dtype=np.float64)
    latents = np.where(np.isfinite(latents), np.clip(latents, -GIANT, GIANT), 0.0)
    if isinstance(mechanism, LatentLaplace):
        radius = mechanism.radius_in_steps * mechanism.lattice_step
        if mechanism.clip == "box":
            return np.clip(latents, -radius, radius)
        norms = np.abs(latents).sum(axis=1, keepdims=True)
        return np.asarray(latents * (radius / np.maximum(norms, radius)), dtype=np.float64)
    largest = np.abs(latents).max(axis=1, keepdims=True, initial=0.0)
    units = latents / np.where(largest > 0, largest, 1.0)  # so that no square vanishes or overflows
    norms = np.sqrt(np.square(units).sum(axis=1, keepdims=True))
    on_sphere = units * (mechanism.radius / np.maximum(norms, 1.0))
    if isinstance(mechanism, PrivUnit):
        return np.asarray(on_sphere, dtype=np.float64)
    return np.asarray(
        np.where(largest * norms > mechanism.radius, on_sphere, latents), dtype=np.float64
    )


def quantise(latent: Floats, mechanism: Latent) -> Integers:
    """Step 5: int64 [d] lattice units, toward zero (to the nearest could leave the clip set). Raises Bug outside the set."""
    integers = np.trunc(latent / mechanism.lattice_step).astype(np.int64)
    magnitude = np.abs(integers)
    if isinstance(mechanism, LatentLaplace):
        reached = int(magnitude.max(initial=0) if mechanism.clip == "box" else magnitude.sum())
        allowed = mechanism.radius_in_steps
    else:
        reached = int(np.square(magnitude).sum())
        allowed = mechanism.squared_radius_in_steps
    if reached > allowed:
        raise Bug(f"privatize: a latent reaches {reached} lattice steps, the clip set {allowed}")
    return integers


def _patients(
    group: Sequence[Images], model: Glow, mechanism: Latent, basis: Basis | None = None
) -> list[Integers]:
    return [patient_latent(images, model, mechanism, basis) for images in group]


def patient_latent(
    images: Images, model: Glow, mechanism: Latent, basis: Basis | None = None
) -> Integers:
    """Steps 1 to 5 for one patient: the mean of the clipped latents of all their images, on the lattice."""
    rows = encode_released(
        images, model, mechanism.dimension if basis is None else basis.coordinates
    )
    if basis is not None:
        seen = rows.any(axis=1, keepdims=True)
        rows = np.where(seen, basis.reduce(rows), 0.0)  # 3; the zero latent stays zero
    return quantise(clip(rows, mechanism).mean(axis=0), mechanism)


def noised_sums(sums: Integers, mechanism: Latent, noise: Noise) -> Integers:
    """Step 7: one draw for each row of the sums [G, d], int64 [G, d]; `privunit`: its direction, of any length."""
    if isinstance(mechanism, PrivUnit):
        drawn = [privunit.draw(row, mechanism.dimension, mechanism.epsilon, noise) for row in sums]
        return np.stack(drawn)
    if isinstance(mechanism, LatentLaplace):
        added = noise.discrete_laplace(sums.size, mechanism.sum_scale_in_steps)
    else:
        added = noise.gaussian_lattice(sums.size, mechanism.sum_deviation_in_steps / LATTICE)
    return np.asarray(sums + added.reshape(sums.shape), dtype=np.int64)


def _noised_mean(patients: Sequence[Integers], mechanism: Latent, noise: Noise) -> Floats:
    """Steps 6 to 8 for one group: float64 [d]."""
    total: Integers = np.stack(list(patients)).sum(axis=0, dtype=np.int64)  # 6
    noised = noised_sums(total[None], mechanism, noise)[0].astype(np.float64)  # 7
    if isinstance(mechanism, PrivUnit):
        return np.asarray(
            noised * (mechanism.radius / np.linalg.norm(noised)), dtype=np.float64
        )  # 8
    return np.asarray(noised * (mechanism.lattice_step / len(patients)), dtype=np.float64)  # 8


def matched(mean: Floats, temperature: float) -> Floats:
    """Step 9: the noised mean at norm temperature * sqrt(d), the norm of a latent drawn at that temperature; zero stays zero.

    Deviates from y / sqrt(1/k + v): members of a stratum share their mean, so a group's mean is larger than independent
    latents would make it, and the norm needs no guess of by how much.
    """
    norm = float(np.linalg.norm(mean))
    return mean * (temperature * float(np.sqrt(mean.size)) / norm) if norm > 0 else mean


@torch.no_grad()
def _decode(
    means: Sequence[Floats],
    model: Glow,
    temperatures: tuple[float, float],
    random: torch.Generator,
    basis: Basis | None = None,
) -> Images:
    """Steps 9 and 10: uint8 [G, H, W, C]; `temperatures` of what is released and of the rest."""
    images = [np.empty((0, model.size_px, model.size_px, model.channels), np.uint8)]
    for start in range(0, len(means), BATCH):
        released = np.stack(
            [matched(mean, temperatures[0]) for mean in means[start : start + BATCH]]
        )  # 9
        drawn = model.prior(len(released), temperatures[1], random)
        fresh = torch.cat([part.flatten(1) for part in drawn], dim=1).double().numpy()
        if basis is not None:
            released = basis.restore(released, fresh[:, model.dimension - basis.coordinates :])
        whole = np.concatenate([fresh[:, : model.dimension - released.shape[1]], released], axis=1)
        images.append(decode_latents(whole, model))
    return np.concatenate(images)
