"""Releases with models to draw from: invented weights of the plan's networks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from common.study.families import FAMILIES
from common.study.plan import Study
from common.study.planned import planned_shapes
from common.wire import signing, tensors
from server.release.build import build_release
from server.release.items import ReleaseInputs
from tests.releases import release_inputs

SPREADS = {"gan": 0.2, "wgan": 0.2, "glow": 0.03}  # a flow of wild weights amplifies


def invented_weights(study: Study, folder: Path) -> dict[str, Path]:
    """A file of small random weights for each model that the plan trains."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for number, name in enumerate(study.models.trained()):
        files[name] = folder / f"{name}.safetensors"
        tensors.write(files[name], invented_arrays(study, name, number))
    return files


def invented_arrays(study: Study, name: str, seed: int = 0) -> tensors.Arrays:
    """Small random weights of one model."""
    random = np.random.default_rng(seed)
    arrays: tensors.Arrays = {}
    for key, shape in planned_shapes(study, FAMILIES[name]).items():
        arrays[key] = (SPREADS[name] * random.standard_normal(shape)).astype(np.float32)
    return arrays


def with_models(inputs: ReleaseInputs, folder: Path) -> ReleaseInputs:
    """The same inputs with invented weights."""
    return replace(inputs, weights=invented_weights(inputs.study, folder / "weights"))


def drawable_release(folder: Path, **changes: Any) -> Path:
    """A release of the small plan, with its models."""
    operator = signing.new_key()
    inputs = with_models(release_inputs(folder, operator, **changes), folder)
    return build_release(inputs, folder / "releases", operator)
