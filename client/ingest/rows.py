"""A file of equal rows that an intake builds and reads again, without holding it in memory.

Guarantees: plain reads and writes, so that memory holds the rows asked for alone (pages of a memory
map count too), and a full disk is an error, not the end of the process.
Not covered: a file that outlives its process; nothing is checked when it is read.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

D = TypeVar("D", bound=np.generic)


class RowFile(Generic[D]):
    """Rows of `shape` and `dtype` in a new file at `path`."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: type[D]) -> None:
        self.shape = shape
        self._path = path
        self._dtype = dtype
        self._row_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self._count = 0
        self._file = io.FileIO(path, "x+")

    def __len__(self) -> int:
        return self._count

    def append(self, rows: NDArray[D]) -> None:
        """Write rows [N, *shape] behind the others. Raises OSError."""
        data = np.ascontiguousarray(rows).data.cast("B")
        self._file.seek(self._count * self._row_bytes)
        while len(data):
            data = data[self._file.write(data) :]
        self._count += len(rows)

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[D]:
        """Return these rows, [N, *shape], in their order."""
        found = np.empty((len(rows), *self.shape), self._dtype)
        for place, row in enumerate(rows.tolist()):
            if not 0 <= row < self._count:
                raise IndexError(f"row {row}, expected 0 to {self._count - 1}")
            self._file.seek(row * self._row_bytes)
            self._fill(found[place].data.cast("B"))
        return found

    def _fill(self, data: memoryview) -> None:
        """Read from where the file stands until `data` is full. Raises OSError."""
        while len(data):
            count = self._file.readinto(data)
            if not count:
                raise OSError(f"{self._path.name}: shorter than what was written")
            data = data[count:]

    def remove(self) -> None:
        """Close and delete the file; a second time changes nothing."""
        self._file.close()
        self._path.unlink(missing_ok=True)
