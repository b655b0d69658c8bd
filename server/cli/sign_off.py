"""`sign-off`, and the two halves of `release` for releases that others sign off."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated

import typer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.errors import ConfigurationError, RefusedError
from common.storage.files import atomic_write, file_digest, read_capped
from common.wire import signing
from kohort import layout
from kohort.manifest import Manifest, read_manifest
from kohort.sign_off import MISSING, WRONG, check_signers, read_sign_offs, signers_of
from kohort.trust import read_trust
from kohort.verification import verify
from server.cli.output import check_folder
from server.cli.state_folder import load_operator_public
from server.cli.terminal import progress_bar, write
from server.operator.config import ReleaseSigning, load_config
from server.operator.state import ServerState

BY_OPENSSH = (
    "a key with a passphrase or in an agent signs with `ssh-keygen -Y sign -n kohort-release-v1 -f "
    "KEY < SHA256SUMS > SHA256SUMS.NAME.sig`, after `kohort verify --require 0`"
)
Key = Annotated[Path, typer.Option(help="the signer's own key: an Ed25519 key of OpenSSH")]
Proposal = Annotated[
    Path | None, typer.Option("--release", help="the release that was proposed: its folder")
]
NewKey = Annotated[bool, typer.Option("--new-key", help="make the key; sign nothing")]
Digest = Annotated[
    str | None, typer.Option(help="the digest that the operator's `release --propose` printed")
]
Trust = Annotated[
    list[str] | None,
    typer.Option(help="the operator's fingerprint SHA256:... or key line, from another channel"),
]


def sign_off(
    name: Annotated[str, typer.Argument(help="the signer's name, as in server.yaml")],
    key: Key,
    release: Proposal = None,
    digest: Digest = None,
    trust: Trust = None,
    new_key: NewKey = False,
) -> None:
    """Sign a proposed release off, as one of its signers. Needs no state folder.

    Everything is verified first. The signature is a file beside SHA256SUMS; the operator needs
    that file alone.
    """
    if new_key:
        make_key(name, key)
        return
    if release is None:
        raise ConfigurationError(
            "--release: expected the folder of a proposed release",
            hint="or --new-key, which makes a signer's key",
        )
    private = load_signer_key(key)
    manifest = verify_all(release, read_trust(trust or ()))
    check_digest(release, digest)
    own = signing.fingerprint(private.public_key())
    known = {one: signing.fingerprint(line) for one, line in signers_of(manifest).items()}
    if known.get(name) != own:
        listed = ", ".join(f"{one} {line}" for one, line in known.items()) or "nobody"
        raise RefusedError(
            f"{release}: this key is {own}, not that of a signer {name}; it names {listed}",
            hint="give your own name and key; the operator lists both in server.yaml",
            code=WRONG,
        )
    sums = read_capped(release / layout.SUMS, layout.TEXT_CAP_BYTES)
    target = release / layout.sign_off_file(name)
    atomic_write(target, signing.sign(private, signing.RELEASE, sums))
    signed = read_sign_offs(release, manifest, sums)
    write(f"{name} signs off {describe(manifest)}\n")
    write(f"  it claims {claims(manifest)}\n")
    write(f"written {target}; {len(signed)} of {manifest.sign_offs} sign-offs are here\n")


def load_signer_key(path: Path) -> Ed25519PrivateKey:
    """Return the signer's key; one that OpenSSH keeps closed is used by OpenSSH alone."""
    try:
        return signing.load_private(path)
    except ConfigurationError as error:
        raise ConfigurationError(str(error), hint=error.hint or BY_OPENSSH) from error


def make_key(name: str, path: Path) -> None:
    """Write a signer's new key, and say what the operator needs."""
    key = signing.new_key()
    signing.save_private(path, key)
    line = signing.public_text(key.public_key(), name)
    atomic_write(path.with_name(path.name + ".pub"), f"{line}\n".encode())
    write(f"written {path}, which stays with {name}, and {path}.pub\n")
    write(f"for server.yaml, below release.signers:\n    {name}: {line}\n")
    write(f"read to the operator over another channel: {signing.fingerprint(key.public_key())}\n")


