"""Signs a finished folder, verifies it as a researcher would, and makes it visible (step 6)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.errors import RefusedError
from common.storage.files import file_digest, sync_folder
from common.study.plan import Study
from common.wire import signing
from kohort import layout
from kohort.manifest import FileEntry, Manifest
from kohort.verification import verify
from server.operator.config import ReleaseSigning
from server.release.documents import write_json
from server.release.loaders import check_loaders

PROPOSED = "proposed"  # where releases wait for their signers, below the folder of releases


def seal_folder(
    part: Path,
    study: Study,
    images: int,
    sites: tuple[str, ...],
    signers: ReleaseSigning,
    key: Ed25519PrivateKey,
) -> None:
    """Write manifest, sums, signature and the signers' lines; then run `kohort verify`."""
    # what loaders read holds the very pictures
    check_loaders(part, study.strata())

    # write the manifest, which lists every file
    names = _list_files(part)
    key_line = signing.public_text(key.public_key())
    manifest = _manifest(part, names, study, images, sites, key_line)
    manifest = manifest.model_copy(
        update={"sign_offs": signers.sign_offs, "signers": signers.named}
    )
    write_json(part / layout.MANIFEST, manifest.facts())

    # sign the digests of all files, the manifest included
    digests = {name: file_digest(part / name) for name in (*names, layout.MANIFEST)}
    sums = layout.sums_text(digests).encode()
    (part / layout.SUMS).write_bytes(sums)
    (part / layout.SIGNATURE).write_bytes(signing.sign(key, signing.RELEASE, sums))
    (part / layout.SIGNERS).write_text(manifest.allowed_signers, encoding="utf-8")

    # verify as a researcher would; nobody can have signed it off yet
    verify(part, require=0)


def _list_files(part: Path) -> list[str]:
    """The paths of all files below the folder, sorted."""
    names = []
    for path in part.rglob("*"):
        if path.is_file():
            names.append(path.relative_to(part).as_posix())
    return sorted(names)


def _manifest(
    part: Path,
    names: Sequence[str],
    study: Study,
    images: int,
    sites: tuple[str, ...],
    key_line: str,
) -> Manifest:
    """The facts of the release and the size of each file."""
    # every file with its size
    entries = [FileEntry(path=name, size_bytes=(part / name).stat().st_size) for name in names]

    # the facts
    synthesis = study.synthesis
    return Manifest(
        format=layout.FORMAT,
        name=study.name,
        version=study.release.version,
        title=study.title,
        date=study.release.date,
        study=study.hash(),
        operator_key=key_line,
        k=synthesis.k if synthesis else None,
        grouping=synthesis.grouping if synthesis else "none",
        epsilon=study.privacy.epsilon,
        delta=study.privacy.delta,
        images=images,
        labels=study.strata(),
        sites=sites,
        files=tuple(entries),
    )


def _open_to_all(part: Path) -> None:
    """Let everybody read a release, whatever the program's own umask is: it is public."""
    for path in (part, *part.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def check_unpublished(target: Path) -> None:
    """Refuse to propose a version that everybody can see already."""
    if target.exists():
        raise RefusedError(
            f"{target}: this version is published already",
            hint="later sign-offs of it belong beside its SHA256SUMS; for another release raise "
            "release.version in a new plan",
        )


def publish(part: Path, target: Path) -> None:
    """Rename `part` to `target`; what exists there must be the very same bytes."""
    if target.exists():
        if (target / layout.SUMS).read_bytes() == (part / layout.SUMS).read_bytes():
            return
        raise RefusedError(
            f"{target}: this version is there with other bytes",
            hint="raise release.version in a new plan; where it is a proposal that nobody needs, "
            "remove its folder",
        )
    _open_to_all(part)
    # a power cut leaves no release, or a whole one
    for path in (*part.rglob("*"), part):
        sync_folder(path)
    part.rename(target)
    sync_folder(target.parent)
