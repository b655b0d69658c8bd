"""Puts the slices of one MR series on the grid of its volume: rules over values, without files.

In: a `Plane` (geometry and pixel format) for each slice of one series.
Out: the order of the slices, and the `Grid` of their voxels in DICOM's patient coordinates (LPS,
mm).
Guarantees: the order comes from geometry alone, never from InstanceNumber or names; mixed, missing,
doubled or misplaced slices are refused with their reason.
Not covered: slices missing at an end (a segmentation of the whole volume shows them); resampling
(there is none).

  1. check that orientation, size, spacing and pixel format agree
  2. check that the slices are axial
  3. sort along the normal
  4. check that none is doubled, none missing, all on one line at equal distances (DICOM PS3.3
     C.7.6.2)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.ingest.quarantine import Reason, Unusable

Vector = NDArray[np.float64]

MIN_SLICES = 3
FARTHEST_MM = 1e5
ANGLE_TOLERANCE = 1e-3  # of a direction cosine
SPACING_TOLERANCE = 1e-3  # relative
PLACE_TOLERANCE = 0.1  # of the smallest voxel edge
# gaps, in units of the median gap
DOUBLED = 0.1
MISSING = 1.5


@dataclass(frozen=True)
class Plane:
    """One slice, in millimetres in LPS.

    `row`: the direction along a row, in which the column index grows. `column`: the direction along
    a column. `spacing`: between rows, then between columns. `kind`: the part of the pixel format
    that must be the same in all slices.
    """

    origin: tuple[float, ...]
    row: tuple[float, ...]
    column: tuple[float, ...]
    spacing: tuple[float, float]
    shape: tuple[int, int]
    kind: tuple[Any, ...] = ()

    def corners(self) -> Vector:
        """Return the centres of the four corner pixels, [4, 3]."""
        across = np.array(self.row) * self.spacing[1] * (self.shape[1] - 1)
        down = np.array(self.column) * self.spacing[0] * (self.shape[0] - 1)
        origin = np.array(self.origin)
        return np.stack([origin, origin + across, origin + down, origin + across + down])


@dataclass(frozen=True, eq=False)
class Grid:
    """The voxels of a volume [D, H, W].

    Voxel (d, h, w) is centred at `affine` @ (w, h, d, 1), LPS, mm.
    """

    affine: Vector
    shape: tuple[int, int, int]

    @property
    def edges(self) -> Vector:
        """Return the three edges of a voxel, mm: along a row, along a column, between slices."""
        return np.asarray(np.linalg.norm(self.affine[:3, :3], axis=0))

    @property
    def tolerance_mm(self) -> float:
        """Return how far a place may be off, in mm."""
        return PLACE_TOLERANCE * float(self.edges.min())

    def plane(self, depth: int) -> Plane:
        """Return the plane of slice `depth`."""
        across, down, step = self.affine[:3, :3].T
        origin = self.affine[:3, 3] + depth * step
        row = across / self.edges[0]
        column = down / self.edges[1]
        spacing = (float(self.edges[1]), float(self.edges[0]))
        return Plane(tuple(origin), tuple(row), tuple(column), spacing, self.shape[1:])


def plane_of(
    position: Any,
    orientation: Any,
    spacing: Any,
    shape: tuple[int, int],
    kind: tuple[Any, ...] = (),
) -> Plane:
    """Return the plane that a header's position, orientation and pixel spacing state.

    These are ImagePositionPatient, ImageOrientationPatient and PixelSpacing as they stand there.
    Raises Unusable (no-geometry): missing, wrong count, not finite, not orthonormal, not positive.
    """
    # numbers, as many as there should be, all finite
    try:
        place = [float(value) for value in position]
        turn = [float(value) for value in orientation]
        gaps = [float(value) for value in spacing]
    except (TypeError, ValueError) as error:
        raise Unusable(Reason.NO_GEOMETRY) from error
    complete = (len(place), len(turn), len(gaps)) == (3, 6, 2)
    if not complete or not np.isfinite([*place, *turn, *gaps]).all():
        raise Unusable(Reason.NO_GEOMETRY)

    # orthonormal directions, positive spacing, nothing absurdly far away
    row = np.array(turn[:3])
    column = np.array(turn[3:])
    square = np.allclose(
        [row @ row, column @ column, row @ column], [1, 1, 0], rtol=0, atol=10 * ANGLE_TOLERANCE
    )
    if not square or min(gaps) <= 0 or max(*gaps, *map(abs, place)) > FARTHEST_MM:
        raise Unusable(Reason.NO_GEOMETRY)
    row = row / np.linalg.norm(row)
    column = column / np.linalg.norm(column)
    return Plane(tuple(place), tuple(row), tuple(column), (gaps[0], gaps[1]), shape, kind)


def arrange_slices(planes: Sequence[Plane]) -> tuple[list[int], Grid]:
    """Return the positions of `planes` in the order of the normal (row x column), and the grid.

    Raises Unusable: mixed-series, not-axial, volume-too-small, duplicate-slice, missing-slice,
    uneven-slices.
    """
    # (1) check that orientation, size, spacing and pixel format agree
    first = planes[0]
    if not all(are_alike(first, plane) for plane in planes):
        raise Unusable(Reason.MIXED_SERIES)

    # (2) check that the slices are axial
    normal = np.cross(first.row, first.column)
    if abs(normal[2]) < np.abs(normal).max():
        raise Unusable(Reason.NOT_AXIAL)

    # (3) sort along the normal
    origins = np.array([plane.origin for plane in planes])
    along = origins @ normal
    order = np.argsort(along, kind="stable")
    if len(order) < MIN_SLICES:
        raise Unusable(Reason.VOLUME_TOO_SMALL)

    # (4) check the distances between slices, and that all lie on one line
    _check_gaps(np.diff(along[order]))
    step = (origins[order[-1]] - origins[order[0]]) / (len(order) - 1)
    grid = _grid(planes[order[0]], step, len(order))
    line = origins[order[0]] + np.arange(len(order))[:, None] * step
    if np.linalg.norm(origins[order] - line, axis=1).max() > grid.tolerance_mm:
        raise Unusable(Reason.UNEVEN_SLICES)
    return order.tolist(), grid


def are_alike(one: Plane, other: Plane) -> bool:
    """Return whether two slices agree in orientation, size, spacing and pixel format."""
    if one.shape != other.shape or one.kind != other.kind:
        return False
    directions = zip((*one.row, *one.column), (*other.row, *other.column), strict=True)
    spacings = zip(one.spacing, other.spacing, strict=True)
    return all(abs(a - b) <= ANGLE_TOLERANCE for a, b in directions) and all(
        abs(a - b) <= SPACING_TOLERANCE * b for a, b in spacings
    )


def _check_gaps(gaps: Vector) -> None:
    """Refuse doubled and missing slices; other misplacements show as a slice off the line."""
    usual = float(np.median(gaps))
    if usual <= 0 or gaps.min() < DOUBLED * usual:
        raise Unusable(Reason.DUPLICATE_SLICE)
    if gaps.max() > MISSING * usual:
        raise Unusable(Reason.MISSING_SLICE)


def _grid(first: Plane, step: Vector, depth: int) -> Grid:
    """The grid of `depth` slices that start at `first` and lie `step` apart."""
    affine = np.eye(4)
    affine[:3, 0] = np.array(first.row) * first.spacing[1]
    affine[:3, 1] = np.array(first.column) * first.spacing[0]
    affine[:3, 2] = step
    affine[:3, 3] = first.origin
    return Grid(affine, (depth, *first.shape))
