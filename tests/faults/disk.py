"""Watches everything that a process makes durable below some folders, and acts at one such event.

In: folders; which event (its number, before or after it) and what happens there.
Out: the events in order; files that got their final name before their bytes were synced.
Events: a file opened to write, closed after that, fsync of a file or a folder, a name made, moved
or removed, a commit of SQLite, a database opened and closed.
Guarantees: every event is met by number, not by chance (tests/faults/test_disk.py compares with an
audit hook and with strace).
Not covered: the system calls inside one commit, which are SQLite's own promise.
"""

from __future__ import annotations

import io
import os
import re
import sqlite3
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

RANDOM = (
    (re.compile(r"\.part-[a-z0-9_]{8}$"), ".part-*"),  # a temporary file of an atomic write
    (re.compile(r"[0-9a-f]{16,}"), "*"),  # a digest
)
WRITES = re.compile(
    r"\s*(INSERT|UPDATE|DELETE|REPLACE|CREATE|ALTER|DROP)|PRAGMA user_version ?=", re.I
)
ENDS = re.compile(r"\s*(COMMIT|END)\b", re.I)
REMOVES = ("unlink", "rmdir")  # what a full disk still does


@dataclass(frozen=True)
class Event:
    """One durable event: its number from 0, what it is, and the file below its folder."""

    number: int
    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


# what happens at an event: it may end the process, stop it, or raise
Act = Callable[[Event, str], None]


@dataclass
class Point:
    """Where something happens: at one event, `before` or `after` it; every later one, if `on`."""

    number: int
    when: str
    act: Act
    on: bool = False

    def meets(self, event: Event, when: str) -> bool:
        """Whether this is the place."""
        if self.on and event.number > self.number:
            return when == "before"
        return (event.number, when) == (self.number, self.when)


