"""Says whether a framed picture of three planes is a colour photograph.

In: the square of a study of colour photographs.
Out: nothing, or `Unusable` (wrong-channels).
Guarantees: equal planes are refused, also after a lossy codec that moved them apart a little. So is
a picture of one plane alone. Angiograms, autofluorescence and red-free pictures are stored so.
Not covered: a grey picture in an even tint, such as sepia.

Both limits stand between the palest and the reddest photograph of six public sets and the grey and
one-plane versions of the same (docs/measurements/what_enters.md).
"""

from __future__ import annotations

import numpy as np

from client.ingest.quarantine import Reason, Unusable
from common.arrays import Pixels

GRID = 32  # means over a grid hold no noise of a sensor or codec
LIT_LEVEL = 16
COLOUR_SHARE = 0.04
PLANE_SHARE = 0.12


def check_colour(square: Pixels) -> None:
    """Refuse uint8 [S, S, 3] without colours. Raises Unusable (wrong-channels)."""
    colour_share, plane_share = shares_of(square)
    if colour_share < COLOUR_SHARE or plane_share < PLANE_SHARE:
        raise Unusable(Reason.WRONG_CHANNELS)


def shares_of(square: Pixels) -> tuple[float, float]:
    """Return the colour share and the plane share of uint8 [S, S, 3]; (1, 1) where all is dark.

    Over the lit places: the colour share is the sum of (largest minus smallest plane) over the sum
    of the largest; the plane share is the mean of the second-brightest plane over the brightest's.
    """
    side = len(square)
    cells = min(GRID, side)
    edges = np.arange(cells) * side // cells
    sums = np.add.reduceat(np.add.reduceat(square, edges, axis=0, dtype=np.int64), edges, axis=1)
    areas = np.outer(*[np.diff([*edges, side])] * 2)
    places = (sums / areas[..., None]).reshape(-1, 3)

    # what is dark has no colour
    lit = places[places.max(axis=1) > LIT_LEVEL]
    if not len(lit):
        return 1.0, 1.0
    brightest = lit.max(axis=1)
    colour_share = float((brightest - lit.min(axis=1)).sum() / brightest.sum())
    planes = np.sort(lit.mean(axis=0))
    return colour_share, float(planes[1] / planes[2])
