"""Global weights of the small plan on and beside the path that its rounds may take."""

from __future__ import annotations

from typing import Any

import numpy as np

from common.wire import tensors

START: dict[str, tensors.Arrays] = {
    "gan": {
        "generator.a": np.ones((2, 3), np.float32),
        "critic.a": np.array([1, -0.0, 1e-40, 3], np.float32),
        "critic.fixed": np.array([0.5, -0.0, 1e-40], np.float32),
    },
    "glow": {"glow.a": np.ones((5,), np.float32)},
}


def keep_fixed(output: tensors.Arrays) -> tensors.Arrays:
    """An update as a child makes it: what the plan does not train has a change of zero."""
    zeros = {name: np.zeros_like(array) for name, array in output.items() if name == "critic.fixed"}
    return output | zeros


def moved(distance: float, model: str = "gan", **changes: Any) -> tensors.Arrays:
    """A model's starting weights, moved by an L2 distance along one trained tensor."""
    arrays = {name: array.copy() for name, array in START[model].items()}
    name = {"gan": "generator.a", "glow": "glow.a"}[model]
    arrays[name] += np.float32(distance / np.sqrt(arrays[name].size))
    return arrays | changes
