"""Checks an output path before the work, not after it."""

from __future__ import annotations

import os
from pathlib import Path

from common.errors import ConfigurationError, EnvironmentFault


def check_folder(option: str, folder: Path) -> None:
    """Raise a KohortError where `folder` is no folder and cannot become one."""
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise ConfigurationError(
            f"{option} {folder}: expected a folder, {place} is a file",
            hint=f"give {option} another path",
        )
    if not os.access(place, os.W_OK | os.X_OK):
        raise EnvironmentFault(
            f"{option} {folder}: {place} is not writable by this user",
            hint=f"give {option} another path, or change the folder's owner",
        )