def verify_all(release: Path, trusted: frozenset[str] = frozenset()) -> Manifest:
    """Return the manifest of a proposal whose files all verify, under a progress bar."""
    with progress_bar("verifying") as bar:
        task = bar.add_task("files", total=None)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        return verify(release, trust=trusted, require=0, progress=show)


def check_digest(release: Path, digest: str | None) -> None:
    """Refuse a release that is not the one that the operator spoke of."""
    found = file_digest(release / layout.SUMS)
    if digest is not None and digest != found:
        raise RefusedError(
            f"{release}: SHA-256 of {layout.SUMS} is {found}, expected {digest}",
            hint="fetch the proposal again; compare what `release --propose` printed",
            code=MISSING,
        )


def describe(manifest: Manifest) -> str:
    """What is signed, on one line."""
    count = f"{manifest.images} images of {len(manifest.sites)} sites"
    return f"{manifest.name} {manifest.version}: {count}, plan {manifest.study[:16]}"


def claims(manifest: Manifest) -> str:
    """What a signer vouches for, on one line."""
    groups = "no k" if manifest.k is None else f"k = {manifest.k} ({manifest.grouping})"
    return f"{groups}; epsilon {manifest.epsilon:g}, delta {manifest.delta:g} for updates"


def signers_in(place: ServerState) -> ReleaseSigning:
    """Return the signers of server.yaml, their keys checked; nobody where there is no such file."""
    listed = ReleaseSigning()
    if place.config.is_file():
        listed = load_config(place.config).release
    check_signers(listed.signers, signing.public_text(load_operator_public(place)))
    return listed


def check_propose(signers: ReleaseSigning, propose: bool) -> None:
    """Refuse to publish what others must sign off first, and to propose what nobody may."""
    if signers.sign_offs and not propose:
        raise ConfigurationError(
            f"server.yaml: {signers.sign_offs} sign-offs come before a release is published",
            hint="`kohort-server release --propose ...` builds it for the signers",
            code=MISSING,
        )
    if propose and not signers.signers:
        raise ConfigurationError(
            "--propose: server.yaml names no signers",
            hint="add release.signers and release.sign_offs, or leave --propose out",
            code=MISSING,
        )


def announce(folder: Path, signers: ReleaseSigning) -> None:
    """Say what the operator sends to the signers of a proposal."""
    names = ", ".join(sorted(signers.signers))
    write(f"proposed {folder}; it needs {signers.sign_offs} sign-offs of {names}\n")
    write(f"digest {file_digest(folder / layout.SUMS)}\n")
    write("each signer: kohort-server sign-off NAME --release FOLDER --key FILE --digest DIGEST\n")
    write(f"their files SHA256SUMS.NAME.sig belong into {folder}; then: kohort-server release ")
    write(f"--publish {folder}\n")


def publish_proposed(place: ServerState, proposal: Path, out: Path) -> None:
    """Publish a proposal that enough signers have signed off."""
    from server.release.sign_off import publish_proposal

    operator = signing.fingerprint(load_operator_public(place))
    check_folder("--out", out)
    folder = publish_proposal(proposal, out, signers_in(place), operator)
    note_release(place, "release-published", folder)
    write(f"released {folder}\n")


def note_release(place: ServerState, event: str, folder: Path) -> None:
    """Note in the log what was proposed or published, and who signed it off."""
    manifest = read_manifest(folder)
    sums = read_capped(folder / layout.SUMS, layout.TEXT_CAP_BYTES)
    plan = manifest.study
    digest = hashlib.sha256(sums).hexdigest()
    with place.open_log() as log:
        for one in read_sign_offs(folder, manifest, sums):
            log.note("release-signed-off", once=True, plan=plan, release=digest, by=one.name)
        log.note(event, once=True, plan=plan, release=digest)
