"""Writes models/ of a release: final weights, what the model is, and what one draws from as ONNX.

In: the plan, and the files of the final weights.
Out: NAME.safetensors, NAME.json and NAME.onnx of each model.
Guarantees: the weights are copied as they are; the graph and its card follow from them and from the
plan alone, so the same inputs give the same bytes. Weights of other shapes than the plan's
networks, which no signed plan has (common/study/fit.py), are copied alone.
Not covered: privacy. What training sent is differentially private, and weights and graphs are
post-processing of that (common/privacy/claims.py).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from common.errors import Bug
from common.study.families import FAMILIES
from common.study.fields import CHECKPOINT_CAP_BYTES
from common.study.plan import Study
from common.study.planned import planned_shapes
from common.study.training import GanPlan, GlowPlan, WganPlan
from common.wire import tensors
from kohort.models import UNLABELLED, Card, Input
from server.release import graphs
from server.release.graph import OPSET, Exported

SIZES = {
    "gan": ("width", "latent"),
    "wgan": ("architecture", "width", "generator_width", "latent"),
    "glow": ("levels", "steps_per_level", "width", "doublings"),
}
PREFIXES = {"gan": "generator.", "wgan": "average.", "glow": "glow."}


def write_models(part: Path, study: Study, weights: Mapping[str, Path]) -> None:
    """Write the three files of each model in `weights` (files by model), where there are some."""
    if not weights:
        return
    folder = part / "models"
    folder.mkdir()
    for name, path in sorted(weights.items()):
        shutil.copyfile(path, folder / f"{name}.safetensors")
        arrays = tensors.read(path, max_bytes=CHECKPOINT_CAP_BYTES)
        if not _are_planned(study, name, arrays):
            continue
        exported = export(study, name, arrays)
        (folder / f"{name}.onnx").write_bytes(exported.onnx)
        facts = card_of(study, name, exported).model_dump(mode="json")
        text = json.dumps(facts, indent=1, sort_keys=True) + "\n"
        (folder / f"{name}.json").write_text(text, encoding="utf-8")


def _are_planned(study: Study, name: str, arrays: tensors.Arrays) -> bool:
    """Whether weights have the shapes of the plan's networks, as those of a signed plan have."""
    family = FAMILIES[name]
    found = {key: array.shape for key, array in family.select(arrays).items()}
    return found == dict(planned_shapes(study, family))


def export(study: Study, name: str, arrays: tensors.Arrays) -> Exported:
    """Return the ONNX file of a model, and its inputs; `arrays`: its final weights.

    Raises Bug for a model of no known family.
    """
    size_px, channels = study.intake.size_px, study.intake.channels
    plan = study.models.trained()[name]
    if isinstance(plan, GanPlan):
        return graphs.gan_graph(arrays, plan, size_px, channels)
    if isinstance(plan, GlowPlan):
        return graphs.glow_graph(arrays, plan, size_px, channels)
    if isinstance(plan, WganPlan):
        return graphs.wgan_graph(arrays, plan, size_px)
    raise Bug(f"models.{name}: no graph of this family")


def card_of(study: Study, name: str, exported: Exported) -> Card:
    """Return what a reader needs to draw from a model, or to build it from its weights."""
    plan = study.models.trained()[name]
    pairs = name == "wgan"
    labels = study.strata()
    return Card(
        family=name,
        architecture={key: getattr(plan, key) for key in SIZES[name]},
        tensors=PREFIXES[name],
        opset=OPSET,
        inputs=tuple(Input(name=key, shape=shape) for key, shape in exported.inputs.items()),
        temperature=temperature_of(study, name),
        planes=graphs.PLANES if pairs else study.intake.channels,
        size_px=study.intake.size_px,
        mask=pairs,
        # no network takes a label: a picture has one where the study has only one
        label=labels[0] if len(labels) == 1 else UNLABELLED,
    )


def temperature_of(study: Study, name: str) -> float:
    """Return the spread of a model's inputs: of the flow, that of the plan's draws from it."""
    if name != "glow" or study.synthesis is None or study.synthesis.privatize is None:
        return 1.0
    section = study.synthesis.privatize
    if section.prior_temperature is not None:
        return section.prior_temperature
    return section.temperature
