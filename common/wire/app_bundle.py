"""The app bundle that Flower distributes: two files and no code.

In: the exact bytes of an approved `study.yaml`.
Out: the app folder that the operator submits to Flower, and the SHA-256 that Flower reports for it.
Guarantees:
  - the hash is a pure function of those bytes. A site computes it from the plan that its own staff
    approved, and takes nothing from the server;
  - a folder with any other file is refused.
Not covered: whether the plan is signed or approved (common/study, client/fleet/app.py).

Flower packs an app as a zip of stored entries with a fixed date: `pyproject.toml` as its TOML
writer prints it, the other files by name, and a manifest. `archive` writes those bytes with the
standard library; a test compares it with Flower's own.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path

from common.errors import RefusedError, disk_faults_named
from common.storage.files import atomic_write

SERVER_APP = "server.app:app"
CLIENT_APP = "client.fleet.app:app"
FILES = ("pyproject.toml", "study.yaml")
STUDY_CAP_BYTES = 1 << 20
ENTRY_DATE = (2024, 10, 1, 0, 0, 0)

PYPROJECT = """\
[project]
name = "kohort"
version = "0.1.0"
description = "A signed study plan. It carries no code: both sides run what they have installed."
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "kohort"
fab-include = [
    "study.yaml",
]

[tool.flwr.app.components]
serverapp = "{server_app}"
clientapp = "{client_app}"
"""


def app_files(
    study_yaml: bytes, *, server_app: str = SERVER_APP, client_app: str = CLIENT_APP
) -> dict[str, bytes]:
    """Return the two files of the app, by name; raises RefusedError above 1 MiB of plan."""
    if len(study_yaml) > STUDY_CAP_BYTES:
        raise RefusedError(
            f"study.yaml: {len(study_yaml)} bytes, expected at most {STUDY_CAP_BYTES}"
        )
    pyproject = PYPROJECT.format(server_app=server_app, client_app=client_app)
    return {"pyproject.toml": pyproject.encode(), "study.yaml": study_yaml}


def archive(files: dict[str, bytes]) -> bytes:
    """Return the bytes that Flower packs from these files (its app bundle, "FAB")."""
    lines = []
    for name, data in files.items():
        lines.append(f"{name},{hashlib.sha256(data).hexdigest()},{len(data) * 8}")
    manifest = "\n".join(lines)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as packed:
        for name, data in {**files, ".info/CONTENT": manifest.encode()}.items():
            entry = zipfile.ZipInfo(name, ENTRY_DATE)
            entry.create_system = 3
            packed.writestr(entry, data)
    return out.getvalue()


def fab_hash(
    study_yaml: bytes, *, server_app: str = SERVER_APP, client_app: str = CLIENT_APP
) -> str:
    """Return the SHA-256 in hex that Flower reports for the app of this plan; a site pins it."""
    files = app_files(study_yaml, server_app=server_app, client_app=client_app)
    return hashlib.sha256(archive(files)).hexdigest()


def write_app(
    folder: Path, study_yaml: bytes, *, server_app: str = SERVER_APP, client_app: str = CLIENT_APP
) -> str:
    """Write the app of this plan into `folder` and return its hash.

    Raises RefusedError for a folder with any other file in it.
    """
    files = app_files(study_yaml, server_app=server_app, client_app=client_app)
    with disk_faults_named("write the app bundle", folder):
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob(".part-*"):
            stale.unlink()
        for name, data in files.items():
            atomic_write(folder / name, data)
    return check_app(folder, server_app=server_app, client_app=client_app)


def check_app(folder: Path, *, server_app: str = SERVER_APP, client_app: str = CLIENT_APP) -> str:
    """Return the hash of the app in `folder`.

    Raises RefusedError unless it holds exactly the two files, without code, as kohort writes them.
    """
    _check_names(folder)
    study_yaml = _read(folder / "study.yaml")
    files = app_files(study_yaml, server_app=server_app, client_app=client_app)
    if _read(folder / "pyproject.toml") != files["pyproject.toml"]:
        raise RefusedError(
            f"app bundle {folder}: pyproject.toml is not the one kohort writes",
            code="E-BUNDLE-PROJECT",
        )
    return hashlib.sha256(archive(files)).hexdigest()


def _check_names(folder: Path) -> None:
    """The folder holds the two files and nothing else."""
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    extra = sorted(found - set(FILES))
    missing = sorted(set(FILES) - found)
    if extra:
        what = f"has {', '.join(extra[:5])} besides"
        code = "E-BUNDLE-CODE"
    elif missing:
        what = f"lacks {', '.join(missing)} of"
        code = "E-BUNDLE-INCOMPLETE"
    else:
        return
    raise RefusedError(
        f"app bundle {folder}: {what} {' and '.join(FILES)}; a bundle carries a plan and no code",
        hint="write it with `kohort-server plan` into an empty folder",
        code=code,
    )


def _read(path: Path) -> bytes:
    """The bytes of a plain file of the bundle, capped."""
    if path.is_symlink() or not path.is_file():
        raise RefusedError(f"app bundle: {path} is not a plain file", code="E-BUNDLE-CODE")
    with disk_faults_named("read", path), path.open("rb") as file:
        return file.read(STUDY_CAP_BYTES + 1)
