"""A flow's latent codes as flat rows, and images of such rows.

In: uint8 images, or float64 rows [N, D].
Out: the other of the two.
Guarantees: an image's row does not depend on the images beside it; rows are finite.
Not covered: privacy.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from common.arrays import Floats, Images
from common.models.draws import device_of
from common.models.glow import Glow
from common.models.glow_pixels import from_uint8, to_uint8

BATCH = 16  # images per encoder and decoder call, whatever a group holds


def encode_images(images: Images, model: Glow) -> Floats:
    """Return latent codes [N, D] of uint8 [N, H, W, C], float64, finest level first, top last.

    A code that is not finite becomes a row of zeros.
    """
    rows = []
    device = device_of(model)
    with torch.no_grad():
        for start in range(0, len(images), BATCH):
            # every batch has one size, so that an image's code is the same in each
            some = images[start : start + BATCH]
            missing = np.zeros((BATCH - len(some), *some.shape[1:]), np.uint8)
            parts, _ = model.encode(from_uint8(np.concatenate([some, missing]), device=device))
            flat = torch.cat([part.flatten(1) for part in parts], dim=1)
            rows.append(flat[: len(some)].double().cpu().numpy())

    # a code that is not finite becomes zeros
    latents = np.concatenate(rows)
    finite = np.isfinite(latents).all(axis=1, keepdims=True)
    return np.asarray(np.where(finite, latents, 0.0), dtype=np.float64)


def decode_latents(latents: Floats, model: Glow) -> Images:
    """Return uint8 [N, H, W, C] of latent codes [N, D]: decoded, clamped, 8 bit."""
    images = [np.empty((0, model.size_px, model.size_px, model.channels), np.uint8)]
    device = device_of(model)
    for start in range(0, len(latents), BATCH):
        whole = torch.from_numpy(latents[start : start + BATCH]).float().to(device)
        images.append(to_uint8(model.decode(_split_parts(whole, model))))
    return np.concatenate(images)


def _split_parts(flat: Tensor, model: Glow) -> list[Tensor]:
    """The latent parts of [N, D], finest level first."""
    sizes = [int(np.prod(shape)) for shape in model.part_shapes]
    pieces = torch.split(flat, sizes, dim=1)
    return [piece.view(-1, *shape) for piece, shape in zip(pieces, model.part_shapes, strict=True)]
