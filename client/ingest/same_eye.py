"""Finds two photographs of one eye, by their vessels.

In: colour fundus photographs, framed by their field of view, at least 128 px wide.
Out: pairs that may show one eye, each with a score from -1 to 1; and the scores of mirrored pairs,
which never show one eye and tell how often strangers score as much.
Guarantees:
  - illumination and colour hardly count (vessels.py)
  - turns up to 12 degrees, shifts up to a sixth of the field and scales within 6 % are searched
  - what is searched in straight pairs is searched in mirrored ones, in the same way
  - places that are dark in most photographs, as dust in a camera makes them, do not count, where
    there are ENOUGH photographs to tell them from vessels
  - memory holds 12 KiB a photograph
Not covered: another field of the retina, another camera's width of field, haze that hides vessels;
the dust of a camera that took few of the photographs, which agrees `in_place` alone.

  1. map the vessels of each photograph at 128 px; leave out the places that are dark in most
  2. choose a photograph's CANDIDATES among all earlier ones (eye_index.py)
  3. register these at 64 px, near where the sketches agree; drop what agrees LITTLE
  4. register the maps of the others: turn, scale, and every shift at once by the Fourier transform;
     first near the sketches' turn, then in all turns what is CLOSE
  5. score: the correlation of the maps where both fields lie
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from client.ingest.eye_index import SHIFT_PX as SKETCH_SHIFT_PX
from client.ingest.eye_index import SKETCH_PX, EyeIndex, Place
from client.ingest.eye_index import TURNS as SKETCH_TURNS
from client.ingest.vessels import (
    SIDE_PX,
    Maps,
    Photographs,
    find_dust,
    map_vessels,
    shrink,
    turn_map,
)
from common.arrays import Flags, Integers

STEP = 3  # degrees
MOST_TURN = 12
SCALES = (0.94, 1.0, 1.06)
SHIFT_PX = 20
CANDIDATES = 4
BLOCK = 64

SMALL_PX = 64
NEARBY_PX = 2  # of 64: how far from the sketches' place step 3 looks
LITTLE = 0.26
CLOSE = 0.28

# Dust lies at one place in all photographs of a camera, and no mirrored pair would show it.
ENOUGH = 50  # photographs: in fewer, vessels of a few look like dust
SAMPLE = 300  # photographs that tell what is usual
MOST = 100_000  # photographs: 12 KiB of memory each, and an hour or so in all

# docs/measurements/same_eye.md: no mirrored pair of any set scores as much
SAME_EYE = 0.5
PERHAPS = 0.36  # what a person may look at

Pose = tuple[int, float]  # degrees, scale
POSES = [(turn, scale) for turn in range(-MOST_TURN, MOST_TURN + 1, STEP) for scale in SCALES]
Spectra = NDArray[np.complex64]
Progress = Callable[[int, int], None]


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
    *,
    since: int = 0,
) -> Search:
    """Return the pairs of photographs of different persons that may show one eye.

    `persons`: whose each is. `progress(done, total)` counts photographs that were compared with all
    earlier ones. `since`: rows before it are not compared with each other.
    """
    own = np.asarray(persons, dtype=np.int64)
    count = len(photographs)
    if not count:
        return Search()
    eyes = _Eyes(photographs)
    found: dict[bool, list[Match]] = {False: [], True: []}
    for start in range(0, count, BLOCK):
        rows = range(start, min(start + BLOCK, count))
        # (1) map the vessels
        turning = [eyes.add(row) for row in rows]
        asking = [one for one in turning if one.row >= since and one.vessels.any()]
        # (2 to 5) compare with what was added before
        for mirror in (False, True):
            found[mirror] += eyes.match(asking, own, mirror=mirror)
        progress(rows[-1] + 1, count)
    return Search(tuple(found[False]), tuple(found[True]), _count_pairs(own, since))


class _Turning:
    """A photograph's map; at 64 px also turned and enlarged, each once, straight or mirrored."""

    def __init__(self, row: int, vessels: Maps) -> None:
        self.row = row
        self.vessels = vessels
        self._small = shrink(vessels, SMALL_PX)
        self._known: dict[Pose, Maps] = {}

    def at(self, pose: Pose, *, mirror: bool) -> Maps:
        """Return the map in this pose at unit length, [64, 64]; `mirror`: of the mirrored one."""
        turn, scale = pose
        # a mirrored map that turns right is a map that turns left, mirrored
        own = (-turn if mirror else turn, scale)
        if own not in self._known:
            turned = turn_map(self._small, *own)
            self._known[own] = turned / max(float(np.linalg.norm(turned)), 1e-9)
        if mirror:
            return self._known[own][:, ::-1]
        return self._known[own]

    def in_turns(self, *, mirror: bool) -> Maps:
        """Return the map in the turns of sketches, [5, 64, 64]."""
        return np.stack([self.at((turn, 1.0), mirror=mirror) for turn in SKETCH_TURNS])


