"""Grouping by colour.

Any cohort is partitioned as by codes, an image's colour is its own, and plans say where it fits.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from client.synthesize import metric
from client.synthesize.group import Mode, form_groups, patient_codes, roster
from client.synthesize.invert import Inversion
from client.synthesize.reference import GeneratorCodes, Reference, Whitening, mean_colours
from tests.studies import SMALL, small_study

KEY = b"k" * 32


def reference() -> Reference:
    rng = np.random.default_rng(0)
    samples = GeneratorCodes(rng.normal(size=(64, 12)))
    return Reference(
        Whitening.fit(samples, 6),
        0.06,
        1.0,
        samples,
        rng.random((64, 3)),
        np.ones((2, 3), np.float32),
    )


def inversion(count: int, seed: int = 0, ties: bool = False) -> Inversion:
    """Images of some colour, with codes that know nothing of it."""
    rng = np.random.default_rng(seed)
    colour = rng.integers(0, 2, (count, 3, 1, 1)) if ties else rng.random((count, 3, 1, 1)) * 2 - 1
    images = torch.from_numpy(
        np.broadcast_to(colour, (count, 3, 4, 4)) + 0.1 * rng.normal(size=(count, 3, 4, 4))
    )
    codes = rng.normal(size=(count, 3, 4)).astype(np.float32)
    points = reference().whitening(codes)
    colours = mean_colours(images.float())
    looks = np.ones((count, 2, 3), np.float32)
    coarse = np.zeros((count, 4, 1, 1), np.float32)
    accepted = np.ones(count, np.bool_)
    return Inversion(points, colours, codes, np.zeros(count), accepted, looks, coarse)


def groups(
    seen: Inversion, order: np.ndarray, k: int, mode: Mode, patient_of: np.ndarray
) -> set[tuple[str, ...]]:
    """The groups of the same images when they are listed in another order."""
    labels = np.zeros(len(order), np.int64)
    turned = Inversion(*(rows[order] for rows in vars(seen).values()))
    names = [f"{i:04d}" for i in range(patient_of.max() + 1)]
    who = roster(names, patient_of[order], labels, key=KEY)
    points = patient_codes(metric.make_points(turned, "colour"), who)
    cells = metric.make_metric_cells(reference(), "colour") if mode == "cells" else None
    grouping = form_groups(who, k, mode, key=KEY, codes=points, cells=cells)
    everyone = [m for group in grouping.groups for m in group.members] + list(grouping.suppressed)
    assert sorted(everyone) == names
    assert all(k <= len(group.members) <= 2 * k - 1 for group in grouping.groups)
    return {group.members for group in grouping.groups}


@settings(max_examples=40, deadline=None)
@given(
    patients=st.integers(2, 40),
    k=st.integers(2, 6),
    mode=st.sampled_from(["similar", "similar-swap", "cells"]),
    seed=st.integers(0, 999),
    ties=st.booleans(),
)
def test_by_colour_any_cohort_is_partitioned_into_k_to_2k_minus_1_whatever_the_order_of_its_images(
    patients: int, k: int, mode: Mode, seed: int, ties: bool
) -> None:
    rng = np.random.default_rng(seed)
    patient_of = np.repeat(np.arange(patients), rng.integers(1, 4, patients))
    seen = inversion(len(patient_of), seed, ties)
    if patients < k:
        return
    one = groups(seen, np.arange(len(patient_of)), k, mode, patient_of)
    assert one == groups(seen, rng.permutation(len(patient_of)), k, mode, patient_of)


def test_groups_by_colour_are_of_one_colour_and_groups_by_code_are_not() -> None:
    seen = inversion(60)
    who = roster([f"{i:04d}" for i in range(60)], np.arange(60), np.zeros(60, np.int64), key=KEY)
    within = {}
    for name in ("codes", "colour"):
        points = patient_codes(metric.make_points(seen, name), who)  # type: ignore[arg-type]
        grouping = form_groups(who, 5, "similar", key=KEY, codes=points)
        colours = seen.colours
        within[name] = np.mean(
            [colours[[int(m) for m in g.members]].var(axis=0).sum() for g in grouping.groups]
        )
    assert within["colour"] < 0.4 * within["codes"]


def test_a_colour_is_the_mean_of_each_channel_and_knows_no_other_image() -> None:
    images = 3 * torch.rand(5, 3, 4, 4) - 1.5
    found = mean_colours(images)
    expected = (images.double().clamp(-1, 1).numpy().mean((2, 3)) + 1) / 2
    np.testing.assert_allclose(found, expected)
    np.testing.assert_array_equal(found[2:3], mean_colours(images[2:3]))
    assert found.shape == (5, 3)


def test_codes_and_cells_are_of_the_space_that_the_plan_names() -> None:
    known, seen = reference(), inversion(4)
    np.testing.assert_array_equal(metric.make_points(seen, "codes"), seen.points)
    np.testing.assert_array_equal(metric.make_points(seen, "colour"), seen.colours)
    np.testing.assert_array_equal(
        metric.make_metric_cells(known, "codes").centres, known.whitening(known.samples.codes)
    )
    np.testing.assert_array_equal(metric.make_metric_cells(known, "colour").centres, known.colours)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"grouping": "random"}, "grouping random takes codes alone"),
        (
            {"grouping": "cells", "spread_directions": 2},
            "spread_directions: not with group_by colour",
        ),
        ({"group_by": "texture"}, "group_by"),
    ],
)
def test_a_plan_that_asks_for_colour_where_it_does_not_fit_is_refused(
    changed: dict[str, object], words: str
) -> None:
    small_study(synthesis=SMALL["synthesis"] | {"group_by": "colour"})
    with pytest.raises(ValueError, match=words):
        small_study(synthesis=SMALL["synthesis"] | {"group_by": "colour"} | changed)
