"""Canaries in the private step: rows like those of patients, and what is heard of them.

In: which canaries a step sampled; the step's lattice sum; what it released.
Out: the canaries' share of the sum, as integers; numbers for the site's tally.
Guarantees:
  1. a canary inside the model is one more row [d] of the patients' own lattice sum
  2. its share is known exactly, so the step can take it out again exactly
  3. a canary hears the released number with its share put back and the patients' sum taken out:
     noise, its own clipped gradient, and of patients no more than float32's rounding
Not covered: sampling and noise (private_step.py), what the numbers mean
(common/privacy/canary_audit.py).
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from client.learn.lattice import LatticeSum
from common.arrays import Floats
from common.privacy.canaries import RAW_NORM, Canaries
from common.privacy.noise import LATTICE
from common.privacy.tally import Counts

OWN_ROWS = 32  # rows at a time
INSIDE_VALUES = 2**22  # of rows at a time, so memory does not depend on how many were drawn


class CanarySum:
    """The canaries' rows of one model, step after step.

    `sizes`: the numbers of each trained tensor, in the parameters' order.
    """

    def __init__(
        self,
        canaries: Canaries,
        sizes: Sequence[int],
        clip: float,
        divisor: float,
        device: torch.device,
    ) -> None:
        self._canaries = canaries
        self._sizes = list(sizes)
        self._clip = clip
        self._scale = clip / (LATTICE * divisor)
        self._own = LatticeSum(canaries.own, clip, torch.device("cpu"))
        self._places = torch.from_numpy(canaries.secret.places)
        signs = torch.from_numpy(canaries.secret.signs.astype(np.float32))
        self._gradients = torch.from_numpy(canaries.gradient(clip)).float() * signs
        # rows of zeros, but for the canaries that are being added
        rows = 0
        if canaries.inside:
            rows = max(1, min(canaries.inside, INSIDE_VALUES // sum(sizes)))
        self._rows = torch.zeros(rows, sum(sizes), device=device)

    @property
    def places(self) -> Tensor:
        """Return the coordinates of the directions, int64 [R, b]."""
        return self._places

    def add_inside(self, total: LatticeSum, columns: Tensor, drawn: Counts) -> Tensor:
        """Add the drawn canaries to the patients' sum; return their share, int64 [R, b].

        `columns` [d]: the column of each coordinate in the rows.
        """
        at = columns[self._places.to(columns.device)]
        before = total.total[at]
        for part in torch.split(torch.from_numpy(drawn), max(1, len(self._rows))):
            rows = torch.arange(len(part), device=at.device)[:, None]
            self._rows[rows, at[part]] = self._gradients[part].to(at.device)
            # (5, 6, 7) clip, round and sum like any patient
            total.add(self._rows[: len(part)])
            self._rows[rows, at[part]] = 0.0
        return (total.total[at] - before).cpu()

    def sum_own(self, drawn: Counts) -> Tensor:
        """Return the lattice sum on the dummy coordinates, int64 [M].

        Each drawn canary's gradient is RAW_NORM·C on its own coordinate.
        """
        self._own.clear()
        for part in torch.split(torch.from_numpy(drawn), OWN_ROWS):
            rows = torch.zeros(len(part), self._canaries.own)
            rows[torch.arange(len(part)), part] = RAW_NORM * self._clip
            # (5, 6, 7) clip, round and sum like any patient
            self._own.add(rows)
        return self._own.total

    def observe(
        self,
        released: Tensor,
        without_patients: Tensor,
        drawn: tuple[Counts, Counts],
        patients: int,
    ) -> None:
        """Let the canaries hear what was released, fp32 [d + M].

        `without_patients` [R, b]: the canaries' share less the patients' sum, in lattice steps.
        `drawn`: the sampled canaries by kind. `patients`: how many patients were drawn.
        """
        weights = sum(self._sizes)
        if len(released) == weights and not self._canaries.inside:
            return  # no canaries, nothing to measure
        heard = released[self._places.to(released.device)].cpu().double()
        inside = heard + without_patients.double() * self._scale
        own = released[weights:].double().cpu().numpy()
        self._canaries.observe(drawn, own, self._canaries.project(inside.numpy()))
        self._canaries.observe_release(self._sizes, self._squares(released), patients)

    def _squares(self, released: Tensor) -> Floats:
        """The sum of the squares of each trained tensor, fp64 [P]."""
        parts = torch.split(released[: sum(self._sizes)].double(), self._sizes)
        return np.array([float(torch.dot(part, part)) for part in parts])
