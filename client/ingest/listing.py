"""Lists the files of a hospital's folder, and tells later which came, went or changed.

In: the data folder, the site's key.
Out: paths; opaque ids of files and of their size and time.
Guarantees: a link is listed and never followed; nothing that a file is called is stored.
Not covered: what the files hold (sources.py); a file that changed and kept its size and time.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from client.ingest.persons import keyed_hash
from client.ingest.request import Limits
from common.errors import ConfigurationError, RefusedError
from common.storage.files import read_capped

LISTING = "files.csv"
LISTING_CAP_BYTES = 1 << 28


@dataclass(frozen=True)
class Changes:
    """How many files came, went or changed; for the site's own screen."""

    new: int
    gone: int
    changed: int

    def __bool__(self) -> bool:
        return bool(self.new or self.gone or self.changed)


def list_files(source: Path, out: Path, limits: Limits, *, skip: Path | None) -> list[Path]:
    """Return every file below `source` but `skip`, sorted.

    Links are included: they are quarantined, never followed. So are folders that cannot be read.
    Raises ConfigurationError: `source` is no folder, `out` is not a new folder outside it, or there
    are too many files.
    """
    if not source.is_dir():
        raise ConfigurationError(
            f"{source}: not a folder", hint="name the folder with the DICOM files or photographs"
        )
    if out.exists() or out.resolve().is_relative_to(source.resolve()):
        raise ConfigurationError(
            f"{out}: must be a new folder outside {source}",
            hint="a cohort is frozen; name a new one",
        )

    # everything below the folder, readable or not
    skipped = None
    if skip:
        skipped = skip.resolve()
    files: list[Path] = []
    unreadable: list[Path] = []
    for folder, folders, names in os.walk(
        source, onerror=lambda error: unreadable.append(Path(error.filename))
    ):
        # os.walk counts a link to a folder as a folder, and does not enter it
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        for name in (*names, *links):
            path = Path(folder, name)
            if skipped is None or path.resolve() != skipped:
                files.append(path)
        if len(files) > limits.max_files:
            raise ConfigurationError(
                f"{source}: more than {limits.max_files} files", hint="split the folder"
            )
    return sorted(files + unreadable)


def relative_name(path: Path, source: Path) -> str:
    """Return a path below the source, as it is compared."""
    return path.relative_to(source).as_posix()


def file_id_of(key: bytes, relative: str) -> str:
    """Return the opaque id under which a file stands in quarantine.csv."""
    return keyed_hash(key, "file", relative)


def write_listing(path: Path, stamps: Mapping[str, str]) -> None:
    """Write the opaque id of every file with its stamp, sorted."""
    lines = [f"{file_id},{stamp}" for file_id, stamp in sorted(stamps.items())]
    path.write_text("\n".join(["file,stamp", *lines]) + "\n", encoding="ascii")


def stamp_files(files: Iterable[Path], names: Iterable[str], key: bytes) -> dict[str, str]:
    """Return an opaque stamp of size and time for the opaque id of every file."""
    stamps: dict[str, str] = {}
    for path, name in zip(files, names, strict=True):
        found = "unreadable"
        try:
            status = path.lstat()
            found = f"{status.st_size} {status.st_mtime_ns}"
        except OSError:
            pass
        stamps[file_id_of(key, name)] = keyed_hash(key, "stamp", name, found)
    return stamps


def compare_listing(folder: Path, stamps: Mapping[str, str]) -> Changes | None:
    """Return what changed since the cohort in `folder` was built; None where it kept no list.

    Raises RefusedError for a damaged list.
    """
    path = folder / LISTING
    if not path.is_file():
        return None
    try:
        lines = read_capped(path, LISTING_CAP_BYTES).decode("ascii").splitlines()[1:]
        before = dict(line.split(",") for line in lines)
    except ValueError as error:
        raise RefusedError(
            f"{path}: not a list of files", hint="kohort-site ingest --refresh"
        ) from error
    common = before.keys() & stamps.keys()
    return Changes(
        new=len(stamps.keys() - common),
        gone=len(before.keys() - common),
        changed=sum(before[file_id] != stamps[file_id] for file_id in common),
    )
