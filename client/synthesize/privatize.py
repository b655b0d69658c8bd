"""Privatized averages: one Laplace-noised mean of clipped latents per group, decoded to an image.

In: for each group, one array of images per member patient; the plan's flow; the mechanism; a noise source.
Out: one 8-bit image per group, and the mechanism that was applied.
Guaranteed (numbers as in methods/dp-glow.md section 5, in the code and in the tests):
 1. encode in batches of one fixed size, so that no image changes another's kernel
 2. what is not finite becomes 0
 3. only the released coordinates go on: the top level, or all
 4. clip per image in float64, then average a patient's images: whatever they show, one patient counts as one clipped latent
 5. quantise toward zero to the lattice; the radius is checked in int64
 6. sum over the group's patients in int64: one patient moves it by at most the mechanism's sensitivity
 7. discrete Laplace noise, scaled to that sensitivity for k patients (a larger group gets the same noise on its sum)
 8. divide by the number of patients; all that follows is post-processing
 9. scale to the spread of a latent at the temperature
10. coordinates that are not released come fresh from the prior; decode, clamp, 8 bit
Not: who is in a group (group.py), charging the ledger before the call, or keeping the result so that a second request gets the
same bytes (client/work.py). For `similar` groups the epsilon is per average and the choice of the group is not covered.

Shibata et al. 2023 (arXiv 2212.10688), with the clip, the lattice and the spread that the paper leaves out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.errors import Bug, ConfigurationError, PolicyError
from common.models.glow import Glow, from_uint8, to_uint8
from common.privacy.mechanisms import LatentLaplace
from common.privacy.noise import Noise

GIANT = 1e100  # larger entries count as this, so that a norm cannot overflow
BATCH = 16  # images per encoder and decoder call, whatever a group holds

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
Images = NDArray[np.uint8]


@dataclass(frozen=True)
class Privatized:
    """uint8 images [G, H, W, C], one per group in the order given, and the mechanism they were drawn from."""

    images: Images
    mechanism: LatentLaplace


def privatize(
    groups: Sequence[Sequence[Images]],
    model: Glow,
    mechanism: LatentLaplace,
    temperature: float,
    noise: Noise,
    *,
    practice: bool = False,
) -> Privatized:
    """One privatized average per group.

    `groups[g][p]` holds all images of member p of group g, uint8 [n, H, W, C], n >= 1. `temperature` is the spread of the
    noised mean and of the coordinates that are not released. Raises PolicyError (E-GROUP-SIZE) for a group of fewer than k
    patients, PolicyError (E-NOISE) for a repeatable noise source outside `practice`, ConfigurationError when the mechanism's
    dimension is not the flow's.
    """
    if not (noise.private or practice):
        raise PolicyError("privatize: the noise source repeats itself; expected NoiseSource", code="E-NOISE")
    if mechanism.dimension not in (model.top_dimension, model.dimension):
        expected = f"{model.top_dimension} (top) or {model.dimension} (all)"
        raise ConfigurationError(f"privatize: mechanism of {mechanism.dimension} coordinates, expected {expected}")
    for group in groups:
        if len(group) < mechanism.k or any(len(images) < 1 for images in group):
            raise PolicyError(f"privatize: a group has fewer than k={mechanism.k} patients", code="E-GROUP-SIZE")
    means = [_noised_mean(_patients(group, model, mechanism), mechanism, noise) for group in groups]
    random = torch.Generator().manual_seed(int(noise.uniform_u64(1)[0] >> np.uint64(1)))
    return Privatized(_decode(means, model, temperature, random), mechanism)


def encode_released(images: Images, model: Glow, dimension: int) -> Floats:
    """Steps 1 to 3: the released latent coordinates of uint8 [N, H, W, C], float64 [N, d], every entry finite."""
    rows = []
    with torch.no_grad():
        for start in range(0, len(images), BATCH):  # 1
            some = images[start : start + BATCH]
            padded = np.concatenate([some, np.zeros((BATCH - len(some), *some.shape[1:]), np.uint8)])
            parts, _ = model.encode(from_uint8(padded))
            row = torch.cat([part.flatten(1) for part in parts], dim=1)[: len(some)]
            rows.append(row.double().numpy())
    latents = np.concatenate(rows)
    latents = np.where(np.isfinite(latents), latents, 0.0)  # 2
    return latents[:, latents.shape[1] - dimension :]  # 3: the top level stands last


def clip(latents: Floats, mechanism: LatentLaplace) -> Floats:
    """Step 4: each row of [N, d] on its own into the clip set, float64; the radius is the one on the lattice, rounded down."""
    latents = np.asarray(latents, dtype=np.float64)
    latents = np.where(np.isfinite(latents), np.clip(latents, -GIANT, GIANT), 0.0)
    radius = mechanism.radius_in_steps * mechanism.lattice_step
    if mechanism.clip == "box":
        return np.clip(latents, -radius, radius)
    norms = np.abs(latents).sum(axis=1, keepdims=True)
    clipped: Floats = latents * (radius / np.maximum(norms, radius))
    return clipped


def quantise(latent: Floats, mechanism: LatentLaplace) -> Integers:
    """Step 5: int64 [d] lattice units, toward zero (to the nearest could leave the clip set). Raises Bug outside the set."""
    integers = np.trunc(latent / mechanism.lattice_step).astype(np.int64)
    magnitude = np.abs(integers)
    reached = int(magnitude.max(initial=0) if mechanism.clip == "box" else magnitude.sum())
    if reached > mechanism.radius_in_steps:
        raise Bug(f"privatize: a latent reaches {reached} lattice steps, the clip set {mechanism.radius_in_steps}")
    return integers


def _patients(group: Sequence[Images], model: Glow, mechanism: LatentLaplace) -> list[Integers]:
    return [patient_latent(images, model, mechanism) for images in group]


def patient_latent(images: Images, model: Glow, mechanism: LatentLaplace) -> Integers:
    """Steps 1 to 5 for one patient: the mean of the clipped latents of all their images, on the lattice."""
    clipped = clip(encode_released(images, model, mechanism.dimension), mechanism)
    return quantise(clipped.mean(axis=0), mechanism)


def _noised_mean(patients: Sequence[Integers], mechanism: LatentLaplace, noise: Noise) -> Floats:
    """Steps 6 to 8 for one group: float64 [d]."""
    total = np.sum(patients, axis=0, dtype=np.int64)  # 6
    noised = total + noise.discrete_laplace(mechanism.dimension, mechanism.sum_scale_in_steps)  # 7
    return np.asarray(noised * (mechanism.lattice_step / len(patients)), dtype=np.float64)  # 8


def matched(mean: Floats, temperature: float) -> Floats:
    """Step 9: the noised mean at norm temperature * sqrt(d), the norm of a latent drawn at that temperature; zero stays zero.

    Deviates from y / sqrt(1/k + v): members of a stratum share their mean, so a group's mean is larger than independent
    latents would make it, and the norm needs no guess of by how much.
    """
    norm = float(np.linalg.norm(mean))
    return mean * (temperature * float(np.sqrt(mean.size)) / norm) if norm > 0 else mean


@torch.no_grad()
def _decode(means: Sequence[Floats], model: Glow, temperature: float, random: torch.Generator) -> Images:
    """Steps 9 and 10: uint8 [G, H, W, C]."""
    images = [np.empty((0, model.size_px, model.size_px, model.channels), np.uint8)]
    for start in range(0, len(means), BATCH):
        some = [matched(mean, temperature) for mean in means[start : start + BATCH]]  # 9
        released = torch.from_numpy(np.stack(some)).float()
        fresh = torch.cat([part.flatten(1) for part in model.prior(len(released), temperature, random)], dim=1)
        whole = torch.cat([fresh[:, : model.dimension - released.shape[1]], released], dim=1)
        images.append(to_uint8(model.decode(_parts(whole, model))))
    return np.concatenate(images)


def _parts(flat: Tensor, model: Glow) -> list[Tensor]:
    """The latent parts of [N, D], finest level first."""
    sizes = [int(np.prod(shape)) for shape in model.part_shapes]
    pieces = torch.split(flat, sizes, dim=1)
    return [piece.view(-1, *shape) for piece, shape in zip(pieces, model.part_shapes, strict=True)]
