"""How much disk the server may use, checked before it begins to write.

In: a folder, its limit of server.yaml, how much will come. Out: nothing, or EnvironmentFault with
the fix: E-QUOTA over the limit, E-DISK-FULL where the disk has no room.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from common.errors import EnvironmentFault, KohortError
from common.storage.files import atomic_write, read_capped

GIB = 1 << 30
RELEASES = "releases-folder"  # where the last release was built, in the state folder
PATH_CAP_BYTES = 4096


def folder_bytes(root: Path) -> int:
    """Return the bytes of all files below a folder; links are not followed."""
    total = 0
    for place, _, names in os.walk(root):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_size
            except FileNotFoundError:
                # it was moved into its place just now
                continue
    return total


def note_releases(root: Path, folder: Path) -> None:
    """Remember below the state folder where releases lie."""
    atomic_write(root / RELEASES, os.fsencode(folder.resolve()), mode=0o600)


def releases_folder(root: Path) -> Path | None:
    """Return the folder in which a release was built last; None where it is not known or there."""
    try:
        folder = Path(os.fsdecode(read_capped(root / RELEASES, PATH_CAP_BYTES)))
        return folder if folder.is_dir() else None
    except (KohortError, OSError, ValueError):
        return None


def check_quota(folder: Path, key: str, most_gib: int, coming: int) -> None:
    """Raise EnvironmentFault unless `coming` more bytes fit below the limit and onto the disk."""
    used = folder_bytes(folder)
    if used + coming > most_gib * GIB:
        raise EnvironmentFault(
            f"{folder}: {used / GIB:.1f} GiB are there and {coming / GIB:.1f} may come, "
            f"limits.{key} of server.yaml allows {most_gib}",
            hint=f"move what is complete to another disk, or raise limits.{key}",
            code="E-QUOTA",
        )
    place = folder
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if coming > free:
        raise EnvironmentFault(
            f"{folder}: {free / GIB:.1f} GiB of the disk are free, "
            f"{coming / GIB:.1f} may be needed",
            hint="free some space there and start again; nothing was lost",
            code="E-DISK-FULL",
        )
