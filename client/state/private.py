"""Closes a state folder to other users.

In: a state folder. Out: folders 0700, files without rights for others.
Guarantees: what belongs to another user is refused before anything is changed; symbolic links are
not followed.
Not covered: access lists and root.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from common.errors import EnvironmentFault, disk_faults_named

OTHERS = stat.S_IRWXG | stat.S_IRWXO


def close_to_others(root: Path) -> bool:
    """Take every right of other users away; return whether they could enter the folder.

    Raises EnvironmentFault (E-STATE-OWNER) for a file of another user.
    """
    with disk_faults_named("cannot close to other users", root):
        entered = root.stat().st_mode & OTHERS
        open_paths = list(_open_paths(root))
        for path, mode in open_paths:
            path.chmod(mode & ~OTHERS)
    return bool(entered)


def _open_paths(root: Path) -> Iterator[tuple[Path, int]]:
    """What others may use, with its mode; a file that goes away meanwhile is left out."""
    for folder, _, names in os.walk(root):
        for path in (Path(folder), *(Path(folder, name) for name in names)):
            try:
                facts = path.lstat()
            except FileNotFoundError:
                continue
            _check_owner(path, facts.st_uid)
            if facts.st_mode & OTHERS and not stat.S_ISLNK(facts.st_mode):
                yield path, stat.S_IMODE(facts.st_mode)


def _check_owner(path: Path, owner: int) -> None:
    """Refuse what belongs to another user."""
    if owner != os.geteuid():
        raise EnvironmentFault(
            f"{path}: belongs to user {owner}, this process is of user {os.geteuid()}",
            hint="run kohort-site as the user that owns the state folder, or give the folder to "
            "this user: chown -R USER FOLDER",
            code="E-STATE-OWNER",
        )
