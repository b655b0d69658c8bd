"""Privatizes images: one noised mean of clipped latents per group, or per single image, decoded.

In: for each group, one array of images per member; the plan's flow; the mechanism; a noise source;
where the plan reduces dimensions, its public basis.
Out: one 8-bit image per group, and the mechanism that was applied.
Guarantees:
   1. encode in batches of one fixed size, so that no image changes another's kernel
   2. a latent that is not finite, or beyond 1e4, is of no image of this flow: the image counts as
      the zero latent
   3. only the released coordinates go on: the top level, or all, or their first public principal
      components
   4. clip per image in float64, then average a patient's images: whatever they show, one patient
      counts as one clipped latent
   5. quantise toward zero to the lattice; the radius is checked in int64
   6. sum over the group's patients in int64: one patient moves it by at most the mechanism's
      sensitivity
   7. discrete Laplace or rounded Gaussian noise, scaled to that sensitivity for k patients (a
      larger group gets the same noise on its sum); PrivUnit draws a direction for the one latent
      instead
   8. divide by the number of patients; all that follows is post-processing
   9. scale to the spread of a latent at the temperature
  10. coordinates that are not released come fresh from the prior, at a temperature of their own;
      decode, clamp, 8 bit
Not covered:
  - who is in a group (group.py)
  - charging the ledger, and keeping the result for a second request (client/daemon, client/single)
  - for groups that the images choose, epsilon is per average and does not cover the choice
A member that counts as the zero latent stays in the group: leaving it out would let its image
decide who is in.

Source: Shibata et al. 2023, with the clip, the lattice and the spread that the paper leaves out
(docs/methods/dp-glow.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from common.arrays import Floats, Images, Integers
from common.devices import exact
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
    "add_noise",
    "clip",
    "clip_images",
    "decode_means",
    "encode_released",
    "match_norm",
    "patient_latent",
    "privatize",
    "quantise",
]

GIANT = 1e100  # larger entries count as this, so that a norm cannot overflow


@dataclass(frozen=True)
class Privatized:
    """uint8 images [G, H, W, C], one per group in the order given, and their mechanism."""

    images: Images
    mechanism: Latent


@exact()
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
    """Return one privatized image per group; the flow is in float32 throughout, on its device.

    `groups[g][p]` holds all images of member p of group g, uint8 [n, H, W, C], n >= 1. For
    `privunit`, and wherever k is 1, a group is one patient. `temperature`: the spread of the noised
    mean. `prior_temperature` (the same by default): that of the coordinates that are not released.
    Both are public and come after the noise. `basis`: public directions of the flow's top level, or
    of all its coordinates. The mechanism has as many coordinates as the basis has directions.
    Raises PolicyError (E-GROUP-SIZE) for a group of fewer than k patients, PolicyError (E-NOISE)
    for a repeatable noise source outside `practice`, ConfigurationError when the mechanism's
    dimension is not the flow's or the basis', RefusedError for a flow whose weights are not finite.
    """
    if not (noise.private or practice):
        raise PolicyError(
            "privatize: the noise source repeats itself; expected NoiseSource", code="E-NOISE"
        )
    _check_dimensions(model, mechanism, basis)
    _check_sizes(groups, mechanism)

    # (1 to 8) each group's noised mean
    means = []
    for group in groups:
        patients = [patient_latent(images, model, mechanism, basis) for images in group]
        means.append(_draw_mean(patients, mechanism, noise))

    # (9, 10) images of the means; the prior's stream is not the privacy noise
    random = torch.Generator().manual_seed(int(noise.uniform_u64(1)[0] >> np.uint64(1)))
    rest = temperature
    if prior_temperature is not None:
        rest = prior_temperature
    return Privatized(decode_means(means, model, (temperature, rest), random, basis), mechanism)


def _check_sizes(groups: Sequence[Sequence[Images]], mechanism: Latent) -> None:
    """Refuse a group of fewer than k patients with images, and more than one for `privunit`."""
    for group in groups:
        if len(group) < mechanism.k or any(len(images) < 1 for images in group):
            raise PolicyError(
                f"privatize: a group has fewer than k={mechanism.k} patients", code="E-GROUP-SIZE"
            )
        if isinstance(mechanism, PrivUnit) and len(group) != 1:
            raise PolicyError(
                f"privatize: privunit takes one patient, got {len(group)}", code="E-GROUP-SIZE"
            )


def _check_dimensions(model: Glow, mechanism: Latent, basis: Basis | None) -> None:
    """Refuse weights that are not finite, and a mechanism of another dimension than the latents."""
    if not all(bool(torch.isfinite(value).all()) for value in model.parameters()):
        raise RefusedError(
            "privatize: the flow has weights that are not finite", hint="take another checkpoint"
        )

    # a basis is of the top level, or of all coordinates
    levels = (model.top_dimension, model.dimension)
    if basis is not None and basis.coordinates not in levels:
        raise ConfigurationError(
            f"privatize: a basis of {basis.coordinates} coordinates, "
            f"expected {levels[0]} or {levels[1]}"
        )

    # the mechanism is of the basis' components, or of a level
    allowed: tuple[int, ...] = levels
    expected = f"{levels[0]} (top) or {levels[1]} (all)"
    if basis is not None:
        allowed = (basis.components,)
        expected = f"the basis' {basis.components}"
    if mechanism.dimension not in allowed:
        raise ConfigurationError(
            f"privatize: mechanism of {mechanism.dimension} coordinates, expected {expected}"
        )


def encode_released(images: Images, model: Glow, dimension: int) -> Floats:
    """Return the last `dimension` latent coordinates of uint8 [N, H, W, C], finite float64 [N, d].

    Steps 1 to 3 without a basis.
    """
    # (1) encode in batches of one fixed size
    latents = encode_images(images, model)
    # (2) count as the zero latent what is of no image of this flow
    unfamiliar = find_unfamiliar([torch.from_numpy(latents)]).numpy()
    latents = np.where(unfamiliar[:, None], 0.0, latents)
    # (3) keep the released coordinates: the top level stands last
    return latents[:, latents.shape[1] - dimension :]


def clip(latents: Floats, mechanism: Latent) -> Floats:
    """Return each row of [N, d] clipped into the mechanism's set on its own, float64 (step 4).

    For `privunit` the set is the sphere: a row is also scaled up to it, and only a zero row stays
    inside.
    """
    latents = np.asarray(latents, dtype=np.float64)
    latents = np.where(np.isfinite(latents), np.clip(latents, -GIANT, GIANT), 0.0)

    # Laplace: a box, or an L1 ball; the radius is the one on the lattice, rounded down
    if isinstance(mechanism, LatentLaplace):
        radius = mechanism.radius_in_steps * mechanism.lattice_step
        if mechanism.clip == "box":
            return np.clip(latents, -radius, radius)
        norms = np.abs(latents).sum(axis=1, keepdims=True)
        return np.asarray(latents * (radius / np.maximum(norms, radius)), dtype=np.float64)

    # Gaussian and PrivUnit: an L2 ball; in units of the largest entry no square over- or underflows
    largest = np.abs(latents).max(axis=1, keepdims=True, initial=0.0)
    units = latents / np.where(largest > 0, largest, 1.0)
    norms = np.sqrt(np.square(units).sum(axis=1, keepdims=True))
    on_sphere = units * (mechanism.radius / np.maximum(norms, 1.0))
    if isinstance(mechanism, PrivUnit):
        return np.asarray(on_sphere, dtype=np.float64)
    outside = largest * norms > mechanism.radius
    return np.asarray(np.where(outside, on_sphere, latents), dtype=np.float64)


def quantise(latent: Floats, mechanism: Latent) -> Integers:
    """Return int64 [d] lattice units, rounded toward zero (step 5).

    Rounding to the nearest could leave the clip set. Raises Bug outside the set.
    """
    # toward zero, then check the radius in whole numbers
    integers = np.trunc(latent / mechanism.lattice_step).astype(np.int64)
    magnitude = np.abs(integers)
    if isinstance(mechanism, LatentLaplace):
        reached = int(magnitude.sum())
        if mechanism.clip == "box":
            reached = int(magnitude.max(initial=0))
        allowed = mechanism.radius_in_steps
    else:
        reached = int(np.square(magnitude).sum())
        allowed = mechanism.squared_radius_in_steps
    if reached > allowed:
        raise Bug(f"privatize: a latent reaches {reached} lattice steps, the clip set {allowed}")
    return integers


def patient_latent(
    images: Images, model: Glow, mechanism: Latent, basis: Basis | None = None
) -> Integers:
    """Return one patient's latent on the lattice: the mean of the clipped latents of all images.

    These are steps 1 to 5.
    """
    # (1 to 4) clip each image; (4, 5) average, quantise
    return quantise(clip_images(images, model, mechanism, basis).mean(axis=0), mechanism)


def clip_images(
    images: Images, model: Glow, mechanism: Latent, basis: Basis | None = None
) -> Floats:
    """Return the clipped latents of uint8 [N, H, W, C], float64 [N, d] (steps 1 to 4)."""
    # (1, 2, 3) the released coordinates of each image
    if basis is None:
        rows = encode_released(images, model, mechanism.dimension)
    else:
        # (3) reduce to public components; the zero latent stays zero
        rows = encode_released(images, model, basis.coordinates)
        seen = rows.any(axis=1, keepdims=True)
        rows = np.where(seen, basis.reduce(rows), 0.0)
    # (4) clip each image
    return clip(rows, mechanism)


def add_noise(sums: Integers, mechanism: Latent, noise: Noise) -> Integers:
    """Return the sums [G, d] with one draw of noise a row, int64 [G, d] (step 7).

    For `privunit` each row is a drawn direction, of any length.
    """
    if isinstance(mechanism, PrivUnit):
        drawn = [privunit.draw(row, mechanism.dimension, mechanism.epsilon, noise) for row in sums]
        return np.stack(drawn)
    if isinstance(mechanism, LatentLaplace):
        added = noise.discrete_laplace(sums.size, mechanism.sum_scale_in_steps)
    else:
        added = noise.gaussian_lattice(sums.size, mechanism.sum_deviation_in_steps / LATTICE)
    return np.asarray(sums + added.reshape(sums.shape), dtype=np.int64)


def _draw_mean(patients: Sequence[Integers], mechanism: Latent, noise: Noise) -> Floats:
    """Draw one group's noised mean, float64 [d] (steps 6 to 8)."""
    # (6) sum over the patients
    total: Integers = np.stack(list(patients)).sum(axis=0, dtype=np.int64)
    # (7) add noise
    noised = add_noise(total[None], mechanism, noise)[0].astype(np.float64)
    # (8) divide by the number of patients, or scale to the sphere
    factor = mechanism.lattice_step / len(patients)
    if isinstance(mechanism, PrivUnit):
        factor = mechanism.radius / float(np.linalg.norm(noised))
    return np.asarray(noised * factor, dtype=np.float64)


