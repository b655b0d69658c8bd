"""The wheels of a bundle: the project's own, built from tracked files, and the locked ones.

Guarantees: a downloaded wheel has a hash of the role's lock; the bundle's own lock then names the
hash of every file in the folder, the project's own wheels included.
Not covered: what an author of a locked package put into it.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from packaging.utils import canonicalize_name, parse_wheel_filename

from common.errors import ConfigurationError, EnvironmentFault
from common.storage.files import atomic_write, read_capped

ROOT = Path(__file__).parents[2]
OWN = ("client", "common", "server", "kohort", "pyproject.toml", "README.md", "LICENSE")
LOCK_CAP_BYTES = 4 << 20
GPU_ONLY = re.compile(r"nvidia-|cuda-|triton$")  # what torch for GPUs brings
EPOCH = "1577836800"  # 2020-01-01: equal sources give equal wheels


def tracked_files(*names: str) -> list[Path]:
    """Return the tracked files below paths of the repository, relative to its root."""
    listed = _run(["git", "-C", str(ROOT), "ls-files", "-z", "--", *names])
    return [Path(name) for name in listed.split("\0") if name]


def copy_tracked(target: Path, *names: str) -> None:
    """Copy tracked files below `target`, as they are in the working tree.

    In place of a link to a folder its files are copied: checksums know no links.
    """
    for path in tracked_files(*names):
        place = target / path
        if (ROOT / path).is_dir():
            beyond = (ROOT / path).resolve()
            for inner in tracked_files(str(beyond.relative_to(ROOT))):
                inside = place / (ROOT / inner).relative_to(beyond)
                inside.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / inner, inside)
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, place)


def build_own(source: Path, wheels: Path) -> None:
    """Build the project's two wheels from a copy of their tracked files; nothing is fetched."""
    copy_tracked(source, *OWN)
    for folder in (source / "kohort", source):
        _pip(
            ["wheel", "--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels)]
            + [str(folder)]
        )


def download(lock: Path, wheels: Path) -> None:
    """Download what a lock names for this machine, each file by one of its hashes.

    The few that come as sources alone become wheels here, by this environment's setuptools.
    """
    options = ["--require-hashes", "--no-deps", "--no-build-isolation", "--prefer-binary"]
    _pip(["wheel", *options, "--wheel-dir", str(wheels), "--requirement", str(lock)])


def without(text: str, instead: Sequence[Path]) -> str:
    """Return a lock without the packages that own wheels replace.

    With a torch for processors alone, what only its GPU variant needs is left out too.
    """
    replaced = {name_of(wheel) for wheel in instead}
    processor_only = any(name_of(one) == "torch" and "+cpu" in one.name for one in instead)
    kept = []
    for entry in re.split(r"\n(?=[A-Za-z])", text):
        name = canonicalize_name(entry.partition("==")[0])
        if name in replaced or (processor_only and GPU_ONLY.match(name)):
            continue
        kept.append(entry.rstrip("\n"))
    return "\n".join(kept) + "\n"


def name_of(wheel: Path) -> str:
    """Return the distribution's name of a wheel file."""
    try:
        return parse_wheel_filename(wheel.name)[0]
    except ValueError as error:
        raise ConfigurationError(
            f"{wheel.name}: not the name of a wheel", hint="expected NAME-VERSION-...-PLATFORM.whl"
        ) from error


def write_lock(wheels: Path, target: Path) -> None:
    """Write the bundle's lock: each wheel of the folder by name, version and hash."""
    lines = []
    for wheel in sorted(wheels.iterdir()):
        name, version, _, _ = parse_wheel_filename(wheel.name)
        lines.append(f"{name}=={version} --hash=sha256:{digest(wheel)}")
    atomic_write(target, ("\n".join(lines) + "\n").encode())


def read_lock(path: Path) -> str:
    """Return the text of a lock."""
    return read_capped(path, LOCK_CAP_BYTES).decode()


def digest(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _pip(arguments: list[str]) -> None:
    """Run this environment's pip."""
    _run([sys.executable, "-m", "pip", "--quiet", *arguments])


def _run(command: list[str]) -> str:
    """Return what a program prints; raises EnvironmentFault with its last lines."""
    environment = {**os.environ, "SOURCE_DATE_EPOCH": EPOCH}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EnvironmentFault(
            f"`{' '.join(command[:5])} ...` ended with {done.returncode}:\n{done.stderr[-2000:]}",
            hint="run it where the packages can be had, in the environment of `make setup`",
        )
    return done.stdout
