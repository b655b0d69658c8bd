"""The forecast of images, against the grouping itself.

"Nobody learns how many images to expect: 279 patients became 11 images, one of a label."
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.synthesize.group import Mode, Roster, form_groups, roster
from client.synthesize.partition import Cells
from common.errors import PolicyError
from common.study.plan import Study
from common.study.yield_words import own_yield_lines, yield_table
from common.study.yields import LEFT_OUT, people_for, yield_of, yields_of
from tests.studies import small_study, vessels_plan

KEY = b"k" * 32
RANDOM = {"synthesis__grouping": "random", "synthesis__privatize": None}
ANCHORS = {
    "synthesis__grouping": "anchors",
    "synthesis__privatize": None,
    "synthesis__anchors": {
        "noise_multiplier": 1.0,
        "threshold_delta": 1e-6,
        "cells_per_stratum": 3,
    },
}


def plan(grouping: Mode, k: int) -> Study:
    """The small plan with one way to group, one side, and no cap that counts."""
    changes: dict[str, Any] = {"synthesis__grouping": grouping, "synthesis__k": k}
    if grouping == "random":
        changes |= RANDOM
    if grouping == "anchors":
        changes |= ANCHORS
    return small_study(
        intake__stratify_laterality=False, synthesis__max_images_per_site=1000, **changes
    )


def group(people: int, usable: np.ndarray, k: int, mode: Mode, seed: int) -> int:
    """How many images the grouping gives one stratum, as client/child/batch.py takes it."""
    everybody = stratum(np.arange(people))
    counted = stratum(np.flatnonzero(usable))
    who = everybody if mode == "random" else counted
    codes = np.random.default_rng(seed).normal(size=(len(who.pseudonyms), 4))
    cells = Cells(np.random.default_rng(99).normal(size=(3, 4)))
    extra: dict[str, Any] = {"codes": None if mode == "random" else codes}
    if mode in ("cells", "anchors"):
        extra["cells"] = cells
    try:
        found = form_groups(who, k, mode, key=KEY, **extra)
    except PolicyError:
        return 0
    present = set(counted.pseudonyms)
    return sum(present.issuperset(one.members) for one in found.groups)


def stratum(numbers: np.ndarray) -> Roster:
    """The people of these numbers, all of one label."""
    names = [f"{number:064x}" for number in numbers]
    return roster(names, np.arange(len(names)), np.zeros(len(names), int), key=KEY)


@settings(max_examples=150, deadline=None)
@given(
    people=st.integers(0, 90),
    k=st.integers(2, 7),
    mode=st.sampled_from(["similar", "similar-swap", "cells", "random", "anchors"]),
    seed=st.integers(0, 10_000),
    share=st.floats(0, 1),
)
def test_the_grouping_gives_what_was_forecast(
    people: int, k: int, mode: Mode, seed: int, share: float
) -> None:
    rng = np.random.default_rng(seed)
    unusable = math.floor(share * math.floor(LEFT_OUT * people))
    usable = np.ones(people, bool)
    usable[rng.permutation(people)[:unusable]] = False
    found = yield_of(plan(mode, k), people)
    assert found.fewest <= group(people, usable, k, mode, seed) <= found.most


def test_a_range_is_no_wider_than_it_must_be() -> None:
    """Both ends are met: by everybody usable, and by as many unusable as are assumed."""
    study = plan("similar", 5)
    found = yield_of(study, 80)
    assert group(80, np.ones(80, bool), 5, "similar", 1) == found.most == 16
    assert group(80, np.arange(80) >= 20, 5, "similar", 1) == found.fewest == 12


YIELDS: dict[str, tuple[dict[str, Any], int, tuple[int, int]]] = {
    "fewer than k": ({}, 4, (0, 0)),
    "k of each side": ({}, 10, (0, 2)),
    "half of them with each side": ({}, 100, (14, 20)),
    "sides together": ({"intake__stratify_laterality": False}, 100, (15, 20)),
    "several images of a group": (
        {"synthesis__outputs_per_group": 3, "synthesis__privatize": None},
        60,
        (24, 36),
    ),
    "a privatized group gives one": ({"synthesis__outputs_per_group": 3}, 40, (6, 24)),
    "the plan's cap": ({"synthesis__max_images_per_site": 7}, 1000, (7, 7)),
    "random groups look at no image before": (RANDOM, 100, (0, 20)),
    "random groups with noise on all of them": (
        {
            "models__gan": None,
            "models__encoder": None,
            "synthesis__grouping": "random",
            "synthesis__privatize": {"share": 1.0, "radius": 0.8, "scale": 50.0 / 10},
        },
        100,
        (20, 20),
    ),
    "cells under noise": (ANCHORS, 1000, (0, 6)),
}


@pytest.mark.parametrize("case", YIELDS)
def test_a_label_gives_the_images_of_its_groups(case: str) -> None:
    changes, people, expected = YIELDS[case]
    found = yield_of(small_study(**changes), people)
    assert (found.fewest, found.most) == expected


def test_labels_share_the_plans_cap() -> None:
    study = small_study(synthesis__max_images_per_site=10, intake__stratify_laterality=False)
    found = yields_of(study, {"none": [50], "severe": [10]})
    assert [(one.fewest, one.most) for one in found] == [(7, 10), (0, 2)]


def test_people_for_says_how_many_surely_give_an_image() -> None:
    study = small_study()
    needed = people_for(study, 2)
    assert needed is not None
    assert yield_of(study, needed).fewest >= 2 > yield_of(study, needed - 1).fewest
    assert people_for(small_study(**ANCHORS), 1) is None


def test_the_plan_says_what_sites_of_several_sizes_give() -> None:
    text = "\n".join(yield_table(small_study()))
    for word in (
        "50",
        "1,000",
        "100%",
        "may give no image: 11% of the 100 planned",
        "may give one image alone",
        "assumed: ",
    ):
        assert word in text
    assert text.count("none") >= 1
    assert not list(yield_table(Study.model_validate(vessels_plan())))


def test_a_label_that_gives_none_or_one_is_warned_of() -> None:
    study = small_study()
    lines = list(
        own_yield_lines(study, {"none": (0, 60, 60), "mild": (0, 5, 4), "severe": (1, 2, 3)})
    )
    by_label = {line.split()[0]: line for line in lines[1:4]}
    assert "WARNING" not in by_label["none"]
    assert "WARNING: this label gives one image at most" in by_label["mild"]
    assert "WARNING: this label gives no image" in by_label["severe"]
    assert "an image needs 5 people with its label of one side" in lines[-1]
