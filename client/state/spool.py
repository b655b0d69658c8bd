"""A spool: rows of results that a child has finished, kept on disk until its job ends.

In: blocks of named arrays [rows, ...] in their order, and what they were computed from (`binding`).
Out: the same rows in any later child of the round, memory-mapped.
Guarantees:
  1. a block counts once its bytes and then the index are on disk: a kill or a power cut costs the
     block at work, and nothing half written is read
  2. a spool of another binding is removed before anything is read; so is a damaged one, from the
     first damaged block on
  3. files are for this account alone, inside the state folder, and hold no name of a patient
Not covered: when a job ends (client/child, client/daemon and sweep.py remove its spool); two
children of one round at once, which the daemon never starts.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import Bug, KohortError, RefusedError, damage_named, disk_faults_named
from common.storage.files import atomic_write, file_digest, read_capped
from common.wire.messages import canonical
from common.wire.tensors import Arrays, read, write

SUFFIX = ".spool"
INDEX = "index.json"
FORMAT = "kohort-spool-1"
INDEX_CAP_BYTES = 1 << 26
KEPT_CAP_BYTES = 1 << 32
READ_BYTES = 1 << 24
KINDS = "biuf"  # of numbers: truth values, integers, floats

Rows = Mapping[str, NDArray[Any]]


def spool_name(job: str) -> str:
    """Return the name of the spool that all tries of a round share, beside their job folders.

    `job`: the name of one try's folder; what follows its last hyphen is the number of the try.
    """
    return (job.rpartition("-")[0] or job) + SUFFIX


def spool_of(folder: Path) -> Path:
    """Return the spool of a job folder."""
    return folder.parent / spool_name(folder.name)


def remove_spool(folder: Path) -> None:
    """Remove a spool, if there is one; what cannot be removed now goes at the next start.

    Arrays that were handed out stay readable until they are dropped.
    """
    shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class _Block:
    """Finished rows: how many, and the SHA-256 over their bytes, field by field."""

    rows: int
    sha256: str


@dataclass
class Spool:
    """An open spool. `binding`: SHA-256, in hex, of everything that the rows depend on."""

    folder: Path
    binding: str
    _fields: dict[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)
    _blocks: list[_Block] = field(default_factory=list)
    _kept: dict[str, str] = field(default_factory=dict)  # SHA-256 of whole files, by name

    @classmethod
    def open(cls, folder: Path, binding: str) -> Spool:
        """Return the spool of this binding with all whole blocks; a new one where there is none."""
        spool = cls(folder, binding)
        if not spool._load():
            remove_spool(folder)
            with disk_faults_named("cannot make the spool", folder):
                folder.mkdir(parents=True, mode=0o700)
            spool = cls(folder, binding)
            spool._write_index()
        return spool

    @property
    def count(self) -> int:
        """Return how many rows are finished."""
        return sum(block.rows for block in self._blocks)

    def append(self, rows: Rows) -> None:
        """Write a block and wait until it is on disk. Every block has the same fields."""
        arrays = {name: np.ascontiguousarray(rows[name]) for name in sorted(rows)}
        fields = {name: (array.dtype.str, array.shape[1:]) for name, array in arrays.items()}
        if self._fields and fields != self._fields:
            raise Bug("spool: a block of other fields than the first one")
        self._fields = fields
        digest = hashlib.sha256()
        for name, array in arrays.items():
            self._write_rows(name, array)
            digest.update(array.tobytes())
        [count] = {len(array) for array in arrays.values()}
        self._blocks.append(_Block(count, digest.hexdigest()))
        self._write_index()

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return every field as [rows, ...], memory-mapped and read-only."""
        found: dict[str, NDArray[Any]] = {}
        for name, (dtype, shape) in self._fields.items():
            found[name] = np.memmap(
                self._path(name), np.dtype(dtype), mode="r", shape=(self.count, *shape)
            )
        return found

    def keep(self, name: str, arrays: Arrays) -> None:
        """Write whole arrays under a name, and wait until they are on disk."""
        path = self.folder / f"{name}.safetensors"
        write(path, arrays, mode=0o600)
        self._kept[name] = file_digest(path)
        self._write_index()

    def kept(self, name: str) -> Arrays | None:
        """Return the arrays of a name, or None where they are not there whole."""
        path = self.folder / f"{name}.safetensors"
        if name not in self._kept or not path.is_file() or file_digest(path) != self._kept[name]:
            return None
        return read(path, max_bytes=KEPT_CAP_BYTES)

    def _path(self, name: str) -> Path:
        """The file of a field's rows."""
        return self.folder / f"{name}.rows"

    def _row_bytes(self, name: str) -> int:
        """The size of one row of a field."""
        dtype, shape = self._fields[name]
        return int(np.dtype(dtype).itemsize * np.prod(shape, dtype=np.int64))

    def _write_rows(self, name: str, array: NDArray[Any]) -> None:
        """Write a block's rows of one field behind those that are finished, synced."""
        path = self._path(name)
        with disk_faults_named("cannot write", path):
            descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "r+b") as file:
                file.truncate(self.count * self._row_bytes(name))
                file.seek(0, os.SEEK_END)
                file.write(array.tobytes())
                file.flush()
                os.fsync(file.fileno())

    def _write_index(self) -> None:
        """Write down which blocks are whole."""
        index = {
            "format": FORMAT,
            "binding": self.binding,
            "fields": {name: [dtype, shape] for name, (dtype, shape) in self._fields.items()},
            "blocks": [[block.rows, block.sha256] for block in self._blocks],
            "kept": self._kept,
        }
        atomic_write(self.folder / INDEX, canonical(index), mode=0o600)

    def _load(self) -> bool:
        """Read the index and check every block; False where no spool of this binding is there."""
        try:
            with damage_named(RefusedError(f"{self.folder}: not a spool of this version")):
                given = json.loads(read_capped(self.folder / INDEX, INDEX_CAP_BYTES))
                self._take(given)
        except (OSError, KohortError):
            return False
        return True

    def _take(self, given: dict[str, Any]) -> None:
        """Take over an index; raises ValueError for another format or binding."""
        if given["format"] != FORMAT or given["binding"] != self.binding:
            raise ValueError("another spool")
        for name, (dtype, shape) in given["fields"].items():
            if not str(name).isidentifier() or np.dtype(dtype).kind not in KINDS:
                raise ValueError("a field")
            self._fields[name] = (np.dtype(dtype).str, tuple(int(size) for size in shape))
        self._kept = {str(name): str(digest) for name, digest in given["kept"].items()}
        # rows fit these files alone: where one is lost, all is begun anew
        for name in self._kept:
            if self.kept(name) is None:
                raise ValueError("a kept file")
        blocks = [_Block(int(rows), str(digest)) for rows, digest in given["blocks"]]
        for block in blocks:
            if block.rows < 1 or not self._is_whole(block):
                break
            self._blocks.append(block)

    def _is_whole(self, block: _Block) -> bool:
        """Whether the bytes of the next block are those that were written."""
        digest = hashlib.sha256()
        for name in sorted(self._fields):
            if not self._path(name).is_file():
                return False
            left = block.rows * self._row_bytes(name)
            with open(self._path(name), "rb") as file:
                file.seek(self.count * self._row_bytes(name))
                while left:
                    data = file.read(min(READ_BYTES, left))
                    if not data:
                        return False
                    digest.update(data)
                    left -= len(data)
        return digest.hexdigest() == block.sha256


def bind(*parts: str | Sequence[object] | Mapping[str, object]) -> str:
    """Return the SHA-256, in hex, of what the rows of a spool are computed from."""
    return hashlib.sha256(canonical([FORMAT, *parts])).hexdigest()
