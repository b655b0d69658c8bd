"""The norm cap of a plan's models: computed from its own noise and steps, written where missing.

In: study.yaml and the checkpoints beside it.
Out: an `UpdateNorm` for each model; the file with its `max_update_norm` lines.
Guarantees: a stated cap is never changed; comments stay.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import yaml

from common.config import compose, parse_yaml, read_text
from common.privacy.events import round_event
from common.privacy.update_norm import AVERAGE, UpdateNorm, update_norm
from common.storage.files import atomic_write
from common.study.families import FAMILIES
from common.study.fit import check_checkpoints
from common.study.plan import Study
from common.study.shapes import model_shapes, parameter_counts, starting_weights

KEY = "max_update_norm"
BESIDE = "clip"  # the key before which the cap is written
GENERATOR = "generator."


def update_norms(study: Study, checkpoints: Path) -> dict[str, UpdateNorm]:
    """Return how large one site's update of one round is, by model.

    `checkpoints`: the plan's folder, or a bundle's checkpoints/.
    """
    counts = parameter_counts(study, checkpoints)
    found = {}
    for name, plan in study.models.trained().items():
        event = round_event(study, name, counts[name])
        shapes = model_shapes(study, name, checkpoints)
        gap = _average_gap(study, name, checkpoints)
        found[name] = update_norm(plan, event, FAMILIES[name], shapes, gap)
    return found


def write_missing_norms(study_path: Path) -> dict[str, float]:
    """Write the cap of every model that has none into a plan, in place; return them by model.

    Raises ConfigurationError for a plan that is not valid otherwise, PolicyError
    (E-PLAN-CHECKPOINT) for a checkpoint of other sizes.
    """
    text = read_text(study_path)
    places = dict(_missing(compose(study_path, text)))
    if not places:
        return {}
    # the norms do not depend on the caps: any number will do until they are known
    draft = parse_yaml(_insert(text, places, dict.fromkeys(places, 1.0)), Study, study_path)
    check_checkpoints(draft, study_path.parent)
    norms = update_norms(draft, study_path.parent)
    caps = {name: norms[name].cap for name in places}
    atomic_write(study_path, _insert(text, places, caps).encode())
    return caps


def _missing(node: yaml.Node) -> Iterator[tuple[str, yaml.Node]]:
    """The models without a cap, each with the key before which it belongs."""
    models = dict(_entries(node)).get("models")
    for name, (_, section) in dict(_entries(models[1] if models else None)).items():
        keys = {key: place for key, (place, _) in _entries(section)}
        if name in FAMILIES and KEY not in keys and BESIDE in keys:
            yield name, keys[BESIDE]


def _entries(node: yaml.Node | None) -> Iterator[tuple[str, tuple[yaml.Node, yaml.Node]]]:
    """The keys of a mapping, each with its own node and its value's; nothing of another node."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield str(key.value), (key, value)


def _insert(text: str, places: dict[str, yaml.Node], caps: dict[str, float]) -> str:
    """The text with one `max_update_norm` before each place, in block or in flow style."""
    # From the end of the text to its start, so that the places found stay right.
    for name, node in sorted(places.items(), key=lambda item: -item[1].start_mark.index):
        mark = node.start_mark
        line_start = text.rfind("\n", 0, mark.index) + 1
        separator = ", "
        if not text[line_start : mark.index].strip():
            separator = "\n" + " " * mark.column
        quote = '"' if getattr(node, "style", None) == '"' else ""
        entry = f"{quote}{KEY}{quote}: {caps[name]:g}{separator}"
        text = text[: mark.index] + entry + text[mark.index :]
    return text


def _average_gap(study: Study, name: str, checkpoints: Path) -> float:
    """The distance between generator and moving average in a model's starting checkpoint.

    0 without a checkpoint, and for a model that has no average.
    """
    start = study.models.trained()[name].start
    family = FAMILIES[name]
    if start is None or AVERAGE not in family.prefixes:
        return 0.0
    for file in (checkpoints / start.file, checkpoints / start.name):
        if file.is_file():
            arrays = starting_weights(file, family)
            return _distance(arrays)
    return 0.0


def _distance(arrays: dict[str, np.ndarray]) -> float:
    """The L2 distance between `average.*` and `generator.*`, in float64."""
    squares = 0.0
    for key, array in arrays.items():
        if key.startswith(AVERAGE):
            other = arrays[GENERATOR + key.removeprefix(AVERAGE)]
            squares += float(np.square(array.astype(np.float64) - other).sum())
    return float(np.sqrt(squares))
