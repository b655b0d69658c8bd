"""What the three private trainers share: trained tensors, a round's bound, a stream of latents."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from client.learn.patient_gradients import Parameters
from common.arrays import Deltas
from common.errors import ConfigurationError
from common.privacy.noise import Noise

# relative, below max_update_norm: a norm that is computed in float32 elsewhere stays under it
NORM_MARGIN = 1e-6


def trainable(
    module: nn.Module, prefix: str, chosen: tuple[str, ...], model: str, example: str
) -> Parameters:
    """Return the tensors of `module` that train with private gradients, by name inside it.

    `prefix` makes a name global. `chosen`: prefixes of global names from the plan; empty means all.
    Raises ConfigurationError for a prefix that fits no tensor of the module; the hint gives
    `example`.
    """
    # a prefix that fits nothing is an error of the plan, not an empty choice
    parameters = {prefix + name: p for name, p in module.named_parameters()}
    for start in chosen:
        if not any(name.startswith(start) for name in parameters):
            raise ConfigurationError(
                f"models.{model}.trainable: {start!r} fits no weight that trains privately",
                hint=f"prefixes are global names such as {example}",
            )

    # the chosen tensors, by their names inside the module
    starts = chosen or (prefix,)
    trained: Parameters = {}
    for name, parameter in parameters.items():
        if name.startswith(starts):
            trained[name.removeprefix(prefix)] = parameter
    return trained


def within(deltas: Mapping[str, Tensor], bound: float) -> Deltas:
    """Return the deltas as float32 arrays, their joint L2 norm at most the public `bound`.

    Larger ones are scaled down together.
    """
    norm = float(torch.cat([delta.double().flatten() for delta in deltas.values()]).norm())
    allowed = bound * (1 - NORM_MARGIN)
    factor = 1.0
    if not norm <= allowed:  # NaN is too large, too
        factor = allowed / norm
    return {name: (delta.double() * factor).float().numpy() for name, delta in deltas.items()}


def stream(noise: Noise) -> torch.Generator:
    """Return a torch generator with a fresh seed.

    For latents and the choice of items, never for privacy noise.
    """
    return torch.Generator().manual_seed(int(noise.uniform_u64(1)[0] >> np.uint64(1)))
