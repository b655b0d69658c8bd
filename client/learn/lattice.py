"""Clips one gradient per patient, rounds it to the lattice C·2^-24, and sums the integers exactly.

In: fp32 rows [c, d], one per patient; the clip norm C.
Out: integers, in lattice steps.
Guarantees, for whatever the rows hold (NaN, infinities and 3e38 included):
  1. non-finite entries become 0
  2. each row's integers have an L2 norm of at most 2^24, so one patient moves the sum by at most C
  3. the sum is exact (int64), whatever the grouping and order of the rows
Not covered: how the rows were made (patient_gradients.py); noise (private_step.py).

The proof of 2 stands at `_factors`.
"""

import math

import torch
from torch import Tensor

from common.errors import ConfigurationError
from common.privacy.noise import LATTICE

# between these, 2^24/C is a normal fp32 number
SMALLEST_CLIP = 1e-30
LARGEST_CLIP = 1e30
BLOCK = 2**16  # columns at a time, so that three passes over them stay in cache
NORM_SPAN = 512  # entries whose squares are summed in fp32; the rest of a norm is fp64
SMALLEST_SPAN_CLIP = 2.0**-40  # below it squares that fp32 loses could count: all of it is fp64
EXACT_ROWS = 127  # an entry is at most 2^24, so the sum of 127 rows stays below 2^31


class LatticeSum:
    """The exact sum of clipped, rounded rows: `total` int64 [d].

    Buffers are kept from step to step.
    """

    def __init__(self, dimension: int, clip: float, device: torch.device) -> None:
        check_clip(clip)
        self._clip = clip
        self._integers = torch.empty(0, 0, dtype=torch.int32, device=device)
        self.total = torch.zeros(dimension, dtype=torch.int64, device=device)

    def clear(self) -> None:
        """Start at zero."""
        self.total.zero_()

    def add(self, rows: Tensor) -> None:
        """Add fp32 [c, d]; the rows are overwritten."""
        for part in torch.split(rows, EXACT_ROWS):
            # (1, 2) set non-finite entries to 0, and take one factor a row
            factors = _factors(part, self._clip)[:, None]
            for at in range(0, part.shape[1], BLOCK):
                # (2, 3) clip, round, and sum the integers
                block = part[:, at : at + BLOCK]
                integers = self._scratch(block).copy_(block.mul_(factors).round_())
                self.total[at : at + BLOCK] += integers.sum(0, dtype=torch.int32)

    def _scratch(self, block: Tensor) -> Tensor:
        """Return an int32 buffer of the block's shape, of any content."""
        if len(self._integers) < len(block) or self._integers.shape[1] < block.shape[1]:
            self._integers = torch.empty(block.shape, dtype=torch.int32, device=block.device)
        return self._integers[: len(block), : block.shape[1]]


def to_lattice(gradients: Tensor, clip: float) -> Tensor:
    """Return the lattice vectors of fp32 rows [c, d] one by one, as fp64 [c, d] of integers.

    The rows stay as they are.
    """
    check_clip(clip)
    rows = gradients.clone()
    factors = _factors(rows, clip)
    return rows.mul_(factors[:, None]).round_().double()


def check_clip(clip: float) -> None:
    """Raise ConfigurationError unless 2^24/clip is an ordinary fp32 number."""
    if not SMALLEST_CLIP <= clip <= LARGEST_CLIP:
        raise ConfigurationError(f"private step: clip: expected 1e-30 to 1e30, got {clip!r}")


def _factors(rows: Tensor, clip: float) -> Tensor:
    """The factor of each row, fp32 [c]; non-finite entries of `rows` become 0 in place."""
    # (1) a norm is finite exactly when every fp32 entry of its row is
    norms = _norms(rows, clip)
    if not bool(torch.isfinite(norms).all()):
        torch.nan_to_num_(rows, nan=0.0, posinf=0.0, neginf=0.0)
        norms = _norms(rows, clip)

    # (2) Why the integers' norm is at most 2^24: the norm n is too small by at most 2.5e-5 of it
    # (`_norms`). The row is multiplied in fp32 by s = min(1, (1 - eta)·C/n)·2^24/C, itself rounded
    # to fp32. These are two roundings of 2^-24 each; rounding to integers adds at most sqrt(d)/2.
    # And this eta gives (1 - eta)(1 + 2.5e-5)(1 + 2^-23)·2^24 + sqrt(d)/2 <= 2^24: sqrt(d)·2^-25 is
    # at most half of eta, and 2.5e-5 + 2^-23 less than the other half.
    eta = max(1e-4, 2.0 * math.sqrt(rows.shape[1]) * 2.0**-25)
    bound = (1.0 - eta) * clip
    shrink = torch.where(norms > bound, bound / norms, torch.ones_like(norms))
    return (shrink * (LATTICE / clip)).to(torch.float32)


def _norms(rows: Tensor, clip: float) -> Tensor:
    """Each row's L2 norm, fp64 [c]; it does not depend on the rows beside it.

    On a CPU at most 2.5e-5 of it too small wherever the row must be clipped, and finite exactly
    when the row is.
    """
    # In whatever order 512 squares are summed in fp32, the sum errs by 513 roundings of 2^-24, and
    # its root by half of that: 1.6e-5. A square below 2^-126 may be lost; 2^30 of them are 2^-16 of
    # the smallest clip's square, and half of that of the norm: 0.8e-5.
    if rows.device.type != "cpu":
        norms: Tensor = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
        return norms
    if clip < SMALLEST_SPAN_CLIP:
        return _norms_by_spans(rows, torch.float64)
    norms = _norms_by_spans(rows, torch.float32)

    # squares above fp32's range; row by row, so that no patient moves another's norm
    for place in torch.nonzero(~torch.isfinite(norms)).flatten().tolist():
        norms[place] = _norms_by_spans(rows[place : place + 1], torch.float64)[0]
    return norms


def _norms_by_spans(rows: Tensor, sums: torch.dtype) -> Tensor:
    """Each row's L2 norm; `sums`: in which the squares of a span are added."""
    whole = rows.shape[1] // NORM_SPAN
    rest = rows[:, whole * NORM_SPAN :]
    spans = [torch.linalg.vector_norm(rest, dim=1, keepdim=True, dtype=sums)]
    if whole:
        part = rows[:, : whole * NORM_SPAN].view(len(rows), whole, NORM_SPAN)
        spans.append(torch.linalg.vector_norm(part, dim=2, dtype=sums))
    norms: Tensor = torch.linalg.vector_norm(torch.cat(spans, dim=1).double(), dim=1)
    return norms
