"""The finished work of an intake, on disk: what was decoded before a kill is not decoded again.

In: the outcome of each file or series, under an entry that its names and stamps make. Out: the same
outcome, at a later start.
Guarantees:
  1. an entry counts once it is whole: a kill or a power cut costs the entries at work, and what was
     altered or cut is decoded again
  2. a file of other work is removed before anything is read: another site's key, other rules of the
     plan, other limits, another version of this program or of a package beside it
  3. what headers say lies there sealed (AES-256-GCM, under a key of the site's pseudonym key); the
     names of entries are keyed hashes
  4. what may pass is not kept: a file that could not be read, a child that died or hung
Not covered: a file that changed and kept size, time of change and time of its inode; when the file
goes (build.py removes it with the folder it lies in).

A head of 72 bytes (format, binding, salt), then entries: length (4 bytes), entry (16), nonce (12),
sealed outcome.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import io
import json
import os
import secrets
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import distributions
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from client.ingest.outcomes import pack, unpack
from client.ingest.persons import keyed_hash
from client.ingest.quarantine import Reason
from client.ingest.request import Settings

NAME = "decoded"
FORMAT = b"kohort1\n"
SALT_BYTES = 32
HEAD_BYTES = len(FORMAT) + 32 + SALT_BYTES
LENGTH_BYTES, ENTRY_BYTES, NONCE_BYTES, TAG_BYTES = 4, 16, 12, 16
FRAME_BYTES = LENGTH_BYTES + ENTRY_BYTES + NONCE_BYTES
OUTCOME_CAP_BYTES = 1 << 30
SYNC_ENTRIES = 256
# refusals that a second try may not meet
PASSING = (Reason.UNREADABLE, Reason.TIMED_OUT, Reason.DECODER_DIED, Reason.OUT_OF_MEMORY)

T = TypeVar("T")
R = TypeVar("R")


class Finished:
    """An open file of finished work. Raises OSError where the disk does."""

    def __init__(self, path: Path, key: bytes, settings: Settings) -> None:
        self._places: dict[str, tuple[int, int]] = {}  # of each entry: where it is sealed, how long
        self._unsynced = 0
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._file = io.FileIO(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+")
        head = FORMAT + bind(key, settings)
        salt = self._read(0, HEAD_BYTES).removeprefix(head)
        if len(salt) != SALT_BYTES:
            # (2) the file of other work, or none
            salt = secrets.token_bytes(SALT_BYTES)
            self._file.truncate(0)
            self._write(0, head + salt)
        self._seal = AESGCM(hmac.digest(key, b"kohort-finished\0" + salt, "sha256"))
        self._end = HEAD_BYTES
        self._find_entries()

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, entry: object) -> bool:
        return entry in self._places

    def find(self, entry: str) -> Any:
        """Return the outcome of an entry."""
        return unpack(self._open(entry, *self._places[entry]))

    def note(self, entry: str, outcome: object) -> None:
        """Write the outcome of an entry, and every so often wait until all of them are on disk."""
        if getattr(outcome, "reason", outcome) in PASSING:
            return
        nonce = secrets.token_bytes(NONCE_BYTES)
        name = bytes.fromhex(entry)
        sealed = self._seal.encrypt(nonce, pack(outcome), name)
        if len(sealed) > OUTCOME_CAP_BYTES:
            return
        self._write(self._end, len(sealed).to_bytes(LENGTH_BYTES, "big") + name + nonce + sealed)
        self._places[entry] = (self._end, len(sealed))
        self._end += FRAME_BYTES + len(sealed)
        self._unsynced += 1
        if self._unsynced >= SYNC_ENTRIES:
            os.fsync(self._file.fileno())
            self._unsynced = 0

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _find_entries(self) -> None:
        """Find the whole entries, up to the first that is not, and cut off what follows them."""
        while frame := self._read(self._end, FRAME_BYTES):
            size = int.from_bytes(frame[:LENGTH_BYTES], "big")
            entry = frame[LENGTH_BYTES : LENGTH_BYTES + ENTRY_BYTES].hex()
            try:
                self._open(entry, self._end, size)
            except InvalidTag:
                break
            self._places[entry] = (self._end, size)
            self._end += FRAME_BYTES + size
        self._file.truncate(self._end)

    def _open(self, entry: str, place: int, size: int) -> bytes:
        """Return what is sealed at a place. Raises InvalidTag for anything but what was sealed."""
        if not TAG_BYTES <= size <= OUTCOME_CAP_BYTES:
            raise InvalidTag
        nonce = self._read(place + LENGTH_BYTES + ENTRY_BYTES, NONCE_BYTES)
        sealed = self._read(place + FRAME_BYTES, size)
        if len(nonce) + len(sealed) < NONCE_BYTES + size:
            raise InvalidTag
        return self._seal.decrypt(nonce, sealed, bytes.fromhex(entry))

    def _read(self, place: int, size: int) -> bytes:
        """At most `size` bytes from a place, and no more than the file has."""
        left = os.fstat(self._file.fileno()).st_size - place
        data = b""
        while len(data) < min(size, left):
            piece = os.pread(self._file.fileno(), min(size, left) - len(data), place + len(data))
            if not piece:
                break
            data += piece
        return data

    def _write(self, place: int, data: bytes) -> None:
        """Write bytes at a place."""
        self._file.seek(place)
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]


@contextmanager
def finished_work(folder: Path | None, key: bytes, settings: Settings) -> Iterator[Finished | None]:
    """Yield the finished work in a folder; None where none is kept."""
    if folder is None:
        yield None
        return
    work = Finished(folder / NAME, key, settings)
    try:
        yield work
    finally:
        work.close()


def go_on(
    work: Finished | None,
    entries: Sequence[str | None],
    requests: Sequence[T],
    decode: Callable[[list[T]], Iterator[R]],
) -> Iterator[R]:
    """Yield the outcome of each request, in order: the finished one, or what `decode` gives anew.

    `entries`: one a request, each different; None for a request whose outcome is not kept. `decode`
    gets the requests without a finished outcome, and answers in their order.
    """
    if work is None:
        yield from decode(list(requests))
        return
    known = {entry for entry in entries if entry in work}
    missing = [one for entry, one in zip(entries, requests, strict=True) if entry not in known]
    fresh = decode(missing)
    for entry in entries:
        if entry in known and entry is not None:
            yield work.find(entry)
            continue
        outcome = next(fresh)
        if entry is not None:
            work.note(entry, outcome)
        yield outcome


def entries_of(
    paths: Sequence[Path], names: Sequence[str], key: bytes, marks: Sequence[str] | None = None
) -> list[str | None]:
    """Return the entry of each file: a keyed hash of its name, size and times; None where unknown.

    `marks`: what counts instead of size and times. Ask before the files are read: one that changes
    meanwhile has another entry at the next start.
    """
    if marks is not None:
        pairs = zip(names, marks, strict=True)
        return [keyed_hash(key, "finished", name, mark) for name, mark in pairs]
    found: list[str | None] = []
    for path, name in zip(paths, names, strict=True):
        try:
            status = path.lstat()
        except OSError:
            found.append(None)
            continue
        stamp = f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
        found.append(keyed_hash(key, "finished", name, stamp))
    return found


def entry_of_series(
    slices: Sequence[str | None], masks: Sequence[str | None], key: bytes
) -> str | None:
    """Return the entry of a series, of the entries of its files; None where one has none."""
    parts = [*slices, "masks", *masks]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    return keyed_hash(key, "finished-series", *known)


def bind(key: bytes, settings: Settings) -> bytes:
    """Return the SHA-256 of everything that finished work depends on, beside the files."""
    facts = [keyed_hash(key, "fingerprint"), asdict(settings), program()]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).digest()


@functools.cache
def program() -> str:
    """Return the SHA-256, in hex, of the rules in this room, and of all packages' versions."""
    digest = hashlib.sha256(sys.version.encode())
    for source in sorted(files("client.ingest").iterdir(), key=lambda path: path.name):
        if source.name.endswith(".py"):
            digest.update(hashlib.sha256(source.read_bytes()).digest())
    for one in sorted(f"{package.name} {package.version}" for package in distributions()):
        digest.update(hashlib.sha256(one.encode()).digest())
    return digest.hexdigest()
