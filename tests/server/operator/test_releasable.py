"""Which plans of pairs are refused before they are signed."""

from typing import Any

import pytest

from common.errors import PolicyError
from common.study.plan import Study
from server.operator.releasable import check_releasable, releases_pairs
from tests.studies import vessels_plan


def study_of(**changes: Any) -> Study:
    return Study.model_validate(vessels_plan(**changes))


PLANS: dict[str, dict[str, Any]] = {
    "labels that the generator does not know": {"intake__labels": ["aneurysm", "none"]},
    "more pairs than a release can hold": {"models__wgan__released_pairs": 100_000},
    "fewer pairs than the release needs": {"release__min_images": 13},
}


@pytest.mark.parametrize("sentence", PLANS)
def test_a_plan_is_not_signed_that_has(sentence: str) -> None:
    check_releasable(study_of())
    with pytest.raises(PolicyError) as refused:
        check_releasable(study_of(**PLANS[sentence]))
    assert refused.value.code == "E-PLAN-PAIRS" and releases_pairs(study_of())
