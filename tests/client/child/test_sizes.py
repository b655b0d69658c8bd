"""Corners of what a plan admits: sizes, channels, groupings, labels, canaries, architectures.

benchmarks/every_size.py runs every family at every size.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.every_size import (
    IMAGES,
    SIZES_PX,
    Case,
    every_case,
    finish,
    foresee,
    open_hospital,
    prepare,
)
from client.egress.review import page_name
from common.models.sizes import PAIR_SIZES_PX

TRAINED = {
    "a flow of seven levels, grey": Case("glow", 128, 1, levels=7, merged=True),
    "a flow of 512 px": Case("glow", 512, levels=2),
    "a generator of 96 px with canaries": Case("gan", 96, canaries=32),
    "a grey generator of 256 px": Case("gan", 256, 1, merged=True, sides=False),
    "pairs of 256 px": Case("wgan", 256, 1, canaries=16),
    "pairs of 32 px, the mask first": Case("wgan", 32, 1, "mask-first"),
    "the look of pairs with more canaries than numbers": Case(
        "wgan", 32, 1, "mask-first", canaries=32, trainable=("critic.look",)
    ),
    "pairs of 64 px, the published networks": Case("wgan", 64, 1, "kossen2022"),
}
DRAWN = {
    "cells of 32 px": Case(IMAGES, 32, grouping="cells", merged=True),
    "anchors of 96 px, grey": Case(IMAGES, 96, 1, grouping="anchors", merged=True, sides=False),
    "random groups of 128 px": Case(IMAGES, 128, 1, grouping="random", sides=False),
    "groups with swaps of 64 px": Case(IMAGES, 64, grouping="similar-swap"),
}


@pytest.mark.parametrize("name", TRAINED)
def test_a_round_is_trained(name: str, tmp_path: Path) -> None:
    case = TRAINED[name]
    hospital, weights = open_hospital(tmp_path / "hospital", case)
    assert case.family in foresee(hospital)
    prepare(hospital, weights, case.family, tmp_path / "job")
    update = finish(case.family, tmp_path / "job")
    sent = {name: array.shape for name, array in weights[case.family].items()}
    assert {name: array.shape for name, array in update.items()} == sent
    assert all(np.isfinite(array).all() for array in update.values())


@pytest.mark.parametrize("name", DRAWN)
def test_images_are_made(name: str, tmp_path: Path) -> None:
    case = DRAWN[name]
    hospital, weights = open_hospital(tmp_path / "hospital", case)
    assert "invert" in foresee(hospital) or case.grouping == "random"
    prepare(hospital, weights, IMAGES, tmp_path / "job")
    found = finish(IMAGES, tmp_path / "job")
    assert found["images"].shape[1:] == (case.size_px, case.size_px, case.channels)
    assert len(found["images"])
    assert (tmp_path / "job" / page_name("contact_sheet.png", 0)).is_file()


def test_the_benchmark_has_every_family_at_every_size() -> None:
    cases = {(case.family, case.architecture, case.size_px) for case in every_case()}
    for size_px in SIZES_PX:
        assert {("gan", "small", size_px), ("glow", "small", size_px)} <= cases
    for architecture, sizes_px in PAIR_SIZES_PX.items():
        assert {("wgan", architecture, size_px) for size_px in sizes_px} <= cases
