"""Stores instructions that have arrived and replies that must leave: one folder per message.

In: bytes. Out: the same bytes, after `kill -9` too.
Guarantees: a folder appears whole or not at all, and so does its reply; all is synced before its
name appears; what is half written is removed at the next start.
Not covered: what the bytes mean (client.py).

Folder: `message` and `objects`, later `reply.objects` and `reply`.
"""

from __future__ import annotations

import os
import re
import shutil
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from common.errors import RefusedError, disk_faults_named
from common.storage.files import atomic_write, sync_folder

MESSAGE_ID = re.compile(r"[0-9a-f]{64}")
HEAD_BYTES = 72


class Inbox:
    """The stored messages of one site, by identifier (64 hex digits)."""

    def __init__(self, folder: Path, quota_bytes: int) -> None:
        self.folder = folder
        self._quota_bytes = quota_bytes
        with disk_faults_named("create", folder):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            # What a killed process left half written.
            for stale in folder.glob(".part-*"):
                shutil.rmtree(stale, ignore_errors=True)

    def waiting(self) -> list[str]:
        """Return the ids of all stored messages, oldest first."""
        found = [path for path in self.folder.iterdir() if MESSAGE_ID.fullmatch(path.name)]
        return [path.name for path in sorted(found, key=lambda path: path.stat().st_mtime_ns)]

    def holds(self, message_id: str) -> bool:
        """Return whether a message is stored."""
        return (self.folder / message_id).exists()

    def count(self) -> tuple[int, int]:
        """Return how many stored messages have no reply yet, and how many have one."""
        names = [name for name in os.listdir(self.folder) if MESSAGE_ID.fullmatch(name)]
        replies = sum((self.folder / name / "reply").exists() for name in names)
        return len(names) - replies, replies

    def has_room(self, size_bytes: int) -> bool:
        """Return whether so many bytes more are within the quota."""
        return self.used_bytes() + size_bytes <= self._quota_bytes

    def used_bytes(self) -> int:
        """Return the size of all files of the inbox; one that is dropped meanwhile may count."""
        total = 0
        for folder, _, names in os.walk(self.folder):
            for name in names:
                try:
                    total += os.lstat(Path(folder, name)).st_size
                except FileNotFoundError:
                    continue
        return total

    def store(self, message_id: str, message: bytes, objects: Iterable[tuple[str, bytes]]) -> None:
        """Write one message and its objects, synced.

        If the iterator of objects raises, nothing is left.
        """
        if self.holds(message_id):
            return
        part = self.folder / f".part-{message_id}"
        try:
            with disk_faults_named("store a message in", self.folder):
                part.mkdir(mode=0o700, exist_ok=True)
            atomic_write(part / "message", message, mode=0o600)
            _write_objects(part / "objects", objects)
            with disk_faults_named("store a message in", self.folder):
                # The rename makes the message appear whole.
                os.replace(part, self.folder / message_id)
                sync_folder(self.folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def message(self, message_id: str) -> bytes:
        """Return the message as it was stored."""
        return (self.folder / message_id / "message").read_bytes()

    def objects(self, message_id: str) -> dict[str, bytes]:
        """Return its objects: identifier → content."""
        return _read_objects(self.folder / message_id / "objects")

    def reply(self, message_id: str) -> bytes | None:
        """Return the stored reply, if there is one."""
        path = self.folder / message_id / "reply"
        return path.read_bytes() if path.exists() else None

    def reply_objects(self, message_id: str) -> dict[str, bytes]:
        """Return the reply's objects: identifier → content."""
        return _read_objects(self.folder / message_id / "reply.objects")

    def store_reply(self, message_id: str, reply: bytes, objects: dict[str, bytes]) -> None:
        """Write the reply after its objects: `reply` exists only when all is there."""
        folder = self.folder / message_id
        _write_objects(folder / "reply.objects", objects.items())
        atomic_write(folder / "reply", reply, mode=0o600)
        # what was asked is needed no more
        (folder / "objects").unlink(missing_ok=True)

    def drop(self, message_id: str) -> None:
        """Remove a message and its reply."""
        # the rename makes it disappear as a whole; the next start removes what a kill leaves
        dropped = self.folder / f".part-dropped-{message_id}"
        with suppress(FileNotFoundError):
            os.rename(self.folder / message_id, dropped)
        shutil.rmtree(dropped, ignore_errors=True)


def _write_objects(path: Path, objects: Iterable[tuple[str, bytes]]) -> None:
    """Write per object: identifier (64 bytes), length (8 bytes, little endian), content."""
    with path.open("wb") as file:
        for object_id, content in objects:
            with disk_faults_named("store an object in", path):
                file.write(object_id.encode() + struct.pack("<Q", len(content)))
                file.write(content)
        with disk_faults_named("store an object in", path):
            file.flush()
            os.fsync(file.fileno())


def _read_objects(path: Path) -> dict[str, bytes]:
    """Return what `_write_objects` wrote."""
    with path.open("rb") as file:
        return dict(_each_object(file))


def _each_object(file: BinaryIO) -> Iterator[tuple[str, bytes]]:
    """Yield identifier and content until the file ends; raises RefusedError for a damaged one."""
    left = os.fstat(file.fileno()).st_size
    while head := file.read(HEAD_BYTES):
        object_id = head[:64].decode("ascii", "replace")
        size = int.from_bytes(head[64:], "little")
        left -= HEAD_BYTES + size
        if len(head) != HEAD_BYTES or left < 0 or not MESSAGE_ID.fullmatch(object_id):
            raise RefusedError("inbox: not the objects of a message", code="E-MESSAGE-CORRUPT")
        yield object_id, file.read(size)
