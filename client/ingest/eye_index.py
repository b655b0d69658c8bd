"""Chooses which photographs may show one eye, without registering each with each other one.

In: vessel maps, one by one. Out: for a map, the few earlier ones that it agrees with, and how they
lie on each other.
Guarantees: memory holds 4 KiB a photograph; where there are at most LOOSE others, the first step
leaves none out.
Not covered: whether they show one eye (same_eye.py).

  1. compare local spectra: where the vessels run, and in which direction. A shift hardly changes
     them, so turns alone are tried: 5 x 945 products a pair
  2. of the LOOSE best, compare sketches at 32 px, turned and shifted: 405 x 1024 products a pair
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from client.ingest.vessels import Maps, shrink
from common.arrays import Flags, Integers

SKETCH_PX = 32
TURNS = (-12, -6, 0, 6, 12)
SHIFT_PX = 4  # of a sketch
LOOSE = 192
BLOCK = 4096

# Windows of a sketch: 3 x 3 Gaussians, 8 places apart
WINDOW_PX = 5.0
WINDOWS_PX = (-8, 0, 8)
FREQUENCIES = (2, 16)  # of 32 px: every second one between

Spectra = NDArray[np.float32]


@dataclass(frozen=True)
class Place:
    """Where another photograph may lie: the first one turned by degrees, and moved by 1/32ths."""

    other: int
    turn: int
    down: int
    right: int


@dataclass(frozen=True)
class Asked:
    """A map in every turn: its sketches [5, 32, 32] and spectra [5, 945]."""

    sketches: Maps
    spectra: Spectra


class EyeIndex:
    """The spectra and sketches of photographs, by row."""

    def __init__(self, count: int, sample: Maps) -> None:
        """Make room for `count` photographs; `sample`: some of their maps, [M, S, S]."""
        self._usual = _spectra(sample).mean(axis=0)
        self._spectra = np.zeros((count, len(self._usual)), np.float16)
        self._sketches = np.zeros((count, SKETCH_PX**2), np.float16)

    def add(self, row: int, asked: Asked) -> None:
        """Keep a map as it is, of all its turns."""
        middle = TURNS.index(0)
        self._spectra[row] = asked.spectra[middle]
        self._sketches[row] = asked.sketches[middle].reshape(-1)

    def ask(self, turned: Maps) -> Asked:
        """Return a map in every turn, [5, S, S], as it is compared."""
        sketches = _unit(shrink(turned, SKETCH_PX).reshape(len(turned), -1))
        shape = (len(turned), SKETCH_PX, SKETCH_PX)
        return Asked(sketches.reshape(shape), _unit(_spectra(turned) - self._usual))

    def compare(self, asked: Sequence[Asked], count: int) -> Maps:
        """Return how well maps agree with the first `count` rows by their spectra: [N, count]."""
        spectra = np.concatenate([one.spectra for one in asked])
        found = np.empty((len(asked), count), np.float32)
        for start in range(0, count, BLOCK):
            known = self._spectra[start : min(start + BLOCK, count)].astype(np.float32)
            products = (spectra @ known.T).reshape(len(asked), len(TURNS), -1)
            found[:, start : start + BLOCK] = products.max(axis=1)
        return found

    def choose(self, asked: Asked, agreement: Maps, others: Integers, most: int) -> list[Place]:
        """Return the `most` others whose sketches agree best with a map, the best first.

        `agreement`: by spectra, with all rows.
        """
        # (1) the best by spectra
        if len(others) > LOOSE:
            best = np.argpartition(-agreement[others], LOOSE)[:LOOSE]
            others = others[np.sort(best)]
        # (2) the best of these by sketches
        shifted = _shift(asked.sketches)
        products = self._sketches[others].astype(np.float32) @ shifted.T
        order = np.argsort(-products.max(axis=1), kind="stable")[:most]
        shifts = 2 * SHIFT_PX + 1
        found = []
        for place in order.tolist():
            turn, shift = divmod(int(products[place].argmax()), shifts**2)
            down, right = divmod(shift, shifts)
            moved = (down - SHIFT_PX, right - SHIFT_PX)
            found.append(Place(int(others[place]), TURNS[turn], *moved))
        return found


def _spectra(maps: Maps) -> Spectra:
    """The local spectra of maps [N, S, S]: roots of amplitudes, [N, 945]."""
    seen = shrink(maps, SKETCH_PX)[:, None] * _WINDOWS
    amplitudes = np.abs(np.fft.rfft2(seen)[..., _KEPT])
    return np.sqrt(amplitudes).reshape(len(maps), -1).astype(np.float32)


def _shift(sketches: Maps) -> Maps:
    """Sketches in every shift, [turns x shifts, 1024]."""
    found = []
    for sketch in sketches:
        wide = np.pad(sketch, SHIFT_PX)
        shape = (SKETCH_PX, SKETCH_PX)
        windows = np.lib.stride_tricks.sliding_window_view(wide, shape)
        found.append(windows.reshape(-1, SKETCH_PX**2))
    return np.concatenate(found)


def _unit(rows: Maps) -> Maps:
    """Rows at unit length; what is zero stays so."""
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    return np.asarray(rows / np.maximum(lengths, 1e-9), dtype=np.float32)


def _find_windows() -> Maps:
    """Where each local spectrum looks, [9, 32, 32]."""
    places = np.arange(SKETCH_PX) - (SKETCH_PX - 1) / 2
    found = []
    for middle_down in WINDOWS_PX:
        for middle_right in WINDOWS_PX:
            down = (places[:, None] - middle_down) ** 2
            right = (places - middle_right) ** 2
            found.append(np.exp(-(down + right) / (2 * WINDOW_PX**2)))
    return np.asarray(found, dtype=np.float32)


def _find_kept() -> Flags:
    """Which frequencies count, in the order of the Fourier transform."""
    down = np.fft.fftfreq(SKETCH_PX, 1 / SKETCH_PX)[:, None]
    right = np.fft.rfftfreq(SKETCH_PX, 1 / SKETCH_PX)
    radius = np.hypot(down, right)
    even = (down % 2 == 0) & (right % 2 == 0)
    return np.asarray((radius >= FREQUENCIES[0]) & (radius <= FREQUENCIES[1]) & even)


_WINDOWS = _find_windows()
_KEPT = _find_kept()
