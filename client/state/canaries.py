"""The site's canaries between rounds: which of them take part, and the sums of answered rounds.

In: the tally that a child left for one round. Out: what the next child needs; sums for the gate.
Guarantees: coins are drawn once for each model of a plan; a round counts once, however often it is
redone; the file changes as a whole, and only the site's account can read it. Nothing leaves the
site: the coins are the audit's secret.
Not covered: what the sums mean (common/privacy/canaries.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.errors import RefusedError
from common.privacy.canaries import Coins, Tally, draw
from common.privacy.noise import NoiseSource
from common.storage.files import atomic_write
from common.wire.tensors import Arrays, dumps, read

TALLY_CAP_BYTES = 1 << 20


@dataclass(frozen=True)
class Tallies:
    """What canaries measured in one round, and in all answered rounds with it."""

    latest: Tally
    total: Tally


class CanaryFile:
    """The canaries of one model of one plan, in one file."""

    def __init__(self, folder: Path, plan: str, model: str, count: int) -> None:
        self._path = folder / f"{plan[:16]}-{model}.safetensors"
        self._count = count

    def coins(self) -> Coins:
        """Return which canaries take part; drawn and stored at the first call."""
        return self._read()[0].included

    def with_round(self, number: int, latest: Tally) -> Tallies:
        """Return a round's tally with the sum of the rounds that count.

        A round that counts already is not added again.
        """
        total, rounds = self._read()
        if number in rounds:  # a round that is asked again
            return Tallies(latest, total)
        return Tallies(latest, total + latest)

    def count_round(self, number: int, latest: Tally) -> None:
        """Count a round from now on; a second time changes nothing."""
        total, rounds = self._read()
        if number not in rounds:
            self._write(total + latest, [*rounds, number])

    def _read(self) -> tuple[Tally, list[int]]:
        """The sum of the rounds that count, and their numbers."""
        if not self._path.is_file():
            nothing = np.zeros(self._count)
            self._write(Tally(draw(NoiseSource(), self._count), nothing, nothing, 0), [])
        arrays = read(self._path, max_bytes=TALLY_CAP_BYTES)
        rounds = arrays.pop("rounds", np.zeros(0, np.int64))
        tally = Tally.from_arrays(arrays)
        if len(tally.included) != self._count:
            raise RefusedError(
                f"{self._path.name}: {len(tally.included)} canaries, the plan has {self._count}",
                code="E-CANARIES",
            )
        return tally, [int(number) for number in rounds]

    def _write(self, tally: Tally, rounds: list[int]) -> None:
        """Replace the file as a whole."""
        arrays: Arrays = {**tally.arrays(), "rounds": np.array(rounds, np.int64)}
        atomic_write(self._path, dumps(arrays), mode=0o600)


def history(path: Path) -> list[bytes]:
    """Return the coins of a canary file, then the number of each round that it counts, in order."""
    arrays = read(path, max_bytes=TALLY_CAP_BYTES)
    rounds = arrays.pop("rounds", np.zeros(0, np.int64))
    entries = [Tally.from_arrays(arrays).included.tobytes()]
    entries += [str(int(number)).encode() for number in rounds]
    return entries
