"""The feature spaces in which an attacker compares images.

In: uint8 images, the released networks.
Out: features [N, D] by space: pixels at 32 px, the same at equal contrast, texture, the released
critic's features, the public encoder's codes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from common.arrays import Floats, Images
from common.models.encoder import Encoder
from common.models.glow import Glow
from common.models.images import to_unit
from common.models.stylegan import Critic, Generator
from server.evaluate.extractors import Texture

PIXELS_PX = 32
TEXTURE_CHANNELS = 24
CRITIC_CELLS = 4
AT_ONCE = 64


@dataclass(frozen=True)
class Networks:
    """What a release, or the plan's public checkpoints, give to an attacker."""

    generator: Generator | None = None
    critic: Critic | None = None
    encoder: Encoder | None = None
    iterations: int = 3  # of the encoder; one is enough for a look
    flow: Glow | None = None  # where a flow makes the images
    temperature: float = 1.0  # of the flow's prior


def spaces(images: Images, networks: Networks) -> dict[str, Floats]:
    """Return features [N, D] by name of space; those of a network only where it is given."""
    # spaces that need no network
    x = to_unit(images)
    small = F.avg_pool2d(x, max(1, x.shape[2] // PIXELS_PX))
    level = (small - small.mean((2, 3), keepdim=True)) / (small.std((2, 3), keepdim=True) + 1e-3)
    found = {
        "pixels": _to_rows(small),
        "contrast": _to_rows(level),
        "texture": Texture(TEXTURE_CHANNELS).features(images),
    }

    # spaces of the released networks
    with torch.no_grad():
        if networks.critic is not None:
            found["critic"] = _critic_features(networks.critic, x)
        if networks.encoder is not None and networks.generator is not None:
            found["codes"] = _codes(networks.encoder, networks.generator, networks.iterations, x)
    return found


def _to_rows(x: Tensor) -> Floats:
    """One row [D] for each item."""
    return np.asarray(x.flatten(1).double().numpy())


def _critic_features(critic: Critic, x: Tensor) -> Floats:
    """The critic's last two activations on a 4×4 grid."""
    parts = []
    for part in torch.split(x, AT_ONCE):
        taps = [F.adaptive_avg_pool2d(tap, CRITIC_CELLS) for tap in critic.features(part)[-2:]]
        rows = [_to_rows(F.normalize(tap.flatten(1), dim=1)) for tap in taps]
        parts.append(np.concatenate(rows, axis=1))
    return np.concatenate(parts)


def _codes(encoder: Encoder, generator: Generator, iterations: int, x: Tensor) -> Floats:
    """The codes that the public encoder finds."""
    parts = []
    for part in torch.split(x, AT_ONCE):
        parts.append(_to_rows(encoder.invert(part, generator, iterations).codes))
    return np.concatenate(parts)
