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
CPU = torch.device("cpu")
SPACES = ("pixels", "contrast", "texture", "critic", "codes")


@dataclass(frozen=True)
class Networks:
    """What a release, or the plan's public checkpoints, give to an attacker."""

    generator: Generator | None = None
    critic: Critic | None = None
    encoder: Encoder | None = None
    iterations: int = 3  # of the encoder; one is enough for a look
    flow: Glow | None = None  # where a flow makes the images
    temperature: float = 1.0  # of the flow's prior
    device: torch.device = CPU  # where all of them lie, and images are compared


def spaces(images: Images, networks: Networks) -> dict[str, Floats]:
    """Return features [N, D] by name of space; those of a network only where it is given.

    Images become floats `AT_ONCE` at a time.
    """
    # spaces of pixels and of the released networks
    parts: dict[str, list[Floats]] = {}
    with torch.no_grad():
        for start in range(0, len(images), AT_ONCE):
            x = to_unit(images[start : start + AT_ONCE], networks.device)
            for name, rows in _spaces_of(x, networks).items():
                parts.setdefault(name, []).append(rows.flatten(1).double().cpu().numpy())
    found = {name: np.concatenate(rows) for name, rows in parts.items()}

    # the space of textures
    found["texture"] = Texture(TEXTURE_CHANNELS, device=networks.device).features(images)
    return {name: found[name] for name in SPACES if name in found}


def _spaces_of(x: Tensor, networks: Networks) -> dict[str, Tensor]:
    """Features [n, ...] of images [n, C, S, S] by name of space, but texture."""
    # pixels, as they are and at equal contrast
    small = F.avg_pool2d(x, max(1, x.shape[2] // PIXELS_PX))
    level = (small - small.mean((2, 3), keepdim=True)) / (small.std((2, 3), keepdim=True) + 1e-3)
    found = {"pixels": small, "contrast": level}

    # the critic's features, and the codes that the public encoder finds
    if networks.critic is not None:
        found["critic"] = _critic_features(networks.critic, x)
    if networks.encoder is not None and networks.generator is not None:
        inverted = networks.encoder.invert(x, networks.generator, networks.iterations)
        found["codes"] = inverted.codes
    return found


def _critic_features(critic: Critic, x: Tensor) -> Tensor:
    """The critic's last two activations on a 4×4 grid."""
    taps = [F.adaptive_avg_pool2d(tap, CRITIC_CELLS) for tap in critic.features(x)[-2:]]
    return torch.cat([F.normalize(tap.flatten(1), dim=1) for tap in taps], dim=1)
