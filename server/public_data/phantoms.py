"""Procedural vessel phantoms: MR-like volumes with known vessel masks.

In: a numpy generator and a `Style`.
Out: a `Phantom` (image and mask of one invented patient), or 2-D patches of it.
Guarantees: the mask is exact; the same generator state gives the same phantom; nobody is in it.
Not covered: anatomy. Vessels are random branching walks. Figures on phantoms say how a method
behaves, not what it would reach in patients.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.arrays import Floats, Pairs
from common.errors import ConfigurationError

SHAPE = (12, 96, 96)
MAGNIFY = 2
STEP = 1.0  # voxels between two points of a centre line
SOFT_EDGE = 1.6  # radii: a tube's signal ends here, where it is below 0.17
LONGEST_WALK = 300  # points
MOST_GENERATIONS = 3  # of branches of a trunk
Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Style:
    """What one scanner and its patients look like.

    Radii in voxels; intensities on a scale where tissue is about 0.3.
    """

    trunks: tuple[int, int]
    radius: tuple[float, float]
    bend: float  # standard deviation of the change of direction a step, radians
    branching: float  # chance of a branch a step
    brightness: tuple[float, float]
    tissue: float
    texture: float
    noise: float
    blobs: int  # bright round structures that are no vessel, at most


STYLES = {
    "hospital": Style((3, 4), (2.0, 3.4), 0.12, 0.015, (0.55, 0.90), 0.30, 0.13, 0.05, 6),
    "public": Style((3, 4), (1.7, 2.8), 0.08, 0.015, (0.65, 0.80), 0.38, 0.10, 0.03, 1),
}


@dataclass(frozen=True)
class Phantom:
    """One invented patient, [D, H, W]: `image` float32 in [0, 1], `mask` uint8 of 0 and 1."""

    image: NDArray[np.float32]
    mask: NDArray[np.uint8]


def volume(
    rng: np.random.Generator, style: Style, shape: Shape = SHAPE, magnify: int = MAGNIFY
) -> Phantom:
    """Return one phantom of `shape` [D, H, W] with at least one vessel voxel.

    In the plane everything is `magnify` times as large; H and W are multiples of it.
    """
    # vessels: the signal is 1 on a centre line, 0.5 at the wall
    coarse = (shape[0], shape[1] // magnify, shape[2] // magnify)
    trunks = rng.integers(*style.trunks, endpoint=True)
    points = np.concatenate([_grow_tree(rng, style, coarse) for _ in range(trunks)])
    signal = _magnify(_render(points, coarse), magnify)
    if not (signal >= 0.5).any():
        signal[tuple(n // 2 for n in shape)] = 1.0

    # tissue: smooth texture, and bright round structures that are no vessel
    brightness = rng.uniform(*style.brightness)
    tissue = style.tissue + style.texture * _smooth(rng, shape, (12, 12 * magnify, 12 * magnify))
    for _ in range(rng.integers(0, style.blobs, endpoint=True)):
        tissue += rng.uniform(0.2, 0.6) * _blob(rng, shape, magnify)

    # image: vessels over tissue, under Rician noise (the magnitude of a complex signal)
    weight = np.clip(signal * 1.6, 0, 1)
    clean = tissue * (1 - weight) + brightness * weight
    first, second = rng.normal(0, style.noise, (2, *shape))
    image = np.sqrt((clean + first) ** 2 + second**2)
    return Phantom(np.clip(image, 0, 1).astype(np.float32), (signal >= 0.5).astype(np.uint8))


def patches(phantom: Phantom, count: int, size_px: int, rng: np.random.Generator) -> Pairs:
    """Return `count` axial patches of image and mask, uint8 [count, S, S, 2].

    Half are centred on a vessel, half lie anywhere.
    Raises ConfigurationError for patches that are larger than the phantom.
    """
    _, height, width = phantom.mask.shape
    if size_px > min(height, width):
        raise ConfigurationError(
            f"phantom: patches of {size_px} px, expected at most {min(height, width)} px"
        )

    # draw the centres
    vessel = np.argwhere(phantom.mask)
    anywhere = rng.integers(0, phantom.mask.shape, (count, 3))
    on_vessel = vessel[rng.integers(0, len(vessel), (count + 1) // 2)]
    centres = np.concatenate([on_vessel, anywhere])[:count]

    # cut the patches out of the image, scaled to 0..255; at the border they move inwards
    low = float(phantom.image.min())
    high = float(phantom.image.max())
    scaled = np.rint((phantom.image - low) * (255 / max(high - low, 1e-6))).astype(np.uint8)
    found = np.empty((count, size_px, size_px, 2), np.uint8)
    largest = (height - size_px, width - size_px)
    for i, (z, y, x) in enumerate(centres):
        top, left = np.clip((y - size_px // 2, x - size_px // 2), 0, largest)
        window = (z, slice(top, top + size_px), slice(left, left + size_px))
        found[i, ..., 0] = scaled[window]
        found[i, ..., 1] = phantom.mask[window] * 255
    return found


def _grow_tree(rng: np.random.Generator, style: Style, shape: Shape) -> Floats:
    """Return centre-line points (z, y, x, radius) of a trunk from the border, and its branches."""
    # the trunk begins outside and points to somewhere near the centre
    size = np.array(shape, float)
    angle = rng.uniform(0, 2 * np.pi)
    centre = size / 2 + rng.normal(0, 0.18, 3) * size
    start = centre - 0.75 * size[1] * np.array([0.0, np.sin(angle), np.cos(angle)])
    open_ends = [(start, angle, rng.uniform(*style.radius), 0)]
    rows: list[tuple[float, float, float, float]] = []
    while open_ends:
        # walk the next trunk or branch; how it turns, climbs and forks is drawn beforehand
        place, angle, radius, generation = open_ends.pop()
        place = place.copy()
        slope = rng.normal(0, 0.06)
        turns = rng.normal(0, style.bend, LONGEST_WALK)
        climbs = rng.normal(0, 0.02, LONGEST_WALK)
        forks = rng.random(LONGEST_WALK) < style.branching
        for turn, climb, fork in zip(turns, climbs, forks, strict=True):
            # walk one step; the vessel becomes thinner
            angle += turn
            slope = slope * 0.98 + climb
            place = place + STEP * np.array([slope, np.sin(angle), np.cos(angle)])
            radius *= 0.9985
            if np.any(np.abs(place - size / 2) > size * 0.9):
                break
            rows.append((place[0], place[1], place[2], radius))

            # fork: the branch is walked later
            if fork and generation < MOST_GENERATIONS and radius > 1.0:
                side = rng.choice((-1.0, 1.0)) * rng.uniform(0.5, 1.1)
                thinner = radius * rng.uniform(0.6, 0.8)
                open_ends.append((place, angle + side, thinner, generation + 1))
                angle -= side * 0.3
                radius *= 0.92
    return np.array(rows or [(*(size / 2), style.radius[0])])


def _render(points: Floats, shape: Shape) -> Floats:
    """Soft tubes around centre-line points.

    At distance d from a point of radius r the signal is 2^-(d/r)², so 0.5 at the wall. The largest
    signal of all points counts.
    """
    # the points near the volume, widest first
    points = points[np.argsort(-points[:, 3])]
    base = np.rint(points[:, :3]).astype(np.int64)
    reach = int(np.ceil(points[0, 3] * SOFT_EDGE))
    inside = np.all((base > -reach) & (base < np.array(shape) + reach), axis=1)
    points = points[inside]
    base = base[inside]

    # for every offset, draw into the voxels at that offset from a point
    signal = np.zeros(shape)
    steps = np.arange(-reach, reach + 1)
    for offset in np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3):
        # points are sorted by radius: those that reach this offset come first
        wide = int((points[:, 3] * SOFT_EDGE >= np.linalg.norm(offset) - 0.87).sum())
        at = base[:wide] + offset
        kept = np.all((at >= 0) & (at < np.array(shape)), axis=1)
        squared = ((at[kept] - points[:wide][kept, :3]) ** 2).sum(1) / points[:wide][kept, 3] ** 2
        np.maximum.at(signal, tuple(at[kept].T), np.exp2(-squared))
    return signal


def _magnify(field: Floats, factor: int) -> Floats:
    """The field with `factor` times as many voxels along both in-plane axes, interpolated."""
    if factor <= 1:
        return field
    for axis in (1, 2):
        n = field.shape[axis]
        place = np.clip((np.arange(n * factor) + 0.5) / factor - 0.5, 0, n - 1.001)
        field = _interpolate(field, axis, place)
    return field


def _blob(rng: np.random.Generator, shape: Shape, magnify: int) -> Floats:
    """One soft ball of 3 to 6 coarse voxels' radius somewhere."""
    axes = [np.arange(n, dtype=float) for n in shape]
    grids = np.meshgrid(*axes, indexing="ij", sparse=True)
    squared: Floats = np.zeros(())
    for grid, n, scale in zip(grids, shape, (1, magnify, magnify), strict=True):
        squared = squared + ((grid - rng.uniform(0, n)) / scale) ** 2
    soft: Floats = 1 / (1 + np.exp((np.sqrt(squared) - rng.uniform(3, 6)) / 0.7))
    return soft


def _smooth(rng: np.random.Generator, shape: Shape, grains: Shape) -> Floats:
    """Smooth noise of about unit amplitude: a random grid, one value a grain, interpolated."""
    grid = [n // grain + 2 for n, grain in zip(shape, grains, strict=True)]
    field = rng.normal(0, 1, grid)
    for axis, n in enumerate(shape):
        field = _interpolate(field, axis, np.linspace(0, field.shape[axis] - 1.001, n))
    return field


def _interpolate(field: Floats, axis: int, place: Floats) -> Floats:
    """The field's values at fractional places along one axis, linearly."""
    low = place.astype(np.int64)
    along = [1] * field.ndim
    along[axis] = -1
    part = (place - low).reshape(along)
    return np.take(field, low, axis) * (1 - part) + np.take(field, low + 1, axis) * part
