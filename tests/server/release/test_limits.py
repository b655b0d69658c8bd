"""What a release says of its limits, and of what its counts tell."""

import pytest

from common.study.plan import Study
from server.release.limits import SUBTRACTED, count_sentence, limits_of
from tests.studies import small_plan, small_study, vessels_plan

GAUSSIAN = {"share": 1.0, "mechanism": "gaussian", "epsilon": 4.0, "delta": 1e-6}
ANCHORS = {
    "grouping": "anchors",
    "privatize": None,
    "anchors": {"noise_multiplier": 0.8, "threshold_delta": 1e-6, "components": 8},
}


def of_synthesis(**changes: object) -> Study:
    """The small plan with changes of its section `synthesis`."""
    return small_study(synthesis={**small_plan()["synthesis"], **changes})


def test_several_images_a_group_are_said_not_to_be_independent_and_not_to_count_patients() -> None:
    one = small_study()
    several = of_synthesis(outputs_per_group=3)
    assert not any("not independent" in line for line in limits_of(one))
    assert any(
        "up to 3 images" in line and "not independent" in line for line in limits_of(several)
    )
    assert "A group gives up to 3 images." in count_sentence(several)
    assert "A group gives up to" not in count_sentence(one)


# What the number of images tells, and whether an epsilon covers that.
COUNTS: dict[str, tuple[Study, str]] = {
    "pairs": (Study.model_validate(vessels_plan()), "a constant of the plan"),
    "anchors": (of_synthesis(**ANCHORS), "epsilon covers them as"),
    "random, all privatized": (
        of_synthesis(grouping="random", privatize=GAUSSIAN),
        "which epsilon takes as given",
    ),
    "random, plain": (of_synthesis(grouping="random", privatize=None), "no epsilon covers them"),
    "random, single images": (
        of_synthesis(grouping="random", privatize=GAUSSIAN | {"egress": "single"}),
        "no epsilon covers them",
    ),
    "similar, part privatized": (small_study(), "no epsilon covers them"),
    "similar, all privatized": (of_synthesis(privatize=GAUSSIAN), "no epsilon covers them"),
    "cells": (of_synthesis(grouping="cells", privatize=None), "no epsilon covers them"),
}


@pytest.mark.parametrize("case", COUNTS)
def test_what_the_number_of_images_tells_is_said(case: str) -> None:
    study, words = COUNTS[case]
    assert words in count_sentence(study)
    assert count_sentence(study) in limits_of(study)


def test_a_subtraction_is_a_limit_only_where_averages_carry_no_noise() -> None:
    assert SUBTRACTED in limits_of(small_study())
    assert SUBTRACTED in limits_of(of_synthesis(grouping="random", privatize=None))
    assert SUBTRACTED not in limits_of(of_synthesis(grouping="random", privatize=GAUSSIAN))
    assert SUBTRACTED not in limits_of(of_synthesis(**ANCHORS))


def test_what_the_generator_does_is_not_said_of_images_that_it_does_not_make() -> None:
    plan = of_synthesis(privatize=GAUSSIAN, outputs_per_group=3, spread_directions=2)
    assert not any("not independent" in line for line in limits_of(plan))
    assert not any("principal directions" in line for line in limits_of(plan))


def test_a_release_says_that_its_averages_were_moved_out() -> None:
    moved = small_study(synthesis={**small_plan()["synthesis"], "spread_directions": 2})
    assert sum("along 2 principal directions" in line for line in limits_of(moved)) == 1
    assert not any("principal directions" in line for line in limits_of(small_study()))


AT_RISK: dict[str, tuple[dict[str, object], str]] = {
    "likeness": ({"grouping": "similar", "k": 20, "privatize": None}, "for their likeness are not"),
    "swapped": (
        {"grouping": "similar-swap", "k": 20, "privatize": None},
        "for their likeness are not",
    ),
    "few": ({"grouping": "cells", "k": 9, "privatize": None}, "Averages of fewer than 10 patients"),
    "few alike": (
        {"grouping": "similar", "k": 9, "privatize": None},
        "likeness, and of fewer than 10 patients",
    ),
    "single images": (
        {"grouping": "random", "k": 9, "privatize": GAUSSIAN | {"egress": "single"}},
        "fewer than 10",
    ),
}
SAFER: dict[str, dict[str, object]] = {
    "cells": {"grouping": "cells", "k": 10, "privatize": None},
    "random": {"grouping": "random", "k": 10, "privatize": None},
    "noise": {"grouping": "similar", "k": 9, "privatize": GAUSSIAN},
    "anchors": ANCHORS,
}


@pytest.mark.parametrize("case", AT_RISK)
def test_averages_that_are_not_safe_from_re_identification_are_named(case: str) -> None:
    changes, words = AT_RISK[case]
    (found,) = [line for line in limits_of(of_synthesis(**changes)) if "re-identification" in line]
    assert words in found


@pytest.mark.parametrize("case", SAFER)
def test_others_are_not(case: str) -> None:
    assert not any("re-identification" in line for line in limits_of(of_synthesis(**SAFER[case])))
