"""Runs Adam on the codes of images, with a rate that changes from step to step."""

from __future__ import annotations

import torch
from torch import Tensor

from common.models.adam import Adam

BETAS = (0.9, 0.999)


class CodeDescent:
    """Adam on one tensor of codes, in place; a gradient that is not finite counts as 0."""

    def __init__(self, codes: Tensor) -> None:
        self._adam = Adam({"codes": codes}, rate=0.0, betas=BETAS)

    def step(self, gradient: Tensor, rate: float) -> None:
        """Move the codes once against `gradient`."""
        finite = torch.nan_to_num(gradient.detach(), nan=0.0, posinf=0.0, neginf=0.0)
        self._adam.rate = rate
        self._adam.step({"codes": finite})
