"""What changed between two plans."""

from __future__ import annotations

from typing import Any

import pytest

from common.study.changes import changes
from common.study.plan import Study
from tests.studies import small_plan, small_study

CHANGED: dict[str, tuple[dict[str, Any], str]] = {
    "a smaller group": (
        {"synthesis__k": 4},
        "synthesis.k: 5 → 4 (fewest distinct patients behind one image; protects patients less)",
    ),
    "a grid of residuals": (
        {"synthesis__coarse_cells": 4},
        "synthesis.coarse_cells: 0 → 4 (cells along each side of a grid in which an average also "
        "keeps its members' mean residual; protects patients less)",
    ),
    "more epsilon": ({"privacy__epsilon": 9.0}, "privacy.epsilon: 8 → 9"),
    "more noise": ({"models__gan__noise_multiplier": 5.0}, "protects patients more"),
    "more rounds": ({"models__gan__rounds": 3}, "models.gan.rounds: 2 → 3"),
    "another way to group": ({"synthesis__grouping": "cells"}, "similar → cells"),
    "another rule of averaging": (
        {"aggregation": {"rule": "norm_weighted"}},
        "aggregation.rule: mean → norm_weighted",
    ),
    "a hospital more": (
        {"sites": [{"name": f"hospital-{one}"} for one in "abcd"]},
        "sites.hospital-d: none → weight 1",
    ),
    "hospitals in another order": (
        {"sites": [{"name": f"hospital-{one}"} for one in "bac"]},
        "sites: the same hospitals in another order",
    ),
    "labels that are merged": (
        {"intake__merge_labels": {"severe": "mild-moderate"}},
        "intake.merge_labels: none → severe as mild-moderate",
    ),
    "no privatized images": (
        {"synthesis__privatize": None},
        "synthesis.privatize.share: 0.25 → none",
    ),
    "a checkpoint": (
        {"models__gan__start": {"file": "gan.safetensors", "sha256": "ab" * 32}},
        "models.gan.start.sha256: none → abababababab",
    ),
}


@pytest.mark.parametrize("case", CHANGED)
def test_each_difference_is_a_line_with_old_and_new(case: str) -> None:
    changed, line = CHANGED[case]
    found = changes(small_study(), small_study(**changed))
    assert any(line in one for one in found), found
    assert changes(small_study(**changed), small_study())


def test_equal_plans_have_no_difference() -> None:
    assert changes(small_study(), small_study()) == ()


def test_every_field_that_the_hash_covers_is_compared() -> None:
    plan = small_study()
    for path, other in leaves(small_plan()):
        new = changed(path, other)
        if new is not None and new.hash() != plan.hash():
            assert changes(plan, new), path


def leaves(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[tuple[Any, ...], Any]]:
    """Every number and text of a plan, with another one of its kind."""
    if isinstance(data, dict):
        return [leaf for key, value in data.items() for leaf in leaves(value, (*path, key))]
    if isinstance(data, list):
        return [leaf for key, value in enumerate(data) for leaf in leaves(value, (*path, key))]
    if isinstance(data, bool):
        return [(path, not data)]
    if isinstance(data, int | float):
        return [(path, data + 1), (path, data * 0.5)]
    return [(path, f"{data}x")]


def changed(path: tuple[Any, ...], value: Any) -> Study | None:
    """The small plan with one leaf changed, or None where that is no plan."""
    data: Any = small_plan()
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    try:
        return Study.model_validate(data)
    except ValueError:
        return None
