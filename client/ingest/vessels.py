"""Maps the vessels of a fundus photograph.

In: colour photographs, framed by their field of view. Out: vessel maps at 128 px.
Guarantees:
  - illumination and colour hardly count: a map keeps what is darker than its surroundings
  - places that are dark in most photographs, as dust in a camera makes them, can be left out
Not covered: haze that hides vessels, which gives a map of noise.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from common.arrays import Flags, Integers, Pixels

SIDE_PX = 128
FIELD_PX = 56.0  # radius of what is compared: no field's edge is near
DARK = 4  # grey levels that are no retina
VESSEL_PX = 1.1  # standard deviations: what is as narrow as a vessel, and its surroundings
AROUND_PX = 3.5
FAINT = 0.01  # grey levels: less is rounding, and an even photograph shows nothing
CONTRAST_PX = 6.0
MOST_CONTRAST = 1.5  # in local standard deviations: a bright lesion's edge is no better vessel

DUST = 0.2  # mean of a map's values over all photographs

Maps = NDArray[np.float32]


class Photographs(Protocol):
    """Photographs in memory or in a file, uint8 [N, S, S, 3] by rows."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Integers) -> Pixels: ...


def map_vessels(photograph: Pixels) -> Maps:
    """Return where a photograph, uint8 [S, S, 3], is darker than its surroundings.

    float32 [128, 128], zero mean around each place and 0 outside the field; all 0 where no field
    is lit.
    """
    green = Image.fromarray(np.ascontiguousarray(photograph[..., 1]))
    if green.size != (SIDE_PX, SIDE_PX):
        green = green.resize((SIDE_PX, SIDE_PX), Image.Resampling.BOX)
    values = np.asarray(green, dtype=np.float32)
    lit = (values > DARK) & (_RADIUS < FIELD_PX + 4)
    weight = lit.astype(np.float32)

    # what is no retina takes the shade of its surroundings: its edge is no vessel
    nearby = _blur(values * weight, 8.0) / np.maximum(_blur(weight, 8.0), 1e-3)
    values = np.where(lit, values, nearby).astype(np.float32)
    field = (_RADIUS < FIELD_PX) & (_blur(weight, 2.0) > 0.9)
    inside = field.astype(np.float32)

    # darker than the surroundings, by the contrast there
    darker = (_blur(values, AROUND_PX) - _blur(values, VESSEL_PX)) * inside
    around = np.maximum(_blur(inside, CONTRAST_PX), 1e-2)
    contrast = np.sqrt(np.maximum(_blur(darker**2, CONTRAST_PX) / around, 0)) + 0.5
    vessels = np.where(darker > FAINT, np.minimum(darker / contrast, MOST_CONTRAST), 0)
    vessels = (vessels - _blur(vessels, CONTRAST_PX) / around) * inside
    return np.asarray(vessels, dtype=np.float32)


def find_dust(maps: Maps) -> Flags:
    """Return the places, [128, 128], that are dark in most of these maps, [N, 128, 128]."""
    dust = (maps.mean(axis=0, dtype=np.float64) > DUST).astype(np.float32)
    return np.asarray(_blur(dust, 1.0) > 0.1)


def shrink(maps: Maps, side_px: int) -> Maps:
    """Return maps [..., S, S] as sums of squares, [..., side, side]; S / side is 2, 4 or 8."""
    while maps.shape[-1] > side_px:
        rows = maps[..., ::2, :] + maps[..., 1::2, :]
        maps = rows[..., ::2] + rows[..., 1::2]
    return maps


def turn_map(vessels: Maps, degrees: float, scale: float) -> Maps:
    """Return a square map, turned about its middle and enlarged."""
    cosine = np.cos(np.radians(degrees)) / scale
    sine = np.sin(np.radians(degrees)) / scale
    middle = (len(vessels) - 1) / 2
    across = middle * (1 - cosine - sine)
    down = middle * (1 - cosine + sine)
    picture = Image.fromarray(np.ascontiguousarray(vessels))
    matrix = (cosine, sine, across, -sine, cosine, down)
    turned = picture.transform(
        picture.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR
    )
    return np.asarray(turned, dtype=np.float32)


def _blur(values: NDArray[np.floating], deviation_px: float) -> Maps:
    """Values [128, 128] under a Gaussian, as if the square were a torus."""
    frequencies = np.fft.rfftfreq(SIDE_PX)[None] ** 2 + np.fft.fftfreq(SIDE_PX)[:, None] ** 2
    pass_ = np.exp(-2 * (np.pi * deviation_px) ** 2 * frequencies).astype(np.float32)
    blurred = np.fft.irfft2(np.fft.rfft2(values) * pass_, s=values.shape)
    return np.asarray(blurred, dtype=np.float32)


def _find_radius() -> Maps:
    """How far each place is from the middle."""
    places = np.arange(SIDE_PX, dtype=np.float32) - (SIDE_PX - 1) / 2
    return np.asarray(np.hypot(places[:, None], places), dtype=np.float32)


_RADIUS = _find_radius()
