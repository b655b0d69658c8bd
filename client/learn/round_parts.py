"""What the three private trainers share.

Trained tensors, the bound of a round, a stream of latents.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from client.learn.patient_gradients import Parameters
from common.arrays import Deltas
from common.errors import ConfigurationError
from common.privacy.noise import Noise

NORM_MARGIN = (
    1e-6  # below max_update_norm, so that a float32 norm computed elsewhere stays under it
)


def trainable(
    module: nn.Module, prefix: str, chosen: tuple[str, ...], model: str, example: str
) -> Parameters:
    """Return the tensors of `module` that DP trains, by name inside the module.

    `prefix`: what makes a name global. `chosen`: prefixes of global names from the plan; empty
    means all.
    Raises ConfigurationError for a prefix that fits no tensor of the module; the hint gives
    `example`.
    """
    parameters = dict(module.named_parameters())
    for start in chosen:
        if not any((prefix + name).startswith(start) for name in parameters):
            raise ConfigurationError(
                f"models.{model}.trainable: {start!r} fits no weight that trains privately",
                hint=f"prefixes are global names such as {example}",
            )
    starts = chosen or (prefix,)
    return {name: p for name, p in parameters.items() if (prefix + name).startswith(starts)}


def within(deltas: Mapping[str, Tensor], bound: float) -> Deltas:
    """Return the deltas as float32 arrays, scaled down together to the public `bound` of their
    joint L2 norm.
    """
    norm = float(torch.cat([delta.double().flatten() for delta in deltas.values()]).norm())
    allowed = bound * (1 - NORM_MARGIN)
    factor = 1.0
    if not norm <= allowed:
        factor = allowed / norm
    return {name: (delta.double() * factor).float().numpy() for name, delta in deltas.items()}


def stream(noise: Noise) -> torch.Generator:
    """Return a torch generator with a fresh seed.

    For latents and the choice of items, never for privacy noise.
    """
    return torch.Generator().manual_seed(int(noise.uniform_u64(1)[0] >> np.uint64(1)))
