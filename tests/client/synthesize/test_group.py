"""Grouping: sizes, strata and modes for any cohort, codes, bad input."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.state import group_store
from client.synthesize import group as g
from common.errors import ConfigurationError, PolicyError

KEY = b"k" * 32


def names(count: int) -> list[str]:
    return [f"{i:064x}" for i in range(count)]


def flat_roster(count: int) -> g.Roster:
    return g.roster(names(count), np.arange(count), np.zeros(count, int), key=KEY)


def points(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 6))


def public_cells(count: int = 12, dimension: int = 6) -> g.Cells:
    return g.Cells(np.random.default_rng(99).normal(size=(count, dimension)))


def arguments(mode: g.Mode, codes: np.ndarray) -> dict[str, object]:
    """What a mode takes besides the roster."""
    return {
        "codes": None if mode == "random" else codes,
        "cells": public_cells(dimension=codes.shape[1]) if mode in ("cells", "anchors") else None,
    }


@settings(max_examples=100, deadline=None)
@given(
    patients=st.integers(1, 40),
    k=st.integers(2, 7),
    mode=st.sampled_from(g.MODES),
    seed=st.integers(0, 10_000),
    ties=st.booleans(),
)
def test_any_cohort_is_partitioned_into_groups_of_k_to_2k_minus_1(
    patients: int, k: int, mode: g.Mode, seed: int, ties: bool
) -> None:
    rng = np.random.default_rng(seed)
    patient_of = np.repeat(np.arange(patients), rng.integers(1, 4, patients))
    who = g.roster(
        names(patients),
        patient_of,
        rng.integers(-1, 3, len(patient_of)),
        key=KEY,
        laterality_of=rng.integers(0, 3, len(patient_of)),
    )
    images = (
        rng.integers(0, 2, (len(patient_of), 5)) if ties else rng.normal(size=(len(patient_of), 5))
    )
    extra = arguments(mode, g.patient_codes(images, who))
    if len(who.pseudonyms) < k:
        with pytest.raises(PolicyError, match=f"at least k={k} distinct patients"):
            g.form_groups(who, k, mode, key=KEY, **extra)  # type: ignore[arg-type]
        return
    grouping = g.form_groups(who, k, mode, key=KEY, **extra)  # type: ignore[arg-type]
    everyone = [m for group in grouping.groups for m in group.members] + list(grouping.suppressed)
    assert sorted(everyone) == sorted(who.pseudonyms)
    assert all(
        k <= len(group.members) <= (2 * k - 1 if mode != "anchors" else 40)
        for group in grouping.groups
    )
    stratum_of = dict(zip(who.pseudonyms, who.strata, strict=True))
    assert all(stratum_of[m] == group.stratum for group in grouping.groups for m in group.members)
    small = {s for s in who.strata if who.strata.count(s) < k}
    suppressed = {stratum_of[m] for m in grouping.suppressed}
    assert suppressed >= small if mode == "anchors" else suppressed == small


def test_a_patient_code_is_the_mean_of_its_images_whatever_their_number() -> None:
    codes = np.array([[0.0], [2.0], [4.0], [9.0]])
    who = g.roster(["a", "b"], np.array([0, 0, 0, 1]), np.zeros(4, int), key=KEY)
    found = dict(zip(who.pseudonyms, g.patient_codes(codes, who)[:, 0], strict=True))
    assert found == {"a": 2.0, "b": 9.0}


def test_conflicting_labels_take_the_highest_and_only_its_images_count() -> None:
    who = g.roster(
        ["a"], np.zeros(3, int), np.array([0, 3, 3]), laterality_of=np.array([1, 2, 2]), key=KEY
    )
    assert (who.strata, who.images) == ((group_store.Stratum(3, 2),), ((1, 2),))


def test_an_unlabelled_or_rejected_image_does_not_enter() -> None:
    usable = np.array([True, True, False])
    who = g.roster(names(3), np.arange(3), np.array([-1, 0, 0]), key=KEY, usable=usable)
    assert who.pseudonyms == (names(3)[1],)


@pytest.mark.parametrize(
    ("mode", "codes", "cells", "words"),
    [
        ("random", points(6), None, "no pixel may decide"),
        ("similar", None, None, "needs one code per patient"),
        ("similar", points(5), None, "needs one code per patient"),
        ("paper", points(6), public_cells(), "they alone, take Cells"),
        ("cells", points(6), None, "they alone, take Cells"),
        ("anchors", points(6), points(4), "they alone, take Cells"),
        ("cells", points(6), public_cells(dimension=5), "cells of shape"),
        ("cells", points(6), public_cells(0), "cells of shape"),
        ("nearest", points(6), None, "mode 'nearest'"),
        ("similar", np.full((6, 2), np.nan), None, "not finite"),
        ("cells", np.full((6, 6), np.inf), public_cells(), "not finite"),
    ],
)
def test_what_does_not_fit_the_mode_is_refused(
    mode: g.Mode, codes: np.ndarray | None, cells: g.Cells | None, words: str
) -> None:
    with pytest.raises(ConfigurationError, match=words):
        g.form_groups(flat_roster(6), 3, mode, key=KEY, codes=codes, cells=cells)


@pytest.mark.parametrize("mode", ["similar", "similar-swap", "cells", "paper"])
def test_identical_images_still_make_groups_of_k(mode: g.Mode) -> None:
    extra = arguments(mode, np.ones((11, 6)))
    grouping = g.form_groups(flat_roster(11), 3, mode, key=KEY, **extra)  # type: ignore[arg-type]
    assert sorted(len(group.members) for group in grouping.groups) in ([3, 3, 5], [3, 4, 4])


def test_a_patient_with_500_images_is_one_of_k_and_weighs_1() -> None:
    patient_of = np.append(np.zeros(500, int), np.arange(1, 5))
    who = g.roster(names(5), patient_of, np.zeros(504, int), key=KEY)
    codes = g.patient_codes(np.append(np.full((500, 1), 4.0), np.zeros((4, 1)), axis=0), who)
    (only,) = g.form_groups(who, 5, "similar", key=KEY, codes=codes).groups
    assert (len(only.members), codes.sum()) == (5, 4.0)
    with pytest.raises(PolicyError):
        g.form_groups(who, 6, "similar", key=KEY, codes=codes)


def test_cells_keep_neighbours_together() -> None:
    """Two clouds around two public centres.

    No group mixes them, and inside a cloud the key decides, not the distance.
    """
    codes = np.concatenate([np.full((15, 2), -9.0), np.full((15, 2), 9.0)]) + points(30)[:, :2]
    who = g.roster(names(30), np.arange(30), np.zeros(30, int), key=KEY)
    side = {
        name: codes[rows[0], 0] > 0 for name, rows in zip(who.pseudonyms, who.images, strict=True)
    }
    cells = g.Cells(np.array([[-9.0, -9.0], [9.0, 9.0]]))
    grouping = g.form_groups(
        who, 5, "cells", key=KEY, codes=g.patient_codes(codes, who), cells=cells
    )
    assert [len({side[m] for m in group.members}) for group in grouping.groups] == [1] * 6
    other = g.form_groups(
        who, 5, "cells", key=b"x" * 32, codes=g.patient_codes(codes, who), cells=cells
    )
    assert set(other.groups) != set(grouping.groups)


def test_another_key_gives_another_random_grouping() -> None:
    first = g.form_groups(flat_roster(30), 5, "random", key=KEY)
    assert g.form_groups(flat_roster(30), 5, "random", key=KEY) == first
    assert set(g.form_groups(flat_roster(30), 5, "random", key=b"x" * 32).groups) != set(
        first.groups
    )
