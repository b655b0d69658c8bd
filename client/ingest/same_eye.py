"""Finds two photographs of one eye, by their vessels.

In: colour fundus photographs, framed by their field of view, at least 128 px wide.
Out: pairs that may show one eye, each with a score from -1 to 1; and the scores of mirrored pairs,
which never show one eye and tell how often strangers score as much.
Guarantees:
  - illumination and colour hardly count: the vessel map keeps what is darker than its surroundings
  - turns up to 12 degrees, shifts up to a sixth of the field and scales within 6 % are searched
  - what is searched in straight pairs is searched in mirrored ones, in the same way
  - places that are dark in most photographs, as dust in a camera makes them, do not count, where
    there are ENOUGH photographs to tell them from vessels
  - memory holds 40 KiB a photograph
Not covered: another field of the retina, another camera's width of field, haze that hides vessels;
the dust of a camera that took few of the photographs, which agrees `in_place` alone.

  1. map the vessels of each photograph at 128 px; leave out the places that are dark in most
  2. compare sketches of the maps, at 32 px, turned and shifted; keep a photograph's CANDIDATES best
  3. register the maps of these: turn, scale, and every shift at once by the Fourier transform
  4. score: the correlation of the maps where both fields lie
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
TURNS = tuple(range(-12, 13, 3))  # degrees
SCALES = (0.94, 1.0, 1.06)
SHIFT_PX = 20

SKETCH_PX = 32
SKETCH_TURNS = (-12, -6, 0, 6, 12)
SKETCH_SHIFT_PX = 4
CANDIDATES = 4
BLOCK = 256

# Dust lies at one place in all photographs of a camera, and no mirrored pair would show it.
DUST = 0.2  # mean of a map's values over all photographs
ENOUGH = 50  # photographs: in fewer, vessels of a few look like dust
MOST = 10_000  # photographs: the time grows with the square

# docs/measurements/same_eye.md: no mirrored pair of any set scores as much
SAME_EYE = 0.5
PERHAPS = 0.36  # what a person may look at

Maps = NDArray[np.float32]
HalfMaps = NDArray[np.float16]
Spectra = NDArray[np.complex64]
Progress = Callable[[int, int], None]


class Photographs(Protocol):
    """Photographs in memory or in a file, uint8 [N, S, S, 3] by rows."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Integers) -> Pixels: ...


@dataclass(frozen=True)
class Match:
    """Two photographs, `first` < `second`, and how well their vessels agree.

    `in_place`: neither was turned nor moved for that, as dust in a camera would agree.
    """

    first: int
    second: int
    score: float
    in_place: bool = False


@dataclass(frozen=True)
class Search:
    """What a search found.

    `straight`: candidates. `mirrored`: the same for pairs of which one is mirrored, which show no
    eye twice. `pairs`: how many pairs of each kind there were.
    """

    straight: tuple[Match, ...] = ()
    mirrored: tuple[Match, ...] = ()
    pairs: int = 0

    def above(self, least: float) -> list[Match]:
        """Return the straight pairs with at least this score, best first."""
        found = [match for match in self.straight if match.score >= least]
        return sorted(found, key=lambda match: (-match.score, match.first, match.second))

    def false_above(self, least: float) -> int:
        """Return how many mirrored pairs score at least this much."""
        return sum(match.score >= least for match in self.mirrored)


def find_same_eyes(
    photographs: Photographs,
    persons: Sequence[int],
    progress: Progress = lambda done, total: None,
) -> Search:
    """Return the pairs of photographs of different persons that may show one eye.

    `persons[i]`: a number for whoever photograph i is of. `progress(done, total)` counts the
    photographs that were compared with all earlier ones.
    """
    own = np.asarray(persons, dtype=np.int64)
    # (1) map the vessels
    maps = _map_all(photographs)
    count = len(maps)
    straight = np.zeros((count, SKETCH_PX**2), np.float32)
    mirrored = np.zeros_like(straight)
    found: dict[bool, list[Match]] = {False: [], True: []}
    pairs = 0
    for index in range(count):
        vessels = maps[index].astype(np.float32)
        straight[index] = _sketch(vessels)
        mirrored[index] = _sketch(vessels[:, ::-1])
        others = np.flatnonzero(own[:index] != own[index])
        pairs += len(others)
        if len(others) and vessels.any():
            # (2) compare sketches, (3, 4) register and score
            turned = _turn_sketches(vessels)
            bank = turn_maps(vessels)
            for mirror, sketches in ((False, straight), (True, mirrored)):
                for other in _nearest(turned, sketches, others):
                    seen = maps[other].astype(np.float32)
                    if mirror:
                        seen = seen[:, ::-1]
                    found[mirror].append(Match(other, index, *score_maps(bank, seen)))
        progress(index + 1, count)
    return Search(tuple(found[False]), tuple(found[True]), pairs)


