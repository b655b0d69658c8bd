"""A flow's weights as named arrays and as a checkpoint file.

Guarantees: names, shapes, types, finiteness and rotations are checked before any weight is copied.
"""

import hashlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from common.arrays import Weights
from common.errors import RefusedError
from common.models.glow import Glow
from common.models.glow_mixing import Mixing
from common.wire import tensors

PREFIX = "glow."  # of every weight's global name, in payloads and checkpoints


def weights_of(model: Glow) -> dict[str, NDArray[np.float32]]:
    """Return all weights as float32 arrays under their global names `glow.*`."""
    return {
        PREFIX + name: value.detach().cpu().float().numpy().copy()
        for name, value in model.named_parameters()
    }


def load_weights(model: Glow, weights: Weights, *, digest: str | None = None) -> None:
    """Copy the arrays `glow.*` into the model, after checking all of them.

    Raises RefusedError for a missing or unknown name, another shape or type, or a value that is not
    finite. It raises RefusedError too where the model's rotations differ from those of `digest`.
    """
    # check the rotations, the names, then every array
    if digest is not None and digest != rotation_digest(model):
        raise RefusedError(
            "flow weights were trained with other rotations",
            hint="they fit another layout or version",
        )
    expected = {PREFIX + name: parameter for name, parameter in model.named_parameters()}
    given = {name: array for name, array in weights.items() if name.startswith(PREFIX)}
    if expected.keys() != given.keys():
        odd = sorted(expected.keys() ^ given.keys())
        raise RefusedError(f"flow weights: {len(odd)} names missing or unknown, first {odd[0]}")
    for name, parameter in expected.items():
        _check_array(name, given[name], tuple(parameter.shape))

    # copy
    with torch.no_grad():
        for name, parameter in expected.items():
            parameter.copy_(torch.from_numpy(np.array(given[name])))


def rotation_digest(model: Glow) -> str:
    """Return the SHA-256 over all fixed rotations, rounded to 2^-20.

    A checkpoint carries it; another value means another flow.
    """
    digest = hashlib.sha256()
    for module in model.modules():
        if isinstance(module, Mixing):
            digest.update(np.rint(module.rotation.numpy() * 2.0**20).astype("<i4").tobytes())
    return digest.hexdigest()


def save(model: Glow, path: Path) -> None:
    """Write a checkpoint: the weights under their global names, and the rotations' digest."""
    tensors.write(path, weights_of(model), {"rotations": rotation_digest(model)})


def load(model: Glow, path: Path, *, max_bytes: int = 1 << 28) -> None:
    """Read a checkpoint that `save` wrote into the model.

    Raises RefusedError as `load_weights` does, and for a missing digest.
    """
    arrays = tensors.read(path, max_bytes=max_bytes)
    digest = tensors.metadata(path, max_bytes=max_bytes).get("rotations", "none")
    load_weights(model, arrays, digest=digest)


def _check_array(name: str, array: NDArray[np.generic], shape: tuple[int, ...]) -> None:
    """One array against the shape that the model expects."""
    fits = array.dtype == np.float32 and array.shape == shape
    if not fits or not np.isfinite(array).all():
        raise RefusedError(
            f"flow weights: {name} is {array.dtype} {array.shape}, expected finite float32 {shape}"
        )
