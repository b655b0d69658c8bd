"""The hospital's source as names and files: a folder, a ZIP archive or a sealed folder.

In: the path of a folder, of a ZIP archive or of a sealed folder (sealed.py), and the key of that.
Out: its files by name, on disk; a mark of each, that tells whether it changed.
Guarantees:
  1. everything that the archive states is checked before a byte is written: number and sizes of
     the files, ratio, space on the disk, names, links, encryption, compression
  2. a file is unpacked under a number into a private folder (0700), so no name is a path or on disk
  3. no file gives more bytes than it states, and its checksum is right; else all is refused
  4. the folder goes at the end; after a kill, at the next start
  5. no message quotes a name out of the archive
Not covered: an archive inside the archive, which is a file of an unknown format; who may read what
lies on the site's disk meanwhile.
"""

from __future__ import annotations

import fcntl
import io
import os
import re
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from client.ingest.listing import list_files, mark_file, relative_name
from client.ingest.request import Limits
from client.ingest.sealed import SealedFolder, is_sealed
from common.errors import ConfigurationError, EnvironmentFault, disk_faults_named

PREFIX = ".unpacked-"
DIRECTORY_CAP_BYTES = 1 << 27  # the archive's own list of files
MOST_RATIO = 100  # what all files together may inflate to, per byte of the archive
PIECE_BYTES = 1 << 20
ENCRYPTED = 0x1 | 0x40 | 0x2000
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
DRIVE = re.compile(r"[A-Za-z]:")
# what the library raises for an archive that is damaged
DAMAGE = (
    *(zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, EOFError, NotImplementedError),
    *(RuntimeError, OSError, ValueError, OverflowError, LookupError, MemoryError),
)

Entries = dict[str, zipfile.ZipInfo]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Opened:
    """The files of a source by name, sorted.

    `paths`: where they lie. `marks`: what tells whether a file changed: size and time, or size and
    CRC-32. `unpacked`: they are those of an archive or a sealed folder, and go when it is closed.
    """

    paths: Mapping[str, Path]
    marks: Mapping[str, str]
    unpacked: bool


def show_no_progress(done: int, total: int) -> None:
    """Show nothing."""


def is_archive(source: Path) -> bool:
    """Return whether a source is one file, which must then be a ZIP archive."""
    return source.is_file()


@contextmanager
def open_source(
    source: Path,
    out: Path,
    limits: Limits,
    *,
    skip: Path | None,
    key: bytes | None = None,
    progress: Progress = show_no_progress,
) -> Iterator[Opened]:
    """Yield the files of a source; packed and sealed ones lie beside `out` for the while.

    `skip`: a file of a folder that does not count. `key`: the site's pseudonym key, which opens a
    sealed folder. Raises ConfigurationError (the source, `out`) and EnvironmentFault (the disk).
    """
    sealed = is_sealed(source)
    if not sealed and not is_archive(source):
        files = list_files(source, out, limits, skip=skip)
        paths = {relative_name(path, source): path for path in files}
        yield Opened(paths, _marks_of(paths), unpacked=False)
        return
    if out.exists():
        raise ConfigurationError(f"{out}: exists", hint="a cohort is frozen; name a new folder")
    sweep_unpacked(out.parent)
    if sealed:
        with _unsealed(SealedFolder(source, key), out.parent, limits, progress) as opened:
            yield opened
        return
    with _read_archive(source) as archive:
        # (1) check what the archive states
        entries = _check(source, archive, limits)
        total_bytes = sum(entry.file_size for entry in entries.values())
        with _private_folder(out.parent) as folder:
            _check_space(folder, total_bytes)
            # (2, 3) unpack each file under a number
            paths = {}
            for done, (name, entry) in enumerate(entries.items(), 1):
                paths[name] = folder / str(done)
                _unpack(source, archive, entry, paths[name], limits)
                progress(done, len(entries))
            yield Opened(paths, _marks_in(entries), unpacked=True)


@contextmanager
def _unsealed(
    sealed: SealedFolder, beside: Path, limits: Limits, progress: Progress
) -> Iterator[Opened]:
    """The files of a sealed folder, in clear for the while (2, 4)."""
    files = sealed.files(limits.max_files)
    with _private_folder(beside) as folder:
        _check_space(folder, sum(file.size for file in files.values()))
        paths = {}
        for done, (name, file) in enumerate(files.items(), 1):
            paths[name] = folder / str(done)
            with disk_faults_named("cannot unpack", folder):
                sealed.unseal(file, paths[name])
            progress(done, len(files))
        marks = {name: file.mark for name, file in files.items()}
        yield Opened(paths, marks, unpacked=True)


def mark_source(
    source: Path, out: Path, limits: Limits, *, skip: Path | None, key: bytes | None = None
) -> dict[str, str]:
    """Return the marks of the files of a source by name, without unpacking any."""
    if is_sealed(source):
        files = SealedFolder(source, key).files(limits.max_files)
        return {name: file.mark for name, file in files.items()}
    if is_archive(source):
        with _read_archive(source) as archive:
            return _marks_in(_check(source, archive, limits))
    listed = list_files(source, out, limits, skip=skip)
    return _marks_of({relative_name(path, source): path for path in listed})


def _marks_of(paths: Mapping[str, Path]) -> dict[str, str]:
    """The marks of files of a folder."""
    return {name: mark_file(path) for name, path in paths.items()}


