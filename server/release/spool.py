"""Pictures on disk while a release is built: added in any order, read in the order of their places.

In: uint8 pictures of one shape, each with its place. Out: one array over a file.
Guarantees: one picture is in memory at a time; the files lie in the given folder alone.
Not covered: who removes the folder (build.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.arrays import Images
from common.errors import disk_faults_named


@dataclass(frozen=True)
class Row:
    """Where a picture lies in the file of the arrivals, and what is known of it."""

    number: int
    label: int
    privatized: int


class Spool:
    """Distinct pictures by place; a second picture of the same place is left out."""

    def __init__(self, folder: Path, shape: tuple[int, ...]) -> None:
        """`shape`: that of one picture. `folder` is made, and must be empty."""
        self._folder = folder
        self._shape = shape
        self.rows: dict[bytes, Row] = {}
        with disk_faults_named("cannot write the release", folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._file = (folder / "arrivals").open("wb")

    def add(self, place: bytes, image: NDArray[np.uint8], label: int, privatized: int) -> None:
        """Add a picture, unless one of the same place is there."""
        if place in self.rows:
            return
        self.rows[place] = Row(len(self.rows), label, privatized)
        with disk_faults_named("cannot write the release", self._folder):
            self._file.write(image.tobytes())

    def ordered(self) -> list[Row]:
        """Return the rows in the order of their places."""
        return [self.rows[place] for place in sorted(self.rows)]

    def in_order(self, rows: Sequence[Row]) -> Images:
        """Return the pictures [N, ...] in this order, as an array over a file."""
        path = self._folder / "ordered"
        shape = (len(rows), *self._shape)
        with disk_faults_named("cannot write the release", self._folder):
            self._file.close()
            arrivals = self._folder / "arrivals"
            pictures = np.memmap(arrivals, np.uint8, "r", shape=shape)
            # written as a file: a full disk is then an error, where a mapped page would be a signal
            with path.open("wb") as file:
                for row in rows:
                    file.write(pictures[row.number].tobytes())
            arrivals.unlink()
            # "c": what a reader changes stays in its memory, and torch wants arrays that may change
            return np.memmap(path, np.uint8, "c", shape=shape)

    def close(self) -> None:
        """Close the file of the arrivals; what a full disk did not take fails here once more."""
        with disk_faults_named("cannot write the release", self._folder):
            self._file.close()
