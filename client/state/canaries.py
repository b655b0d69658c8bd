"""The site's canaries between rounds: which take part and where, and the sums of answered rounds.

In: the tally that a child left for one round. Out: what the next child needs; sums for the gate.
Guarantees: coins and places are drawn once for each model of a plan; a round counts once, however
often it is redone; the file changes as a whole, and only the site's account can read it. Nothing
leaves the site: the coins are the audit's secret.
Not covered: what the sums mean (common/privacy/canary_audit.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.errors import RefusedError
from common.privacy.canaries import Secret, draw
from common.privacy.noise import NoiseSource
from common.privacy.tally import Tally
from common.storage.files import atomic_write
from common.wire.tensors import Arrays, dumps, read

TALLY_CAP_BYTES = 1 << 24
SECRET = "secret."  # before the names of the secret's arrays
OLD = "included"  # the coins in a file of version 0.1, which only the history reads


@dataclass(frozen=True)
class Tallies:
    """What canaries measured in one round, and in all answered rounds with it."""

    latest: Tally
    total: Tally


class CanaryFile:
    """The canaries of one model of one plan, in one file."""

    def __init__(self, folder: Path, plan: str, model: str, count: int) -> None:
        self._path = folder / f"{plan[:16]}-{model}.audit.safetensors"
        self._count = count

    def secret(self, dimension: int) -> Secret:
        """Return which canaries take part and where; drawn and stored at the first call.

        `dimension`: the model's trained numbers.
        """
        if not self._path.is_file():
            secret = draw(NoiseSource(), self._count, dimension)
            self._write(secret, None, [])
        secret = self._read()[0]
        if len(secret.own) != self._count or int(secret.places.max(initial=0)) >= dimension:
            raise RefusedError(
                f"{self._path.name}: {len(secret.own)} canaries in places that do not fit; "
                f"the plan has {self._count} among {dimension:,} trained numbers",
                code="E-CANARIES",
            )
        return secret

    def with_round(self, number: int, latest: Tally) -> Tallies:
        """Return a round's tally with the sum of the rounds that count.

        A round that counts already is not added again.
        """
        secret, total, rounds = self._read()
        _check_coins(secret, latest)
        if total is None:
            return Tallies(latest, latest)
        if number in rounds:  # a round that is asked again
            return Tallies(latest, total)
        return Tallies(latest, total + latest)

    def count_round(self, number: int, latest: Tally) -> None:
        """Count a round from now on; a second time changes nothing."""
        secret, _, rounds = self._read()
        if number not in rounds:
            self._write(secret, self.with_round(number, latest).total, [*rounds, number])

    def counted(self) -> Tally | None:
        """Return the sum of the rounds that count; None before the first."""
        if not self._path.is_file():
            return None
        return self._read()[1]

    def _read(self) -> tuple[Secret, Tally | None, list[int]]:
        """The secret, the sum of the rounds that count, and their numbers."""
        if not self._path.is_file():
            raise RefusedError(
                f"{self._path.name}: missing; it holds which canaries took part",
                hint="restore the state folder as a whole",
                code="E-CANARIES",
            )
        arrays = read(self._path, max_bytes=TALLY_CAP_BYTES)
        rounds = arrays.pop("rounds", np.zeros(0, np.int64))
        secret = Secret.from_arrays(_part(arrays, SECRET))
        tally = {name: arrays[name] for name in arrays if not name.startswith(SECRET)}
        total = None
        if tally:
            total = Tally.from_arrays(tally)
            _check_coins(secret, total)
        return secret, total, [int(number) for number in rounds]

    def _write(self, secret: Secret, tally: Tally | None, rounds: list[int]) -> None:
        """Replace the file as a whole."""
        arrays: Arrays = {SECRET + name: array for name, array in secret.arrays().items()}
        arrays["rounds"] = np.array(rounds, np.int64)
        if tally is not None:
            arrays |= tally.arrays()
        atomic_write(self._path, dumps(arrays), mode=0o600)


def history(path: Path) -> list[bytes]:
    """Return the secret of a canary file, then the number of each round it counts, in order."""
    arrays = read(path, max_bytes=TALLY_CAP_BYTES)
    rounds = arrays.pop("rounds", np.zeros(0, np.int64))
    if OLD in arrays:  # version 0.1: coins of dummy coordinates alone
        entries = [arrays[OLD].astype(np.bool_).tobytes()]
    else:
        secret = Secret.from_arrays(_part(arrays, SECRET))
        entries = [b"".join(array.tobytes() for array in secret.arrays().values())]
    entries += [str(int(number)).encode() for number in rounds]
    return entries


def _part(arrays: Arrays, prefix: str) -> Arrays:
    """The arrays under a prefix, without it."""
    names = [name for name in arrays if name.startswith(prefix)]
    return {name.removeprefix(prefix): arrays[name] for name in names}


def _check_coins(secret: Secret, tally: Tally) -> None:
    """Refuse a tally of other canaries than the file's."""
    same = np.array_equal(secret.own, tally.own.included)
    if not same or not np.array_equal(secret.inside, tally.inside.included):
        raise RefusedError("canaries: this tally is of different coins", code="E-CANARIES")