def _marks_in(entries: Entries) -> dict[str, str]:
    """The marks of files of an archive."""
    return {name: f"{entry.file_size} {entry.CRC:08x}" for name, entry in entries.items()}


def sweep_unpacked(beside: Path) -> None:
    """Remove what a process that was killed had unpacked; what is in use is left alone."""
    for folder in beside.glob(f"{PREFIX}*"):
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            pass
        finally:
            os.close(descriptor)


@contextmanager
def _private_folder(beside: Path) -> Iterator[Path]:
    """A new folder of this account alone, locked while it is in use; the kernel ends the lock."""
    with disk_faults_named("cannot unpack", beside):
        beside.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=beside))
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


class _Bounded(io.BufferedReader):
    """A file of which never more than the cap is read at once: the list of files is read whole."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path, "rb"))
        self._size = os.fstat(self.fileno()).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        """Return at most so many bytes. Raises ValueError for more than the cap."""
        left = max(0, self._size - self.tell())
        if size is None or size < 0 or size > left:
            size = left
        if size > DIRECTORY_CAP_BYTES:
            raise ValueError("the list of files is too long")
        return super().read(size)


@contextmanager
def _read_archive(source: Path) -> Iterator[zipfile.ZipFile]:
    """The archive, open, with its list of files read."""
    try:
        file = _Bounded(source)
    except OSError as error:
        raise _refuse(source, "cannot be read", "let this account read it") from error
    with file:
        try:
            archive = zipfile.ZipFile(file)
        except DAMAGE as error:
            hint = "name a folder or a ZIP archive; if it is one, export or copy it again"
            raise _refuse(source, "not a ZIP archive, or a damaged one", hint) from error
        with archive:
            yield archive


def _check(source: Path, archive: zipfile.ZipFile, limits: Limits) -> Entries:
    """Return the files of an archive by name, sorted; raises ConfigurationError (1)."""
    again = "export it again, as plain files; or unpack it and name the folder"
    entries: Entries = {}
    faults = dict.fromkeys(("encrypted", "links", "outside", "twice", "method"), 0)
    for entry in archive.infolist():
        # programs of Windows write backslashes
        name = entry.filename.replace("\\", "/")
        if name.endswith("/"):
            continue
        faults["encrypted"] += bool(entry.flag_bits & ENCRYPTED)
        faults["links"] += not _is_plain(entry)
        faults["outside"] += not _stays_inside(name)
        faults["twice"] += name in entries
        faults["method"] += entry.compress_type not in METHODS
        entries[name] = entry
    words = {
        "encrypted": "encrypted files",
        "links": "links or devices",
        "outside": "files whose names lead out of it",
        "twice": "files of a name that another has",
        "method": "files that are compressed in another way than by Deflate",
    }
    for fault, count in faults.items():
        if count:
            raise _refuse(source, f"{count:,} {words[fault]}, expected none", again)
    # numbers and sizes
    if len(entries) > limits.max_files:
        raise _refuse(source, f"more than {limits.max_files:,} files", "split the export")
    total_bytes = sum(entry.file_size for entry in entries.values())
    most_bytes = MOST_RATIO * source.stat().st_size
    if total_bytes > most_bytes:
        found = f"unpacked {total_bytes:,} bytes, expected at most {most_bytes:,}"
        raise _refuse(source, f"{found}: {MOST_RATIO} times its size", again)
    return dict(sorted(entries.items()))


def _is_plain(entry: zipfile.ZipInfo) -> bool:
    """Whether an entry is a file; archives of other systems than Unix do not say."""
    kind = stat.S_IFMT(entry.external_attr >> 16)
    return kind in (0, stat.S_IFREG)


def _stays_inside(name: str) -> bool:
    """Whether a name is a path below the archive's root."""
    if not name or DRIVE.match(name):
        return False
    return not {"", "..", "."} & set(name.split("/"))


def _check_space(folder: Path, total_bytes: int) -> None:
    """Refuse to begin where the unpacked files would fill the disk."""
    free_bytes = shutil.disk_usage(folder).free
    if total_bytes > free_bytes:
        raise EnvironmentFault(
            f"cannot unpack into {folder.parent}: {total_bytes:,} bytes, {free_bytes:,} are free",
            hint="free some space there, or unpack the archive elsewhere and name the folder",
            code="E-DISK-FULL",
        )


def _unpack(
    source: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path, limits: Limits
) -> None:
    """Write one file (2, 3). One above the cap keeps its size alone: it is refused unread."""
    with disk_faults_named("cannot unpack", path.parent), path.open("xb") as file:
        if entry.file_size > limits.max_file_bytes:
            file.truncate(entry.file_size)
            return
        for piece in _pieces(source, archive, entry):
            file.write(piece)


def _pieces(source: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Iterator[bytes]:
    """Yield what a file holds; at its end the library compares its checksum."""
    left = entry.file_size
    damage = "a file in it is damaged: size or checksum are wrong"
    try:
        with archive.open(entry) as stream:
            while piece := stream.read(PIECE_BYTES):
                left -= len(piece)
                yield piece
    except DAMAGE as error:
        raise _refuse(source, damage, "export or copy it again") from error
    if left:
        raise _refuse(source, damage, "export or copy it again")


def _refuse(source: Path, what: str, hint: str) -> ConfigurationError:
    """The error for an archive that is not taken in."""
    return ConfigurationError(f"{source}: {what}", hint=hint, code="E-DATA-ARCHIVE")
