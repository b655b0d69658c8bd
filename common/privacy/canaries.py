"""A one-run audit of the private step: invented patients on coordinates of their own, a lower bound on epsilon, a noise meter.

In: secret coins that put each of M canaries in or out, and what the private steps added to its coordinate. Out: a `Tally`,
and of it a lower bound on epsilon at a stated confidence and the measured noise against the plan's.
Each canary is a patient whose raw gradient is 10·C on one dummy coordinate, M of which stand after the model's d. It takes the
patients' road: Poisson sampling, clip, lattice, noise, divisor. No real patient touches a dummy coordinate and the model
never uses one, so the canaries cost no privacy and move no weight; coins and scores are made of noise alone.
Guaranteed: the bound holds with its confidence for whatever mechanism produced the scores; the meter's false alarms are at
most as frequent as stated (Chernoff, no approximation); what is guessed is fixed beforehand.
Not: a proof of privacy. A low bound proves little: noise at half its strength may still read below the claim, and the bound
has a ceiling (perfect guesses). That is why the meter measures the noise itself; it sees a wrong sigma, clip or divisor, but
not a fault that touches real patients alone.

Sources: Steinke, Nasr, Jagielski 2023, "Privacy auditing with one (1) training run", theorem 5.2 and Algorithm 1;
methods/dp-training.md, section 9.4.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Coins = NDArray[np.bool_]
RAW_NORM = 10.0  # of the clip norm: a canary's gradient before it is clipped


class Canaries:
    """The canaries of one model while it trains: which are in, and what their coordinates received so far."""

    def __init__(self, included: Coins) -> None:
        self.included = included
        self.scores: Floats = np.zeros(len(included))
        self.squares: Floats = np.zeros(len(included))
        self.steps = 0

    def __len__(self) -> int:
        return len(self.included)

    def drawn(self, coins: Coins) -> NDArray[np.int64]:
        """The canaries that are in and whose sampling coin [M] fell."""
        return np.flatnonzero(self.included & coins)

    def observe(self, update: Floats) -> None:
        """Add one step's update of the dummy coordinates, [M]."""
        self.scores += update
        self.squares += update**2
        self.steps += 1
