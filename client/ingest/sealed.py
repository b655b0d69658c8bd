"""A folder of sealed files: what was fetched from a server and waits for an intake.

In: names and bytes, the site's pseudonym key. Out: the same, later.
Guarantees:
  1. names and bytes lie there encrypted (AES-256-GCM, under a key of the site's pseudonym key and a
     salt of the file); the file's own name is a keyed hash
  2. a file is there whole or not at all; what was altered, cut, reordered or renamed is refused
  3. the folder is of this account alone (0700), and of one pseudonym key
Not covered: who holds the pseudonym key; the plain files of an intake at work (archive.py).

A file: format (8 bytes), salt (32), then frames: length (4), sealed bytes. The first frame is the
name. The number of the frame and whether it is the last one are its nonce.
"""

from __future__ import annotations

import fcntl
import hmac
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from client.ingest.persons import keyed_hash
from common.errors import ConfigurationError, disk_faults_named
from common.storage.files import read_capped, sync_folder

MARK = "kohort-sealed"
SUFFIX, PART = ".sealed", ".part"
FORMAT = b"kohfet1\n"
SALT_BYTES, TAG_BYTES, LENGTH_BYTES = 32, 16, 4
HEAD_BYTES = len(FORMAT) + SALT_BYTES
PIECE_BYTES = 1 << 20
MARK_CAP_BYTES = 256


@dataclass(frozen=True)
class SealedFile:
    """One sealed file. `size`: of what it holds, in bytes. `mark`: changes with the contents."""

    path: Path
    size: int
    mark: str


def is_sealed(folder: Path) -> bool:
    """Return whether a folder is one of sealed files."""
    return os.path.isfile(folder / MARK)


