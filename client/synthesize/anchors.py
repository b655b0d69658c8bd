"""Cells around public generator latents, and the averages of mode `anchors`: (epsilon, delta)-DP and at least k at once.

In: codes of generator samples. Out: `Cells`, centres that no patient has moved.
"""

from __future__ import annotations

from client.synthesize.invert import GeneratorCodes, Whitening
from client.synthesize.partition import Cells
from common.errors import Bug


def cells_of(samples: GeneratorCodes, whitening: Whitening) -> Cells:
    """Return the samples' whitened codes as centres, float64 [M, components]; refuses anything but `GeneratorCodes`."""
    if not isinstance(samples, GeneratorCodes):
        raise Bug("cells_of takes GeneratorCodes; the cohort's codes must not shape the cells")
    return Cells(whitening(samples.codes))