@dataclass
class Disk:
    """The events below some folders while it is installed."""

    roots: Sequence[Path]
    point: Point | None = None
    events: list[Event] = field(default_factory=list)
    unsynced: list[str] = field(default_factory=list)
    _dirty: set[str] = field(default_factory=set)
    _lock: Any = field(default_factory=threading.RLock)
    installed: ClassVar[Disk | None] = None

    def install(self, stack: ExitStack) -> None:
        """Watch until `stack` closes."""
        Disk.installed = self
        for name in ("replace", "rename", "link", "symlink"):
            self._wrap(stack, name, self._moved)
        for name in ("unlink", "remove", "rmdir", "mkdir", "truncate"):
            self._wrap(stack, name, self._named)
        self._wrap(stack, "fsync", self._synced)
        self._wrap(stack, "fdatasync", self._synced)
        self._wrap(stack, "open", self._opened)
        opener = self._open(io.open)
        stack.enter_context(patch("io.open", opener))
        stack.enter_context(patch("builtins.open", opener))
        stack.enter_context(patch("sqlite3.connect", self._connect(sqlite3.connect)))

    def dirty(self) -> list[Path]:
        """Return the files whose bytes may be lost in a power cut now."""
        return [Path(path) for path in sorted(self._dirty) if os.path.isfile(path)]

    def watch(self, kind: str, path: str, call: Callable[[], Any]) -> Any:
        """Do something durable, with what happens before and after it."""
        event = self._begin(kind, path)
        if event is None:
            return call()
        self._meet(event, "before")
        result = call()
        self._meet(event, "after")
        return result

    # --- what is an event -------------------------------------------------------------------------

    def _begin(self, kind: str, path: str) -> Event | None:
        """The next event, or None for a file elsewhere."""
        name = self.name_of(path)
        if name is None:
            return None
        with self._lock:
            event = Event(len(self.events), kind, name)
            self.events.append(event)
        return event

    def _meet(self, event: Event, when: str) -> None:
        """Let happen what is planned here."""
        if self.point is not None and self.point.meets(event, when):
            self.point.act(event, when)

    def name_of(self, path: str) -> str | None:
        """A path below a watched folder, without what is random in it."""
        for root in self.roots:
            if path == str(root) or path.startswith(f"{root}/"):
                name = os.path.relpath(path, root.parent)
                for pattern, text in RANDOM:
                    name = pattern.sub(text, name)
                return name
        return None

    # --- the functions of os ----------------------------------------------------------------------

    def _wrap(self, stack: ExitStack, name: str, watcher: Callable[..., Any]) -> None:
        """Replace a function of os by one that is watched."""
        original = getattr(os, name)

        def watched(*arguments: Any, **named: Any) -> Any:
            return watcher(name, original, arguments, named)

        stack.enter_context(patch(f"os.{name}", watched))

    def _named(self, name: str, call: Callable[..., Any], args: Any, named: Any) -> Any:
        """One path: made or removed. What is not there is no event."""
        path = path_of(args[0], named.get("dir_fd"))
        if name != "mkdir" and not os.path.lexists(path):
            return call(*args, **named)
        impossible = os.path.lexists(path) or not os.path.isdir(os.path.dirname(path))
        if name == "mkdir" and impossible:
            return call(*args, **named)
        kind = "unlink" if name == "remove" else name
        self._dirty.discard(path)
        return self.watch(kind, path, lambda: call(*args, **named))

    def _moved(self, name: str, call: Callable[..., Any], args: Any, named: Any) -> Any:
        """A file or folder that gets another name; its bytes should be synced by now."""
        source = path_of(args[0], named.get("src_dir_fd"))
        target = path_of(args[1], named.get("dst_dir_fd"))
        self._check_synced(source, target)
        return self.watch(name, target, lambda: call(*args, **named))

    def _check_synced(self, source: str, target: str) -> None:
        """Note every file that appears under a final name before its bytes are on disk."""
        for path in sorted(self._dirty):
            if path == source or path.startswith(f"{source}/"):
                self._dirty.discard(path)
                name = self.name_of(path.replace(source, target, 1))
                if name is not None:
                    self.unsynced.append(name)

    def _synced(self, name: str, call: Callable[..., Any], args: Any, named: Any) -> Any:
        """The bytes of a file, or the names in a folder."""
        path = path_of(args[0])
        result = self.watch(name, path, lambda: call(*args, **named))
        self._dirty.discard(path)
        return result

    def _opened(self, name: str, call: Callable[..., Any], args: Any, named: Any) -> Any:
        """A file opened to write. One that is there and keeps its bytes is no event."""
        flags = args[1] if len(args) > 1 else named["flags"]
        path = path_of(args[0], named.get("dir_fd"))
        makes = flags & os.O_CREAT and not os.path.lexists(path)
        if not (makes or flags & os.O_TRUNC):
            return call(*args, **named)
        return self.watch("create", path, lambda: call(*args, **named))

    # --- files of Python --------------------------------------------------------------------------

    def _open(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """`open`, watched for files that are written."""

        def opener(file: Any, mode: str = "r", *args: Any, **named: Any) -> Any:
            if not set(mode) & set("wax+"):
                return call(file, mode, *args, **named)
            path = path_of(file)
            if self.name_of(path) is None:
                return call(file, mode, *args, **named)
            if isinstance(file, int):
                opened = call(file, mode, *args, **named)
            else:
                opened = self.watch("create", path, lambda: call(file, mode, *args, **named))
            self._dirty.add(path)
            return Written(self, path, opened)

        return opener

    # --- SQLite -----------------------------------------------------------------------------------

    def _connect(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """`sqlite3.connect`, watched for databases that are written."""

        def connect(database: Any, *args: Any, **named: Any) -> Any:
            path = path_of(database) if not str(database).startswith("file:") else ""
            if self.name_of(path) is None:
                return call(database, *args, **named)
            named["factory"] = database_of(self, path)
            if os.path.exists(path):
                return call(database, *args, **named)
            return self.watch("create", path, lambda: call(database, *args, **named))

        return connect


class Written:
    """A file that is written: closing it is an event."""

    def __init__(self, disk: Disk, path: str, file: Any) -> None:
        self._disk = disk
        self._path = path
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> Written:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Any:
        return iter(self._file)

    def close(self) -> None:
        """Close it; a second time is no event."""
        if self._file.closed:
            return
        try:
            self._disk.watch("close", self._path, self._file.close)
        finally:
            self._file.close()


def database_of(disk: Disk, path: str) -> type[sqlite3.Connection]:
    """Return a connection class whose commits are events."""

    class Database(sqlite3.Connection):
        """A watched database."""

        _changed = False

        def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
            call = super().execute
            if not self._commits(sql):
                return call(sql, *args)
            self._changed = False
            return disk.watch("commit", path, lambda: call(sql, *args))

        def executescript(self, sql: str) -> sqlite3.Cursor:
            call = super().executescript
            if super().execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                return call(sql)
            return disk.watch("commit", path, lambda: call(sql))

        def __exit__(self, kind: Any, *rest: Any) -> Any:
            leave = super().__exit__
            if kind is not None or not self.in_transaction:
                return leave(kind, *rest)
            return disk.watch("commit", path, lambda: leave(kind, *rest))

        def backup(self, target: Any, **named: Any) -> None:
            call = super().backup
            disk.watch("commit", path + ".backup", lambda: call(target, **named))

        def close(self) -> None:
            # the last connection moves the write-ahead log into the file
            call = super().close
            if os.path.exists(path + "-wal") and os.path.getsize(path + "-wal"):
                disk.watch("checkpoint", path, call)
            else:
                call()

        def _commits(self, sql: str) -> bool:
            """Whether a statement changes the disk when it returns."""
            if ENDS.match(sql):
                return self._changed
            if WRITES.match(sql) is None:
                return sql.startswith("PRAGMA journal_mode=WAL") and not os.path.getsize(path)
            self._changed = True
            return self.isolation_level is None and not self.in_transaction

    return Database


def path_of(file: Any, folder: int | None = None) -> str:
    """Return the path behind a name, an open file or a name in an open folder."""
    if isinstance(file, int):
        return os.readlink(f"/proc/self/fd/{file}")
    text = os.fsdecode(os.fspath(file))
    if folder is not None and folder >= 0:
        return os.path.join(os.readlink(f"/proc/self/fd/{folder}"), text)
    return os.path.abspath(text)
