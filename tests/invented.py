"""Lets tests stand a few invented tensors in for a network.

Tests of ledgers, messages and rounds need weights, not networks: their checkpoints hold a handful
of tensors, which no architecture has. A checkpoint of a real network is compared as everywhere.
"""

from __future__ import annotations

from common.study import fit
from common.study.families import Shapes

MOST_TENSORS = 12  # a real network of any family has more
_compare = fit.fits


def fits(found: Shapes, expected: Shapes) -> bool:
    """Return whether a checkpoint is of the plan's model, or invented."""
    return _compare(found, expected) or 0 < len(found) <= MOST_TENSORS


def spare_invented_weights() -> None:
    """Let the plan's comparison pass invented weights, in this process."""
    fit.fits = fits
