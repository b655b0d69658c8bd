"""What canaries and trained coordinates received in private steps, as sums over the steps.

In: arrays of a file on site. Out: a `Tally`, which canary_audit.py judges.
Guarantees: anything but a tally's names, dtypes, shapes and finite numbers is refused.
Not covered: how it is measured (canaries.py, client/learn/private_step.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.arrays import Floats
from common.errors import RefusedError

Coins = NDArray[np.bool_]
Counts = NDArray[np.int64]
FileArrays = Mapping[str, NDArray[np.generic]]
Dtype = type[np.uint8] | type[np.int64] | type[np.float64]
HEARD_DTYPES: dict[str, Dtype] = {
    "included": np.uint8,
    "scores": np.float64,
    "squares": np.float64,
    "drawn": np.int64,
    "drawn_scores": np.float64,
}
KINDS = ("own", "inside")
RELEASE_DTYPES: dict[str, Dtype] = {
    "sizes": np.int64,
    "released": np.float64,
    "signal": np.float64,
    "steps": np.int64,
}


@dataclass(frozen=True)
class Heard:
    """What n canaries of one kind received: a number a canary and step.

    `included`: coins [n]. `scores`, `squares`: sums of the numbers and of their squares. `drawn`:
    the steps whose sample held the canary. `drawn_scores`: the sum over these steps.
    """

    included: Coins
    scores: Floats
    squares: Floats
    drawn: Counts
    drawn_scores: Floats

    def __len__(self) -> int:
        return len(self.included)

    def __add__(self, other: Heard) -> Heard:
        """Both together; raises RefusedError unless the coins are the same."""
        if not np.array_equal(self.included, other.included):
            raise RefusedError("canaries: these tallies are of different coins", code="E-CANARIES")
        return Heard(
            self.included,
            self.scores + other.scores,
            self.squares + other.squares,
            self.drawn + other.drawn,
            self.drawn_scores + other.drawn_scores,
        )

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Return it for a file on site."""
        return {
            "included": self.included.astype(np.uint8),
            "scores": self.scores,
            "squares": self.squares,
            "drawn": self.drawn,
            "drawn_scores": self.drawn_scores,
        }


def silence(included: Coins) -> Heard:
    """Return what canaries heard before the first step: nothing."""
    count = len(included)
    counts = np.zeros(count, np.int64)
    return Heard(included, np.zeros(count), np.zeros(count), counts, np.zeros(count))


@dataclass(frozen=True)
class Tally:
    """What was measured over `steps` steps of one model.

    `own`: canaries on dummy coordinates. `inside`: canaries in directions of the trained tensors.
    `sizes` [P]: the coordinates of each trained tensor. `released` [P]: the sum of the squares of
    what was released there. `signal`: the sum over the steps of (number of drawn patients)². It is
    private and never leaves the site.
    """

    own: Heard
    inside: Heard
    sizes: Counts
    released: Floats
    signal: float
    steps: int

    def __add__(self, other: Tally) -> Tally:
        """Both together; raises RefusedError unless coins and tensors are the same."""
        if not np.array_equal(self.sizes, other.sizes):
            raise RefusedError("canaries: these tallies are of other tensors", code="E-CANARIES")
        return Tally(
            self.own + other.own,
            self.inside + other.inside,
            self.sizes,
            self.released + other.released,
            self.signal + other.signal,
            self.steps + other.steps,
        )

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Return the tally for a file on site."""
        arrays: dict[str, NDArray[np.generic]] = {
            "sizes": self.sizes,
            "released": self.released,
            "signal": np.array([self.signal]),
            "steps": np.array([self.steps], np.int64),
        }
        for kind in KINDS:
            heard: Heard = getattr(self, kind)
            arrays |= {f"{kind}.{name}": array for name, array in heard.arrays().items()}
        return arrays

    @classmethod
    def from_arrays(cls, arrays: FileArrays) -> Tally:
        """Return the tally in `arrays()`; raises RefusedError (E-CANARIES) for anything else."""
        if not _is_tally(arrays):
            raise RefusedError(
                "canaries: not a tally of this version: other tensors, shapes or numbers",
                hint="it is of another version of kohort-site, or damaged",
                code="E-CANARIES",
            )
        return cls(
            own=_heard(arrays, "own"),
            inside=_heard(arrays, "inside"),
            sizes=np.asarray(arrays["sizes"], np.int64),
            released=np.asarray(arrays["released"], np.float64),
            signal=float(np.asarray(arrays["signal"], np.float64)[0]),
            steps=int(np.asarray(arrays["steps"], np.int64)[0]),
        )


def _heard(arrays: FileArrays, kind: str) -> Heard:
    """The part of one kind of canaries, from arrays that were checked."""
    return Heard(
        arrays[f"{kind}.included"].astype(np.bool_),
        np.asarray(arrays[f"{kind}.scores"], np.float64),
        np.asarray(arrays[f"{kind}.squares"], np.float64),
        np.asarray(arrays[f"{kind}.drawn"], np.int64),
        np.asarray(arrays[f"{kind}.drawn_scores"], np.float64),
    )


def _is_tally(arrays: FileArrays) -> bool:
    """Whether the arrays have a tally's names, dtypes, shapes and numbers."""
    expected = dict(RELEASE_DTYPES)
    for kind in KINDS:
        expected |= {f"{kind}.{name}": dtype for name, dtype in HEARD_DTYPES.items()}
    if set(arrays) != set(expected):
        return False
    if not all(_is_plain(arrays[name], dtype) for name, dtype in expected.items()):
        return False
    shapes = dict.fromkeys(("signal", "steps"), 1)
    shapes |= {"sizes": len(arrays["released"]), "released": len(arrays["released"])}
    for kind in KINDS:
        count = len(arrays[f"{kind}.included"])
        shapes |= {f"{kind}.{name}": count for name in HEARD_DTYPES}
    return all(len(arrays[name]) == length for name, length in shapes.items())


def _is_plain(array: NDArray[np.generic], dtype: Dtype) -> bool:
    """Whether it is a vector of this dtype, finite, and not negative where it counts."""
    if array.dtype != dtype or array.ndim != 1 or not bool(np.isfinite(array).all()):
        return False
    return dtype is np.float64 or bool((array >= np.zeros(1, dtype)).all())
