"""The space in which patients are similar: whitened codes, or the inverted image's mean colour.

In: the `Reference` and the `Inversion`.
Out: one row of numbers an image, and the public cells of the same space.
Guarantees: the space and its cells come from generator samples and the plan; a row depends on its
own image alone.
Not covered: what either gives away (docs/measurements); disease that changes colour.

By colour (3 numbers, 1 for grey images) groups keep the spread of colour that averages of codes
lose, and are loose in everything else.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from client.synthesize.anchors import make_cells
from client.synthesize.invert import Inversion
from client.synthesize.partition import Cells
from client.synthesize.reference import Reference

Metric = Literal["codes", "colour"]


def make_points(seen: Inversion, metric: Metric) -> NDArray[np.float64]:
    """Return float64 [N, D], one row an image of the cohort: whitened codes, or mean colour."""
    if metric == "colour":
        return seen.colours
    return seen.points


def make_metric_cells(known: Reference, metric: Metric) -> Cells:
    """Return the generator samples in the same space as centres, float64 [M, D]."""
    if metric == "colour":
        return Cells(known.colours)
    return make_cells(known.samples, known.whitening)
