"""Names and shapes of a plan's tensors, and how many numbers its models train and send.

Shapes come from a starting checkpoint's header where there is one. Only without one are networks
built, which imports torch.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from common.errors import ConfigurationError
from common.study.families import FAMILIES, Family, Shapes
from common.study.fields import CHECKPOINT_CAP_BYTES
from common.study.plan import Study
from common.wire import tensors


def parameter_counts(study: Study, checkpoints: Path) -> dict[str, int]:
    """Return, by model, how many numbers a private step changes; post-processed ones do not count.

    `checkpoints`: the plan's folder, or a bundle's checkpoints/. Raises ConfigurationError where
    nothing is trained.
    """
    counts = {}
    for model, plan in study.models.trained().items():
        found = model_shapes(study, model, checkpoints)
        counts[model] = FAMILIES[model].private_dimension(found, plan.trainable)
        if not counts[model]:
            raise ConfigurationError(
                f"models.{model}.trainable: {list(plan.trainable)} names no tensor of the model"
            )
    return counts


def wire_counts(study: Study, checkpoints: Path) -> dict[str, int]:
    """Return, by model, how many float32 numbers an update has: every tensor, trained or not."""
    counts = {}
    for model in study.models.trained():
        found = model_shapes(study, model, checkpoints)
        counts[model] = sum(math.prod(shape) for shape in found.values())
    return counts


def model_shapes(study: Study, model: str, checkpoints: Path) -> Shapes:
    """Return a model's shapes by global name.

    Those of its starting checkpoint; without one, those of the networks that the plan names.
    """
    family = FAMILIES[model]
    start = study.models.trained()[model].start
    if start is not None:
        for file in (checkpoints / start.file, checkpoints / start.name):
            if file.is_file():
                stored = family.select(tensors.shapes(file))
                return {name: shape for name, (_, shape) in stored.items()}
    return _planned_shapes(study, family)


def starting_weights(checkpoint: Path, family: Family) -> tensors.Arrays:
    """Return a model's part of its starting checkpoint, as float32: the weights before round 0."""
    found = tensors.read(checkpoint, max_bytes=CHECKPOINT_CAP_BYTES)
    return {name: array.astype(np.float32) for name, array in family.select(found).items()}


def _planned_shapes(study: Study, family: Family) -> Shapes:
    """The shapes of networks that have no starting checkpoint yet; nothing is allocated."""
    import torch

    from common.study.architectures import build

    with torch.device("meta"):
        parts = build(study, family)
    found = {}
    for prefix, part in parts.items():
        for name, parameter in part.named_parameters():
            found[prefix + name] = tuple(parameter.shape)
    return found
