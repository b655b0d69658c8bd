"""Membership over the whole batch: found where the batch tells members from others."""

import numpy as np
import pytest

from client.egress import membership
from tests.photographs import photographs

SITE = photographs(90, seed=3)
GROUPED = np.arange(90) < 60


def k_averages(images: np.ndarray, k: int) -> np.ndarray:
    return images.reshape(-1, k, *images.shape[1:]).mean(1).astype(np.uint8)


BATCHES = {
    "the photographs themselves": (SITE[:60], True),
    "averages of two": (k_averages(SITE[:60], 2), True),
    "averages of ten": (k_averages(SITE[:60], 10), False),
    "strangers": (photographs(30, seed=8), False),
}


@pytest.mark.parametrize("name", BATCHES)
def test_a_batch_that_tells_members_from_others_is_found(name: str) -> None:
    released, expected = BATCHES[name]
    assert membership.gives_away_members(released, SITE, np.arange(90), GROUPED) is expected


def test_with_few_patients_outside_the_groups_nothing_is_said() -> None:
    few = np.arange(90) < 71
    assert membership.gives_away_members(SITE[:71], SITE, np.arange(90), few) is None
    # images are not patients: twenty images of ten others are ten
    owner = np.where(GROUPED, np.arange(90), 60 + np.arange(90) // 4)
    assert membership.gives_away_members(SITE[:60], SITE, owner, GROUPED) is None