def _map_all(photographs: Photographs) -> HalfMaps:
    """The maps of all photographs, [N, 128, 128], without what stays in place."""
    count = len(photographs)
    maps = np.zeros((count, SIDE_PX, SIDE_PX), np.float16)
    total = np.zeros((SIDE_PX, SIDE_PX), np.float64)
    for index in range(count):
        vessels = map_vessels(photographs[np.array([index])][0])
        maps[index] = vessels
        total += vessels
    if count >= ENOUGH:
        dust = (total / count > DUST).astype(np.float32)
        maps[:, _blur(dust, 1.0) > 0.1] = 0
    return maps


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


@dataclass(frozen=True)
class Bank:
    """A vessel map in every turn and scale: maps [T, 128, 128], and their spectra."""

    maps: Maps
    spectra: Spectra


def turn_maps(vessels: Maps) -> Bank:
    """Return a vessel map in every turn and scale."""
    maps = np.stack([_turn(vessels, turn, scale) for turn in TURNS for scale in SCALES])
    units = maps / np.maximum(np.linalg.norm(maps, axis=(1, 2), keepdims=True), 1e-9)
    return Bank(maps, np.fft.rfft2(units).astype(np.complex64))


def score_maps(bank: Bank, other: Maps) -> tuple[float, bool]:
    """Return the correlation of two maps in their common field, where they agree best.

    And whether they agree best in place: at most one pixel apart, and turned by no step.
    """
    length = float(np.linalg.norm(other))
    if not length:
        return 0.0, False
    spectrum = np.fft.rfft2(other / length).astype(np.complex64)
    products = np.fft.irfft2(bank.spectra * spectrum.conj(), s=(SIDE_PX, SIDE_PX))
    best = int(np.where(_NEAR, products, -1).argmax())
    turn, down, right = np.unravel_index(best, products.shape)
    moved = np.roll(other, (int(down), int(right)), (0, 1))
    both = (bank.maps[turn] != 0) & (moved != 0)
    one = bank.maps[turn][both]
    two = moved[both]
    lengths = float(np.linalg.norm(one) * np.linalg.norm(two))
    moved_px = max(min(int(shift), SIDE_PX - int(shift)) for shift in (down, right))
    in_place = moved_px <= 1 and int(turn) == len(bank.maps) // 2
    return float(one @ two) / max(lengths, 1e-9), in_place


def _nearest(turned: Maps, sketches: Maps, others: Integers) -> list[int]:
    """Those of the others whose sketches agree best with one photograph's, turned and shifted."""
    agreement = np.empty(len(others), np.float32)
    for start in range(0, len(others), BLOCK):
        rows = others[start : start + BLOCK]
        agreement[start : start + BLOCK] = (sketches[rows] @ turned.T).max(axis=1)
    best = np.argsort(-agreement, kind="stable")[:CANDIDATES]
    return [int(place) for place in others[best]]


def _turn_sketches(vessels: Maps) -> Maps:
    """The sketches of a map in every turn and shift, [turns x shifts, 1024]."""
    found = []
    reach = SKETCH_SHIFT_PX
    for turn in SKETCH_TURNS:
        sketch = _sketch(_turn(vessels, turn, 1.0)).reshape(SKETCH_PX, SKETCH_PX)
        wide = np.pad(sketch, reach)
        for down in range(2 * reach + 1):
            for right in range(2 * reach + 1):
                part = wide[down : down + SKETCH_PX, right : right + SKETCH_PX]
                found.append(part.reshape(-1))
    return np.stack(found)


def _sketch(vessels: Maps) -> Maps:
    """A map at 32 px, [1024] of unit length."""
    across = SIDE_PX // SKETCH_PX
    small = vessels.reshape(SKETCH_PX, across, SKETCH_PX, across).sum(axis=(1, 3)).reshape(-1)
    return np.asarray(small / max(float(np.linalg.norm(small)), 1e-9), dtype=np.float32)


def _turn(vessels: Maps, degrees: float, scale: float) -> Maps:
    """A map turned about its middle and enlarged."""
    cosine = np.cos(np.radians(degrees)) / scale
    sine = np.sin(np.radians(degrees)) / scale
    middle = (SIDE_PX - 1) / 2
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


def _find_near() -> Flags:
    """Which shifts are searched, in the order of the Fourier transform."""
    shifts = np.abs(np.fft.fftfreq(SIDE_PX, 1 / SIDE_PX)) <= SHIFT_PX
    return np.asarray(shifts[:, None] & shifts)


_RADIUS = _find_radius()
_NEAR = _find_near()