def match_norm(mean: Floats, temperature: float) -> Floats:
    """Return the noised mean at the norm of a latent at this temperature (step 9).

    That norm is temperature * sqrt(d). Zero stays zero.
    """
    # Not y / sqrt(1/k + v), the deviation for independent latents: members of a stratum share their
    # mean, so a group's mean is larger. The norm needs no guess of by how much.
    norm = float(np.linalg.norm(mean))
    if not norm > 0:
        return mean
    return mean * (temperature * float(np.sqrt(mean.size)) / norm)


@torch.no_grad()
def decode_means(
    means: Sequence[Floats],
    model: Glow,
    temperatures: tuple[float, float],
    random: torch.Generator,
    basis: Basis | None = None,
) -> Images:
    """Decode means to uint8 [G, H, W, C]; `temperatures`: of what is released, and of the rest."""
    images = [np.empty((0, model.size_px, model.size_px, model.channels), np.uint8)]
    for start in range(0, len(means), BATCH):
        # (9) scale to the spread of a latent
        some = means[start : start + BATCH]
        released = np.stack([match_norm(mean, temperatures[0]) for mean in some])

        # (10) draw the rest from the prior
        drawn = model.prior(len(released), temperatures[1], random)
        fresh = torch.cat([part.flatten(1) for part in drawn], dim=1).double().cpu().numpy()
        if basis is not None:
            released = basis.restore(released, fresh[:, model.dimension - basis.coordinates :])

        # (10) decode
        whole = np.concatenate([fresh[:, : model.dimension - released.shape[1]], released], axis=1)
        images.append(decode_latents(whole, model))
    return np.concatenate(images)
