"""Cuts images into the windows that a crop's middle may come from, as numbers to compare.

In: fields of images (likeness.py), of 64 or 48 places a side.
Out: for each image, a vector of its middle and one of each window.
Guarantees:
  - the middle of a picture that lost up to a fifth at a side lies in one of the windows
  - what varies in most pictures of a sample counts little, what is seldom counts much
  - the sample depends on the pictures, and not on their order
Not covered: whether a picture is a crop of another (crops.py).

  1. reduce to 32 places a side, enlarge by SCALES, take the structures (exposure.py)
  2. cut windows of 20 x 20 places; keep the 64 lowest cosines
  3. weigh these so that no combination varies more than another (whitening)
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from client.ingest.exposure import structure_of
from client.ingest.likeness import Fields, Rows
from common.arrays import Floats, Integers

COARSE_PX = 32
WINDOW = 20  # places along a side, of the 28 of a picture that have a structure
WAVES = 64
SCALES = (1.0, 1.1, 1.21, 1.331, 1.4641)
FINE_SCALES = tuple(1.05**step for step in range(9))
REACH = 4  # places of an enlarged picture that a window may lie off its middle
SAMPLE = 300  # images that tell what is usual
SAMPLE_STRIDE = 4
EVEN = 0.05  # of the mean variance: what a small sample cannot know varies at least so much
BLACK = 0.999  # share of a place that must not be black

Values = NDArray[np.float32]
Pictures = Fields | Floats  # [N, S, S]


def squares_of(fields: Fields) -> Fields:
    """Return fields [N, places] as pictures [N, S, S]."""
    side = math.isqrt(fields.shape[1])
    return fields.reshape(len(fields), side, side)


def enlarge(pictures: Pictures, scale: float, side_px: int) -> Fields:
    """Return the middle of pictures [N, S, S], [N, side_px, side_px], a place `scale` times larger.

    What borders on black is black: an edge of a frame is no picture.
    """
    matrix = _between(pictures.shape[1], scale, side_px)
    values = matrix @ pictures @ matrix.T
    lit = matrix @ (pictures > 0) @ matrix.T
    values[lit < BLACK] = 0
    return np.asarray(np.rint(values), dtype=np.uint16)


@cache
def _between(places: int, scale: float, side_px: int) -> Floats:
    """What each place of an enlarged line, [side_px, places], takes of the two beside it."""
    at = (places - 1) / 2 + (np.arange(side_px) - (side_px - 1) / 2) / scale
    # beyond the outermost places their value stays
    at = np.clip(at, 0, places - 1)
    below = np.minimum(at.astype(np.int64), places - 2)
    rows = np.arange(side_px)
    matrix = np.zeros((side_px, places))
    matrix[rows, below] = 1 - (at - below)
    matrix[rows, below + 1] = at - below
    return matrix


def side_at(places: int, scale: float) -> int:
    """Return the side of a whole picture, enlarged about its middle."""
    return places + 2 * int(places * (scale - 1) / 2)


def structures_at(pictures: Pictures, scale: float) -> NDArray[np.int8]:
    """Return the structures of pictures [N, S, S] at a scale, [N, side, side]."""
    enlarged = enlarge(pictures, scale, side_at(pictures.shape[1], scale))
    found = structure_of(enlarged.reshape(len(pictures), -1))
    side = math.isqrt(found.shape[1])
    return found.reshape(len(pictures), side, side)


def reduce_fields(fields: Fields) -> Floats:
    """Return fields as pictures of means, [N, COARSE_PX, COARSE_PX]."""
    pictures = squares_of(fields)
    shares = _shares(pictures.shape[1])
    return np.asarray(shares @ pictures @ shares.T)


@cache
def _shares(places: int) -> Floats:
    """What each of COARSE_PX places is made of, [COARSE_PX, places]."""
    across = places / COARSE_PX
    first = np.arange(COARSE_PX)[:, None] * across
    here = np.arange(places)
    overlap = np.minimum(first + across, here + 1) - np.maximum(first, here)
    return np.asarray(np.maximum(overlap, 0) / across)


def windows_of(structures: NDArray[np.int8], stride: int) -> Values:
    """Return the windows of structures [N, side, side], [N, windows, WINDOW x WINDOW].

    Row by row; the middle one lies in the middle.
    """
    side = structures.shape[1]
    first = (side - WINDOW) // 2 - reach_of(side, stride)
    last = side - first
    near = structures[:, first:last, first:last]
    windows = np.lib.stride_tricks.sliding_window_view(near, (WINDOW, WINDOW), axis=(1, 2))
    chosen = windows[:, ::stride, ::stride].astype(np.float32)
    return chosen.reshape(len(structures), -1, WINDOW * WINDOW)


def reach_of(side: int, stride: int) -> int:
    """Return how far off the middle windows are cut, a multiple of the stride."""
    return min(REACH, (side - WINDOW) // 2) // stride * stride


def middles_of(pictures: Floats) -> Values:
    """Return the window in the middle of pictures [N, 32, 32], [N, WINDOW x WINDOW]."""
    windows = windows_of(structures_at(pictures, 1.0), 1)
    return windows[:, windows.shape[1] // 2]


def unit_rows(values: Values) -> Values:
    """Return rows at unit length; a row of zeros stays."""
    lengths = np.linalg.norm(values, axis=-1, keepdims=True)
    return np.asarray(values / np.maximum(lengths, 1e-6), dtype=np.float32)


def find_weights(sources: Sequence[Rows]) -> Values:
    """Return what turns a window into a vector, [WINDOW x WINDOW, WAVES], by a sample."""
    pictures = reduce_fields(np.concatenate([_sample(source) for source in sources]))
    basis = _cosines()
    seen = []
    for scale in SCALES:
        windows = windows_of(structures_at(pictures, scale), SAMPLE_STRIDE)
        seen.append((windows @ basis).reshape(-1, WAVES))
    products = np.concatenate(seen).astype(np.float64)
    variances, directions = np.linalg.eigh(products.T @ products / len(products))
    least = EVEN * max(float(variances.mean()), 1e-9)
    weights = basis @ (directions / np.sqrt(np.maximum(variances, 0) + least))
    return np.asarray(weights, dtype=np.float32)


def _sample(fields: Rows) -> Fields:
    """Some images: those whose checksums are least."""
    if len(fields) <= SAMPLE:
        return fields[np.arange(len(fields))]
    sums = [zlib.crc32(fields[np.array([row])].tobytes()) for row in range(len(fields))]
    chosen: Integers = np.argsort(np.array(sums), kind="stable")[:SAMPLE]
    return fields[np.sort(chosen)]


@cache
def _cosines() -> Values:
    """The lowest cosines of a window, [WINDOW x WINDOW, WAVES], without the even shade."""
    waves = np.cos(np.pi / WINDOW * np.outer(np.arange(WINDOW), np.arange(WINDOW) + 0.5))
    waves /= np.linalg.norm(waves, axis=1, keepdims=True)
    order = np.add.outer(np.arange(WINDOW) ** 2, np.arange(WINDOW) ** 2).reshape(-1)
    lowest = np.argsort(order, kind="stable")[1 : WAVES + 1]
    rows, columns = np.divmod(lowest, WINDOW)
    found = np.einsum("ki,kj->kij", waves[rows], waves[columns])
    return np.asarray(found.reshape(WAVES, -1).T, dtype=np.float32)
