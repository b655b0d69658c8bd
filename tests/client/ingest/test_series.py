"""client/ingest/series.py.

Order and grid come from geometry, and each way in which slices make no volume has its reason.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from client.ingest.quarantine import Reason, Unusable
from client.ingest.series import Grid, Plane, arrange_slices, plane_of

TILTED = (0.9961947, 0.0, -0.0871557, 0.0075961, 0.9961947, 0.0868241)


def plane(depth: float, orientation: tuple[float, ...] = TILTED) -> Plane:
    normal = np.cross(orientation[:3], orientation[3:])
    return plane_of(
        np.array([5.0, -3.0, 20.0]) + 0.8 * depth * normal, orientation, (0.5, 0.3), (40, 48)
    )


def refused(planes: list[Plane]) -> Reason:
    with pytest.raises(Unusable) as refusal:
        arrange_slices(planes)
    return refusal.value.reason


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)])
def test_slices_are_ordered_along_the_normal(order: tuple[int, ...]) -> None:
    found, grid = arrange_slices([plane(depth) for depth in order])
    assert [order[i] for i in found] == [0, 1, 2, 3]
    assert grid.shape == (4, 40, 48)
    np.testing.assert_allclose(grid.edges, [0.3, 0.5, 0.8], rtol=1e-6)
    np.testing.assert_allclose(grid.affine[:3, 3], plane(0).origin)


def test_a_slice_of_the_grid_is_the_slice_that_it_came_from() -> None:
    planes = [plane(depth) for depth in range(4)]
    _, grid = arrange_slices(planes)
    for depth, one in enumerate(planes):
        np.testing.assert_allclose(grid.plane(depth).corners(), one.corners(), atol=1e-5)


def test_a_turned_over_stack_runs_the_other_way() -> None:
    over = (1.0, 0.0, 0.0, 0.0, -1.0, 0.0)  # the normal points to the feet
    order, grid = arrange_slices(
        [plane_of((0, 0, z), over, (1, 1), (8, 8)) for z in (0.0, 1.0, 2.0)]
    )
    assert order == [2, 1, 0]
    assert grid.affine[2, 2] == -1.0


def test_each_fault_has_its_reason() -> None:
    good = [plane(depth) for depth in range(6)]
    assert refused([*good[:3], *good[4:]]) is Reason.MISSING_SLICE
    assert refused([*good, good[2]]) is Reason.DUPLICATE_SLICE
    assert refused([*good, *good]) is Reason.DUPLICATE_SLICE
    assert refused([*good[:5], plane(5.3)]) is Reason.UNEVEN_SLICES
    off_line = tuple(np.array(good[3].origin) + 0.2 * np.array(good[3].row))
    assert (
        refused([*good[:3], replace(good[3], origin=off_line), *good[4:]]) is Reason.UNEVEN_SLICES
    )
    assert refused(good[:2]) is Reason.VOLUME_TOO_SMALL
    assert refused([*good[:5], replace(good[5], spacing=(0.5, 0.31))]) is Reason.MIXED_SERIES
    assert refused([*good[:5], replace(good[5], shape=(48, 40))]) is Reason.MIXED_SERIES
    assert refused([*good[:5], replace(good[5], kind=("MONOCHROME1",))]) is Reason.MIXED_SERIES
    assert refused([*good[:5], plane(5, (1.0, 0.0, 0.0, 0.0, 1.0, 0.0))]) is Reason.MIXED_SERIES
    sagittal = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
    assert refused([plane(depth, sagittal) for depth in range(4)]) is Reason.NOT_AXIAL


def test_small_unevenness_of_a_real_header_is_borne() -> None:
    jitter = (0.0, 0.01, -0.01, 0.02, 0.0)
    order, grid = arrange_slices([plane(depth + jitter[depth]) for depth in range(5)])
    assert order == [0, 1, 2, 3, 4]
    assert isinstance(grid, Grid)


@pytest.mark.parametrize(
    "values",
    [
        (None, TILTED, (1, 1)),
        ((0, 0), TILTED, (1, 1)),
        ((0, 0, "x"), TILTED, (1, 1)),
        ((0, 0, float("nan")), TILTED, (1, 1)),
        ((0, 0, 1e300), TILTED, (1, 1)),
        ((0, 0, 0), (1, 0, 0, 1, 0, 0), (1, 1)),
        ((0, 0, 0), (0, 0, 0, 0, 0, 0), (1, 1)),
        ((0, 0, 0), (float("inf"), 0, 0, 0, 1, 0), (1, 1)),
        ((0, 0, 0), TILTED, (0, 1)),
        ((0, 0, 0), TILTED, (1, -1)),
        ((0, 0, 0), TILTED, 1),
    ],
)
def test_impossible_geometry_is_refused(values: tuple[object, ...]) -> None:
    with pytest.raises(Unusable) as refusal:
        plane_of(*values, shape=(4, 4))
    assert refusal.value.reason is Reason.NO_GEOMETRY