class SealedFolder:
    """A folder of sealed files, and the key that opens them."""

    def __init__(self, folder: Path, key: bytes | None) -> None:
        """Open a folder. Raises ConfigurationError for another key."""
        if key is None:
            raise _refuse(f"{folder}: sealed, and this site has no key", "`kohort-site init`")
        self.folder = folder
        self._key = key
        if read_capped(folder / MARK, MARK_CAP_BYTES) != _mark(key):
            raise _refuse(
                f"{folder}: sealed under the key of another site",
                "name a new folder in data.folder, and `kohort-site fetch` again",
            )

    @classmethod
    def make(cls, folder: Path, key: bytes) -> SealedFolder:
        """Open a folder, which is made unless it is there; raises ConfigurationError for others."""
        if not is_sealed(folder):
            if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
                raise _refuse(
                    f"{folder}: holds other things than fetched images",
                    "name a new folder in data.folder, such as `fetched` in the state folder",
                )
            with disk_faults_named("cannot make the sealed folder", folder):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                folder.chmod(0o700)
                (folder / MARK).write_bytes(_mark(key))
        return cls(folder, key)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep others from writing; what a killed process left half written goes."""
        with (self.folder / MARK).open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise _refuse(f"{self.folder}: another fetch is at work", "wait for it") from error
            for left in self.folder.glob(f"*{PART}"):
                left.unlink()
            yield

    def __contains__(self, name: str) -> bool:
        return self._path(name).is_file()

    def held_bytes(self) -> int:
        """Return what the sealed files take on the disk."""
        return sum(path.stat().st_size for path in self.folder.glob(f"*{SUFFIX}"))

    def add(self, name: str, blocks: Iterable[bytes]) -> None:
        """Seal a file; whatever `blocks` raises, nothing of it stays."""
        path = self._path(name)
        part = path.with_suffix(PART)
        salt = secrets.token_bytes(SALT_BYTES)
        seal = self._seal(salt)
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(FORMAT + salt)
                number, held = 0, name.encode()
                for piece in _pieces(blocks):
                    _write_frame(file, seal, number, held, last=False)
                    number, held = number + 1, piece
                _write_frame(file, seal, number, held, last=True)
                file.flush()
                os.fsync(file.fileno())
            part.rename(path)
            sync_folder(self.folder)
        finally:
            part.unlink(missing_ok=True)

    def files(self, most: int) -> dict[str, SealedFile]:
        """Return the sealed files by name, sorted; raises ConfigurationError (2, or above most)."""
        found: dict[str, SealedFile] = {}
        for path in self.folder.glob(f"*{SUFFIX}"):
            with path.open("rb") as file:
                head = file.read(HEAD_BYTES)
                size = os.fstat(file.fileno()).st_size
                frames = self._frames(path, file, head, size)
                name = next(frames).decode("utf-8", "replace")
                behind = size - file.tell()
            if self._path(name) != path:
                raise _damaged(path)
            count = -(-behind // (LENGTH_BYTES + PIECE_BYTES + TAG_BYTES))
            plain = max(0, behind - count * (LENGTH_BYTES + TAG_BYTES))
            found[name] = SealedFile(path, plain, f"{plain} {head[len(FORMAT) :].hex()}")
            if len(found) > most:
                raise _refuse(f"{self.folder}: more than {most:,} files", "fetch fewer")
        return dict(sorted(found.items()))

    def unseal(self, sealed: SealedFile, path: Path) -> None:
        """Write what a sealed file holds to a new file. Raises ConfigurationError (2)."""
        with sealed.path.open("rb") as file, path.open("xb") as out:
            size = os.fstat(file.fileno()).st_size
            frames = self._frames(sealed.path, file, file.read(HEAD_BYTES), size)
            next(frames)
            for piece in frames:
                out.write(piece)

    def _frames(self, path: Path, file: BinaryIO, head: bytes, size: int) -> Iterator[bytes]:
        """Yield what each frame holds, the name first; the last one ends the file."""
        if len(head) != HEAD_BYTES or not head.startswith(FORMAT):
            raise _damaged(path)
        seal = self._seal(head[len(FORMAT) :])
        number = 0
        while number < 2 or file.tell() < size:
            length = int.from_bytes(file.read(LENGTH_BYTES), "big")
            if not TAG_BYTES <= length <= PIECE_BYTES + TAG_BYTES:
                raise _damaged(path)
            sealed = file.read(length)
            nonce = _nonce(number, last=file.tell() == size)
            try:
                piece = seal.decrypt(nonce, sealed, FORMAT)
            except InvalidTag as error:
                raise _damaged(path) from error
            yield piece
            number += 1

    def _path(self, name: str) -> Path:
        return self.folder / f"{keyed_hash(self._key, 'fetched', name)}{SUFFIX}"

    def _seal(self, salt: bytes) -> AESGCM:
        return AESGCM(hmac.digest(self._key, b"kohort-fetched\0" + salt, "sha256"))


def _mark(key: bytes) -> bytes:
    """What the folder of a key says of itself."""
    return FORMAT + keyed_hash(key, "fetched-folder").encode()


def _pieces(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in pieces of one size; the last one may be shorter."""
    held = bytearray()
    for block in blocks:
        held += block
        while len(held) > PIECE_BYTES:
            yield bytes(held[:PIECE_BYTES])
            del held[:PIECE_BYTES]
    yield bytes(held)


def _nonce(number: int, *, last: bool) -> bytes:
    """Each frame of a file has another one, and each file has a key of its own."""
    return number.to_bytes(11, "big") + bytes([last])


def _write_frame(file: BinaryIO, seal: AESGCM, number: int, data: bytes, *, last: bool) -> None:
    sealed = seal.encrypt(_nonce(number, last=last), data, FORMAT)
    file.write(len(sealed).to_bytes(LENGTH_BYTES, "big") + sealed)


def _damaged(path: Path) -> ConfigurationError:
    """The error for a file that is not what was sealed; its name is opaque."""
    return _refuse(
        f"{path}: not what was fetched, or damaged", "remove it, and `kohort-site fetch` again"
    )


def _refuse(what: str, hint: str) -> ConfigurationError:
    return ConfigurationError(what, hint=hint, code="E-DATA-FETCHED")
