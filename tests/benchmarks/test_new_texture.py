"""New texture: what members have is none, what none of them has is."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks import new_texture
from benchmarks.average_makers import Released
from benchmarks.new_texture import FOREIGN, MEMBER, Members, measure, patches, tables, targets
from common.arrays import Images
from common.models.pretrained_features import PretrainedFeatures, load_features

SIDE = 64


@pytest.fixture(scope="module")
def network() -> PretrainedFeatures:
    return load_features()


def smooth(count: int, seed: int) -> Images:
    """Slopes of different directions and brightness."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE]
    made = [90 + rng.uniform(-1, 1) * x + rng.uniform(-1, 1) * y for _ in range(count)]
    return np.stack([made] * 3, axis=-1).clip(40, 250).astype(np.uint8)


def checked(count: int, seed: int) -> Images:
    """The same under a checkerboard."""
    board = (np.indices((SIDE, SIDE)).sum(0) // 2 % 2 * 60)[None, :, :, None]
    return (smooth(count, seed).astype(int) + board).clip(0, 255).astype(np.uint8)


def test_a_texture_that_a_member_has_is_not_new(network: PretrainedFeatures) -> None:
    images = smooth(6, 0)
    group = Members(images, network)
    for one in patches(images, network):
        assert group.new_share(one) == 0


def test_a_texture_that_no_member_has_is_new(network: PretrainedFeatures) -> None:
    group = Members(smooth(6, 0), network)
    seen = group.new_share(patches(checked(1, 1), network)[0])
    assert seen > 0.9 > group.most


def test_about_five_of_a_hundred_patches_of_members_are_new_to_the_others(
    network: PretrainedFeatures,
) -> None:
    images = smooth(6, 0)
    images[0] = checked(1, 0)[0]
    # one of six is foreign to the others: nearly all that is new is its own
    assert Members(images, network).most == pytest.approx(6 * 0.05, abs=0.02)


def test_patches_over_the_edge_of_the_field_do_not_count(network: PretrainedFeatures) -> None:
    images = smooth(1, 0)
    images[:, :, 36:] = 0
    assert len(patches(images, network)[0]) == 4 * new_texture.CELLS


def test_each_group_is_judged_by_its_own_members(
    network: PretrainedFeatures, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = np.concatenate([smooth(5, 0), checked(5, 1)])
    averages = np.concatenate([checked(1, 2), smooth(1, 3)])
    groups = ((0, 1, 2, 3, 4), (5, 6, 7, 8, 9))
    straight = Released(averages[::-1], np.zeros(2, int), np.arange(2), groups)
    crossed = Released(averages, np.zeros(2, int), np.arange(2), groups)
    made = {"cells": straight, "cells, centroid": crossed, "same-pixel": straight}
    monkeypatch.setattr(new_texture, "load_or_average", lambda ready, row, k: made[row])
    members = SimpleNamespace(images=images, person_of=np.arange(10))
    ready: Any = SimpleNamespace(part=SimpleNamespace(members=members))
    found = measure(ready, 5, network, smooth(1, 9))
    assert found["cells"]["mean"] < 0.2 < 0.8 < found["cells, centroid"]["mean"]
    result = {"here": {"5": found}}
    assert targets(result)[0].met == (found["cells"]["mean"] <= found[MEMBER]["mean"])
    assert len(tables(result)[0].rows[0]) == len((MEMBER, FOREIGN)) + 5


def test_more_new_texture_than_any_member_has_does_not_meet_what_is_asked() -> None:
    def shares(own: float) -> dict[str, dict[str, float]]:
        return {"cells": {"mean": own}, MEMBER: {"mean": 0.2}}

    assert targets({"here": {"10": shares(0.2)}})[0].met
    assert not targets({"here": {"5": shares(0.1), "10": shares(0.21)}})[0].met
    assert not targets({})[0].met
