"""The state folder is its owner's alone: closed where it was open, refused where it is another's.

In: a folder. Out: nothing, or EnvironmentFault with the fix.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from common.errors import EnvironmentFault, disk_faults_named

CODE = "E-FOLDER-OWNER"


def keep_folder_private(root: Path) -> None:
    """Let only its owner enter a folder; raises EnvironmentFault (E-FOLDER-OWNER) for another's."""
    with disk_faults_named("read", root):
        found = root.stat()
    if found.st_uid != os.geteuid():
        raise EnvironmentFault(
            f"{root}: belongs to user {found.st_uid}, this is user {os.geteuid()}",
            hint="run it as the folder's owner, or change the owner of all of it",
            code=CODE,
        )
    if stat.S_IMODE(found.st_mode) & 0o077:
        with disk_faults_named("close", root):
            root.chmod(0o700)
