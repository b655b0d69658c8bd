"""The catalogue's folder, which any web server serves.

In: verified releases, a signed catalogue. Out: the folder OUT, whose link `web` is what is served.
Guarantees: a release enters whole and after `kohort verify`, and never changes but for later
sign-offs; catalogue, signature and pages change together, by renaming one link; killed anywhere,
the old or the new catalogue is served, and the same command goes on.
Not covered: the web server (deploy/catalogue/nginx.conf).

    OUT/releases/NAME-VERSION/   the releases, each as it was signed
    OUT/.web-VERSION-DIGEST/     catalogue.json, its signature, pages; `releases` leads to the above
    OUT/web                      a link to the newest of them
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from common.errors import RefusedError, disk_faults_named
from common.storage.files import atomic_write, read_capped, sync_folder
from kohort import layout
from kohort.catalogue import (
    CAP_BYTES,
    CATALOGUE,
    RELEASES,
    SIGNATURE,
    Catalogue,
    folder_of,
    open_catalogue,
)
from kohort.manifest import read_manifest
from kohort.sign_off import read_sign_offs
from kohort.verification import verify
from server.operator.published import Signed

WEB = "web"
GENERATION = ".web-"
PART = ".part"


def published_folders(releases: Path) -> list[Path]:
    """Return the folders of the releases that are published below a folder, by name."""
    found = releases.glob(f"[!.]*/{layout.MANIFEST}")
    return sorted(path.parent for path in found)


def read_site(out: Path) -> Signed | None:
    """Return the catalogue that a site shows; None where it shows none."""
    place = out / WEB
    if not (place / CATALOGUE).is_file():
        return None
    text = read_capped(place / CATALOGUE, CAP_BYTES)
    signature = read_capped(place / SIGNATURE, layout.SIGNED_CAP_BYTES)
    return Signed(open_catalogue(text, signature), text, signature)


def add_release(folder: Path, out: Path, trust: frozenset[str]) -> bool:
    """Put a published release into the site; return whether it was not there before.

    `trust`: the fingerprints of the operator's keys.

    Raises RefusedError for one that does not verify, and for a version that is there with other
    bytes.
    """
    manifest = read_manifest(folder)
    target = out / folder_of(manifest.name, manifest.version)
    if target.is_dir():
        _add_sign_offs(folder, target)
        return False
    part = target.with_name(f".{target.name}{PART}")
    with disk_faults_named("cannot write", part):
        shutil.rmtree(part, ignore_errors=True)
        _make_public(out)
        _make_public(target.parent)
        shutil.copytree(folder, part, copy_function=_link_or_copy)
        for path in (part, *part.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
    # what is served is what was verified
    try:
        verify(part, trust=trust)
    except RefusedError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise RefusedError(f"{folder}: {error}", hint=error.hint, code=error.code) from error
    sync_folder(part)
    part.rename(target)
    sync_folder(target.parent)
    return True


def write_site(out: Path, signed: Signed, pages: Mapping[str, bytes]) -> bool:
    """Show a catalogue and its pages; return whether anything changed."""
    files = {CATALOGUE: signed.text, SIGNATURE: signed.signature, **pages}
    name = f"{GENERATION}{signed.catalogue.version}-{_digest(files)[:12]}"
    link = out / WEB
    if link.is_symlink() and os.readlink(link) == name and (out / name).is_dir():
        _remove_old(out, name, signed.catalogue)
        return False
    part = out / (name + PART)
    with disk_faults_named("cannot write", part):
        shutil.rmtree(part, ignore_errors=True)
        _make_public(out)
        _make_public(part)
        for path, data in files.items():
            atomic_write(part / path, data)
        (part / RELEASES).symlink_to(f"../{RELEASES}")
        shutil.rmtree(out / name, ignore_errors=True)
        part.rename(out / name)
        # one rename is the moment in which the site changes
        new = out / f".{WEB}{PART}"
        new.unlink(missing_ok=True)
        new.symlink_to(name)
        sync_folder(out)
        new.replace(link)
        sync_folder(out)
    _remove_old(out, name, signed.catalogue)
    return True


def _make_public(folder: Path) -> None:
    """Make a folder that everybody may read, whatever this program's umask is."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)


def _add_sign_offs(folder: Path, target: Path) -> None:
    """Add the sign-offs that came later; refuse another release of the same version."""
    if _sums(folder) != _sums(target):
        raise RefusedError(
            f"{folder}: the catalogue has this version with other bytes",
            hint="a published version never changes: raise release.version in a new plan",
        )
    # one that does not hold would spoil what is served
    for one in read_sign_offs(folder, read_manifest(folder), _sums(folder)):
        name = layout.sign_off_file(one.name)
        if not (target / name).exists():
            atomic_write(target / name, read_capped(folder / name, layout.SIGNED_CAP_BYTES))


def _sums(folder: Path) -> bytes:
    """SHA256SUMS of a release."""
    return read_capped(folder / layout.SUMS, layout.TEXT_CAP_BYTES)


def _link_or_copy(source: str, target: str) -> str:
    """Take no second room on one disk; on another one copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target


def _digest(files: Mapping[str, bytes]) -> str:
    """One digest of all files."""
    found = hashlib.sha256()
    for name in sorted(files):
        found.update(f"{name}\n{len(files[name])}\n".encode() + files[name])
    return found.hexdigest()


def _remove_old(out: Path, name: str, catalogue: Catalogue) -> None:
    """Remove earlier catalogues and pages, what a kill left, and releases that were withdrawn."""
    for path in out.glob(f"{GENERATION}*"):
        if path.name != name:
            shutil.rmtree(path, ignore_errors=True)
    for path in (out / RELEASES).glob(f".*{PART}"):
        shutil.rmtree(path, ignore_errors=True)
    for one in catalogue.withdrawn:
        shutil.rmtree(out / folder_of(one.name, one.version), ignore_errors=True)


def offered_folders(out: Path, gone: Sequence[tuple[str, str]]) -> list[Path]:
    """Return the releases of a site that were not withdrawn, by name."""
    withdrawn = {f"{name}-{version}" for name, version in gone}
    return [one for one in published_folders(out / RELEASES) if one.name not in withdrawn]
