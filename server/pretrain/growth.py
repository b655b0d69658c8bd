"""A checkpoint of half the size and twice the width as the start of a pretraining.

In: generator, critic and encoder of the new size; the checkpoint's arrays.
Out: the networks, changed in place.
Guarantees: for the codes that it had, the generator makes the images that it made, doubled; the
encoder gives the same codes for the same pictures. What they knew is held: only the new map learns.
Not covered: the critic. It reads full-size images first, so it begins anew.
Source: Karras et al. 2018, section 3 (growing a generator); deviation: the new part starts at 0 in
place of being faded in.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.arrays import Weights
from common.models.encoder import Encoder
from common.models.stylegan import Generator
from common.models.weights import load_weights, numpy_weights

Array = NDArray[Any]
TO_IMAGE = "generator.to_image."
BY_LAYER = ("encoder.detail.weight", "encoder.detail.bias", "encoder.start")


def is_half(generator: Generator, arrays: Weights) -> bool:
    """Return whether the arrays are a generator's with one map less than `generator`."""
    maps = {name.split(".")[2] for name in arrays if name.startswith(TO_IMAGE)}
    return len(maps) > 0 and len(maps) == len(generator.to_image) - 1


def grow(generator: Generator, encoder: Encoder, arrays: Weights) -> None:
    """Put a checkpoint of half the size into both networks.

    Raises RefusedError where it is not of twice the width, or has another latent.
    """
    # the generator: its new map begins at random, and adds nothing to the image yet
    new = tuple(f"generator.{name}" for name in _new_map(generator))
    last = len(generator.to_image) - 1
    own = numpy_weights(generator, "generator.")
    own[f"{TO_IMAGE}{last}.weight"][:] = 0
    fresh = {name: array for name, array in own.items() if name.startswith(new)}
    # the encoder: the new layers of a code are the last one's start, and stay there
    wanted = numpy_weights(encoder, "encoder.")
    longer = {}
    for name in BY_LAYER:
        if name in arrays:
            longer[name] = _lengthen(np.asarray(arrays[name]), wanted[name])
    start = longer.get("encoder.start")
    if start is not None:
        known = len(arrays["encoder.start"])
        start[known:] = start[known - 1]
    load_weights(generator, {**arrays, **fresh}, "generator.")
    load_weights(encoder, {**arrays, **longer}, "encoder.")


def hold(generator: Generator, encoder: Encoder) -> None:
    """Let nothing learn but the generator's last map."""
    new = _new_map(generator)
    encoder.requires_grad_(False)
    for name, parameter in generator.named_parameters():
        parameter.requires_grad_(name.startswith(new))


def _new_map(generator: Generator) -> tuple[str, ...]:
    """How the names of the last map's parameters begin."""
    last = len(generator.to_image) - 1
    return (f"up.{last - 1}.", f"same.{last - 1}.", f"to_image.{last}.")


def _lengthen(array: Array, wanted: Array) -> Array:
    """Return `array` with rows of 0 behind it, as many as `wanted` has; as it is if it fits not."""
    if array.shape[1:] != wanted.shape[1:] or not 0 < len(array) <= len(wanted):
        return array
    longer = np.zeros_like(wanted)
    longer[: len(array)] = array
    return longer
