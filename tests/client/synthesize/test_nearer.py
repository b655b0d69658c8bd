"""An aligned code is kept where it is nearer in features that nobody optimised, and only there."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from client.state.group_store import Group, Stratum
from client.synthesize.appearance import Appearance
from client.synthesize.group import Roster
from client.synthesize.nearer import MeanFeatures, gather_features, keep_nearer
from common.errors import Bug, PolicyError
from common.models.look import Look
from tests.flat_networks import Colours, Plain

MEMBERS = tuple("abc")
GROUP = Group(MEMBERS, Stratum(0), 3)
COMMON = Look(torch.zeros(1, 3), torch.full((1, 3), 0.3))


def kept(
    aligned: list[float], average: list[float], residual: tuple[float, float, float] = (0, 0, 0)
) -> torch.Tensor:
    target = MeanFeatures(GROUP, torch.zeros(3), 3)
    generator: Any = Plain()
    network: Any = Colours()
    statistics: Any = SimpleNamespace(centroid=torch.tensor([average]))
    codes = torch.tensor([[aligned]])
    coarse = torch.tensor(residual)[:, None, None]
    look = Look(torch.zeros(1, 3), torch.ones(1, 3))
    shown = Appearance(GROUP, look, 3, coarse, torch.full((1, 1), 3), torch.ones(1, 16, 16))
    return keep_nearer(codes, [statistics], [target], [shown], generator, network)[0, 0]


@pytest.mark.parametrize(
    ("aligned", "average", "which"),
    [
        ([0.1, 0.0, 0.0], [0.2, 0.0, 0.0], "aligned"),
        ([0.2, 0.0, 0.0], [0.1, 0.0, 0.0], "average"),
        ([0.1, 0.0, 0.0], [0.1, 0.0, 0.0], "average"),
        ([float("nan"), 0.0, 0.0], [0.1, 0.0, 0.0], "average"),
    ],
    ids=["nearer", "farther", "as near", "not finite"],
)
def test_alignment_can_only_help(aligned: list[float], average: list[float], which: str) -> None:
    expected = aligned if which == "aligned" else average
    assert kept(aligned, average).tolist() == pytest.approx(expected)


def test_both_are_looked_at_with_the_residual_with_which_they_are_released() -> None:
    aligned, average = [0.1, 0.0, 0.0], [0.6, 0.0, 0.0]
    assert kept(aligned, average).tolist() == pytest.approx(aligned)
    assert kept(aligned, average, (-0.6, 0, 0)).tolist() == pytest.approx(average)


def test_each_patient_weighs_one_whatever_the_number_of_images() -> None:
    random = np.random.default_rng(0)
    images = random.integers(40, 220, (5, 16, 16, 3)).astype(np.uint8)
    rows = ((0, 1, 2), (3,), (4,))
    network: Any = Colours()
    who = Roster(MEMBERS, (Stratum(0),) * 3, rows)
    [found] = gather_features(images, [GROUP], who, network, COMMON)
    alone = Roster(MEMBERS, (Stratum(0),) * 3, ((0,), (1,), (2,)))
    three = gather_features(images[:3], [GROUP], alone, network, COMMON)[0].mean
    rest = []
    for row in (3, 4):
        same = images[[row] * 3]
        rest.append(gather_features(same, [GROUP], alone, network, COMMON)[0].mean)
    torch.testing.assert_close(found.mean, torch.stack([three, *rest]).mean(0))


def test_mean_features_have_k_distinct_patients_behind_them_or_are_none() -> None:
    with pytest.raises(PolicyError) as refused:
        MeanFeatures(GROUP, torch.zeros(3), 2)
    assert refused.value.code == "E-GROUP-SIZE"
    with pytest.raises(Bug, match="expected a Group"):
        MeanFeatures(MEMBERS, torch.zeros(3), 3)  # type: ignore[arg-type]
    with pytest.raises(Bug, match="not finite"):
        MeanFeatures(GROUP, torch.full((3,), torch.nan), 3)