class _Eyes:
    """The photographs of a search: what is kept of each, and what is usual."""

    def __init__(self, photographs: Photographs) -> None:
        count = len(photographs)
        self._photographs = photographs
        self._dust: Flags = np.zeros((SIDE_PX, SIDE_PX), bool)
        chosen = np.unique(np.linspace(0, count - 1, min(count, SAMPLE)).astype(np.int64))
        sample = np.stack([self._map(row) for row in chosen.tolist()])
        if count >= ENOUGH:
            self._dust = find_dust(sample)
            sample[:, self._dust] = 0
        self._index = EyeIndex(count, sample)
        self._small = np.zeros((count, SMALL_PX, SMALL_PX), np.float16)

    def _map(self, row: int) -> Maps:
        """The map of a photograph, without what stays in place."""
        vessels = map_vessels(self._photographs[np.array([row])][0])
        vessels[self._dust] = 0
        return vessels

    def add(self, row: int) -> _Turning:
        """Keep what is compared of a photograph; return its map."""
        turning = _Turning(row, self._map(row))
        self._small[row] = turning.at((0, 1.0), mirror=False)
        self._index.add(row, self._index.ask(turning.in_turns(mirror=False)))
        return turning

    def match(self, asking: Sequence[_Turning], own: Integers, *, mirror: bool) -> list[Match]:
        """Return what matches photographs, or what matches their mirrored ones."""
        if not asking:
            return []
        # (2) choose candidates
        asked = [self._index.ask(turning.in_turns(mirror=mirror)) for turning in asking]
        agreement = self._index.compare(asked, asking[-1].row)
        found: list[Match] = []
        for turning, one, agrees in zip(asking, asked, agreement, strict=True):
            others = np.flatnonzero(own[: turning.row] != own[turning.row])
            if len(others):
                places = self._index.choose(one, agrees, others, CANDIDATES)
                found += self._register(turning, places, mirror=mirror)
        return found

    def _register(
        self, turning: _Turning, places: Sequence[Place], *, mirror: bool
    ) -> Iterator[Match]:
        """Yield the matches of one photograph with those that lie so."""
        vessels = turning.vessels
        if mirror:
            vessels = np.ascontiguousarray(vessels[:, ::-1])
        for place in places:
            # (3) register at 64 px
            poses = _poses_near(place.turn)
            turned = np.stack([turning.at(pose, mirror=mirror).reshape(-1) for pose in poses])
            if _agree_nearby(turned, self._small[place.other].astype(np.float32), place) < LITTLE:
                continue
            # (4, 5) register at 128 px, and score; in all poses what is close
            other = self._map(place.other)
            score, in_place = score_maps(turn_maps(vessels, poses), other)
            if score >= CLOSE:
                score, in_place = score_maps(turn_maps(vessels, POSES), other)
            yield Match(place.other, turning.row, score, in_place)


def _poses_near(turn: int) -> tuple[Pose, ...]:
    """The poses that are tried where sketches agree at this turn."""
    turns = [one for one in (turn - STEP, turn, turn + STEP) if abs(one) <= MOST_TURN]
    return tuple((one, scale) for one in turns for scale in SCALES)


def _agree_nearby(turned: Maps, other: Maps, place: Place) -> float:
    """How well maps [poses, 64 x 64] agree with another one, near where the sketches do."""
    across = SMALL_PX // SKETCH_PX
    reach = across * SKETCH_SHIFT_PX
    wide = np.pad(other, NEARBY_PX + reach)
    top = reach - across * place.down
    left = reach - across * place.right
    size = SMALL_PX + 2 * NEARBY_PX
    part = wide[top : top + size, left : left + size]
    windows = np.lib.stride_tricks.sliding_window_view(part, (SMALL_PX, SMALL_PX))
    return float((turned @ windows.reshape(-1, SMALL_PX**2).T).max())


def _count_pairs(own: Integers, since: int) -> int:
    """How many pairs of different persons were compared."""
    found = 0
    for rows, sign in ((own, 1), (own[:since], -1)):
        _, counts = np.unique(rows, return_counts=True)
        found += sign * (len(rows) ** 2 - int(np.square(counts).sum())) // 2
    return found


@dataclass(frozen=True)
class Bank:
    """A vessel map in several poses: maps [T, 128, 128], and their spectra."""

    poses: Sequence[Pose]
    maps: Maps
    spectra: Spectra


def turn_maps(vessels: Maps, poses: Sequence[Pose]) -> Bank:
    """Return a vessel map in these turns and scales."""
    maps = np.stack([turn_map(vessels, *pose) for pose in poses])
    units = maps / np.maximum(np.linalg.norm(maps, axis=(1, 2), keepdims=True), 1e-9)
    return Bank(poses, maps, np.fft.rfft2(units).astype(np.complex64))


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
    in_place = moved_px <= 1 and bank.poses[int(turn)] == (0, 1.0)
    return float(one @ two) / max(lengths, 1e-9), in_place


def _find_near() -> Flags:
    """Which shifts are searched, in the order of the Fourier transform."""
    shifts = np.abs(np.fft.fftfreq(SIDE_PX, 1 / SIDE_PX)) <= SHIFT_PX
    return np.asarray(shifts[:, None] & shifts)


_NEAR = _find_near()
