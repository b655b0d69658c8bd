"""Lists the files of a hospital's folder, and tells later which came, went or changed.

In: the data folder, the site's key.
Out: paths; opaque ids of files and of their size and time; one of the labels file's contents.
Guarantees: a link is listed and never followed; nothing that a file is called is stored here.
Not covered: what the files hold (sources.py); the files of an archive (archive.py); a file that
changed and kept its size and time.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from client.ingest.persons import keyed_hash
from client.ingest.request import Limits
from common.errors import ConfigurationError, KohortError, RefusedError
from common.storage.files import read_capped

LISTING = "files.csv"
LISTING_CAP_BYTES = 1 << 28


@dataclass(frozen=True)
class Changes:
    """How many files came, went or changed; for the site's own screen.

    `labels`, `settings`: whether the labels file, or what the site says of files and persons, is
    another.
    """

    new: int
    gone: int
    changed: int
    labels: bool = False
    settings: bool = False

    def __bool__(self) -> bool:
        return bool(self.new or self.gone or self.changed or self.labels or self.settings)

    def words(self) -> str:
        """Return what a person reads."""
        words = f"{self.new} new, {self.gone} gone, {self.changed} changed"
        if self.labels:
            words += "; the labels file changed"
        if self.settings:
            words += "; settings of site.yaml, or persons.csv, changed"
        return words


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


def mark_file(path: Path) -> str:
    """Return what tells whether a file changed: its size and time."""
    try:
        status = path.lstat()
    except OSError:
        return "unreadable"
    return f"{status.st_size} {status.st_mtime_ns}"


def stamp_files(marks: Mapping[str, str], key: bytes) -> dict[str, str]:
    """Return an opaque stamp of the mark for the opaque id of every file; `marks`: by name."""
    stamps: dict[str, str] = {}
    for name, mark in marks.items():
        stamps[file_id_of(key, name)] = keyed_hash(key, "stamp", name, mark)
    return stamps


def stamp_inputs(
    labels_csv: Path | None, settings: object, max_bytes: int, key: bytes
) -> dict[str, str]:
    """Return an opaque stamp of the labels file's contents, and one of the site's settings.

    `settings`: what of site.yaml decides about files; its text counts.
    """
    labels, own = input_ids(key)
    return {
        labels: keyed_hash(key, "stamp", "labels", digest_file(labels_csv, max_bytes)),
        own: keyed_hash(key, "stamp", "settings", repr(settings)),
    }


def digest_file(path: Path | None, max_bytes: int) -> str:
    """Return the SHA-256 of a file's contents, in hex; a word where there is none or no reading."""
    if path is None:
        return "none"
    try:
        return hashlib.sha256(read_capped(path, max_bytes)).hexdigest()
    except KohortError:
        return "unreadable"


def input_ids(key: bytes) -> tuple[str, str]:
    """Return the opaque ids of the labels file and of the settings, which are no file's."""
    return keyed_hash(key, "input", "labels"), keyed_hash(key, "input", "settings")


def read_listing(folder: Path) -> dict[str, str] | None:
    """Return the stamp of every opaque id in a cohort's list; None where it kept none.

    Raises RefusedError for a damaged list.
    """
    path = folder / LISTING
    if not path.is_file():
        return None
    try:
        lines = read_capped(path, LISTING_CAP_BYTES).decode("ascii").splitlines()[1:]
        return dict(line.split(",") for line in lines)
    except ValueError as error:
        raise RefusedError(
            f"{path}: not a list of files", hint="kohort-site ingest --refresh"
        ) from error


def compare_listing(
    folder: Path, stamps: Mapping[str, str], inputs: Mapping[str, str]
) -> Changes | None:
    """Return what changed since the cohort in `folder` was built; None where it kept no list.

    `stamps`: of the files; `inputs`: what `stamp_inputs` returned. A list of an earlier version
    knows nothing of these. Raises RefusedError for a damaged list.
    """
    before = read_listing(folder)
    if before is None:
        return None
    known = [before.pop(file_id, stamp) == stamp for file_id, stamp in inputs.items()]
    labels, settings = known or (True, True)
    common = before.keys() & stamps.keys()
    return Changes(
        new=len(stamps.keys() - common),
        gone=len(before.keys() - common),
        changed=sum(before[file_id] != stamps[file_id] for file_id in common),
        labels=not labels,
        settings=not settings,
    )
