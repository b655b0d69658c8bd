"""Names and shapes of a plan's tensors, and how many numbers its models train and send.

Shapes come from a starting checkpoint's header where there is one, else from the plan's sizes.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from common.errors import ConfigurationError
from common.study.families import FAMILIES, Family, Shapes
from common.study.fields import CHECKPOINT_CAP_BYTES
from common.study.fit import checkpoint_file
from common.study.plan import Study
from common.study.planned import planned_shapes
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
    file = checkpoint_file(start, checkpoints)
    if file is not None:
        stored = family.select(tensors.shapes(file))
        return {name: shape for name, (_, shape) in stored.items()}
    return planned_shapes(study, family)


def starting_weights(checkpoint: Path, family: Family) -> tensors.Arrays:
    """Return a model's part of its starting checkpoint, as float32: the weights before round 0."""
    found = tensors.read(checkpoint, max_bytes=CHECKPOINT_CAP_BYTES)
    return {name: array.astype(np.float32) for name, array in family.select(found).items()}
