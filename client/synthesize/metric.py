"""In which space patients are similar: the generator's whitened codes, or the mean colour of the inverted image.

In: the `Reference` and the `Inversion`. Out: one row of numbers an image for `group.patient_codes`, and the public cells of
the same space. Guaranteed: the space and its cells come from generator samples and the plan alone; a row depends on its
own image alone.
By colour: 3 numbers (1 for grey images), so groups keep the spread of colour that averages of codes lose, and are loose in
everything else. Not covered: what either gives away (benchmarks/RESULTS.md); disease that changes colour.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from client.synthesize.anchors import cells_of
from client.synthesize.invert import Inversion, Reference, mean_colours
from client.synthesize.partition import Cells

Metric = Literal["codes", "colour"]


def points_of(known: Reference, seen: Inversion, metric: Metric) -> NDArray[np.float64]:
    """Return float64 [N, D], one row an image of the cohort: whitened codes, or mean colour in [0, 1]."""
    if metric == "colour":
        return mean_colours(seen.reconstructions)
    return known.whitening(seen.encoded.numpy())


def cells_in(known: Reference, metric: Metric) -> Cells:
    """Return the generator samples in the same space as centres, float64 [M, D]."""
    return Cells(known.colours) if metric == "colour" else cells_of(known.samples, known.whitening)
