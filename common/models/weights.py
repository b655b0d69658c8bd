"""The weights of a network as named arrays, and back."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from common.arrays import Weights
from common.errors import RefusedError

SHOWN_PROBLEMS = 3


def numpy_weights(module: nn.Module, prefix: str) -> dict[str, NDArray[np.float32]]:
    """Return the parameters as float32 arrays named `prefix` + name (`generator.`, `critic.`)."""
    return {
        prefix + name: p.detach().to("cpu", torch.float32).numpy().copy()
        for name, p in module.named_parameters()
    }


def load_weights(module: nn.Module, weights: Weights, prefix: str) -> None:
    """Copy `weights[prefix + name]` into the module; other prefixes are ignored.

    Raises RefusedError, before anything is copied, for weights that are missing, unknown, of
    another shape or not finite.
    """
    # find what does not fit
    own = dict(module.named_parameters())
    given = {}
    for name, array in weights.items():
        if name.startswith(prefix):
            given[name.removeprefix(prefix)] = array
    problems = [f"{prefix}{problem}" for problem in _find_problems(own, given)]
    if problems:
        shown = "; ".join(problems[:SHOWN_PROBLEMS])
        if len(problems) > SHOWN_PROBLEMS:
            shown += f" (and {len(problems) - SHOWN_PROBLEMS} more)"
        raise RefusedError(
            f"checkpoint does not fit the planned model: {shown}",
            hint="the plan's size_px, channels, width and latent must be those that the checkpoint "
            "was trained with",
        )

    # copy
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(torch.as_tensor(np.asarray(given[name], dtype=np.float32)))


def _find_problems(own: Mapping[str, nn.Parameter], given: Weights) -> list[str]:
    """What does not fit, without the prefix."""
    problems = [f"{name}: missing" for name in sorted(own.keys() - given.keys())]
    problems += [f"{name}: not part of this model" for name in sorted(given.keys() - own.keys())]
    for name in sorted(own.keys() & given.keys()):
        expected = tuple(own[name].shape)
        found = tuple(given[name].shape)
        if found != expected:
            problems.append(f"{name}: expected {expected}, got {found}")
        elif not np.isfinite(np.asarray(given[name], dtype=np.float32)).all():
            problems.append(f"{name}: not finite")
    return problems
