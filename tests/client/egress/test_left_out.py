"""Which images leave of a batch of which a person left some out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from client.egress.evidence import Evidence
from client.egress.left_out import keep_rest, take_rest, why_whole
from client.state.group_store import Group, Stratum
from common.errors import PolicyError
from common.wire.tensors import Arrays
from tests.studies import small_study

GROUPS = tuple(Group(tuple(f"{n}{i}" for i in range(5)), Stratum(0, 2), 5) for n in range(3))
# five images of three groups
EVIDENCE = Evidence(GROUPS, (0, 1, 0, 2, 1), ())
TENSORS: Arrays = {"labels": np.arange(5)}
NOISE = {"share": 1.0, "radius": 0.2, "scale": 10.0}


def test_a_group_stays_whole_and_the_rest_keeps_its_order() -> None:
    rest = keep_rest(small_study(), EVIDENCE, [1])
    assert rest == [1, 3, 4]
    tensors, evidence = take_rest(TENSORS, EVIDENCE, rest)
    assert tensors["labels"].tolist() == [1, 3, 4]
    assert evidence == Evidence((GROUPS[1], GROUPS[2]), (0, 1, 0), ())


@pytest.mark.parametrize("numbers", [[], [0], [6], [-1], [1, 2, 4]], ids=str)
def test_nothing_is_left_out_by_a_wrong_number_or_down_to_nothing(numbers: list[int]) -> None:
    with pytest.raises(PolicyError) as refused:
        keep_rest(small_study(), EVIDENCE, numbers)
    assert refused.value.code == "E-REVIEW-SINGLE"


SINGLES: dict[str, tuple[bool, dict[str, Any]]] = {
    "similar groups": (True, {}),
    "similar groups with noise": (True, {"synthesis__privatize": NOISE}),
    "cells": (True, {"synthesis__grouping": "cells"}),
    "random groups without noise": (
        False,
        {"synthesis__grouping": "random", "synthesis__privatize": None},
    ),
    "random groups with noise": (
        False,
        {"synthesis__grouping": "random", "synthesis__privatize": NOISE},
    ),
}


@pytest.mark.parametrize("case", SINGLES, ids=lambda case: case.replace(" ", "-"))
def test_a_person_chooses_images_only_where_the_plan_lets_images_choose(case: str) -> None:
    """Who looks at patients and chooses an image makes the choice depend on them."""
    allowed, changes = SINGLES[case]
    study = small_study(**changes)
    assert (why_whole(study) == "") is allowed
    if not allowed:
        with pytest.raises(PolicyError) as refused:
            keep_rest(study, EVIDENCE, [1])
        assert refused.value.code == "E-REVIEW-SINGLE"
