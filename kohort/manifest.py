"""A release on disk: which files it may hold, what its manifest says, and the numbered steps that verify it offline.

In: a release folder. Out: a `Manifest`, or RefusedError that names the file. Guaranteed by `verify`, in this order:
  1. every name is one that a release may hold: no links, no code, no surprises; sizes below the caps;
  2. the signature over SHA256SUMS is by the key in allowed_signers (or by the key that the reader trusts);
  3. every file listed in SHA256SUMS is there with exactly that digest, and no other file is;
  4. manifest.json and allowed_signers agree with each other and with the files;
  5. metadata.csv lists exactly the images, each with its label folder, and exactly the masks where images have them;
  6. every site's statement is signed by that site's key, is about this study's plan, and states no smaller k (images), or
     the release's own epsilon and delta (a release without k: pairs drawn from a generator trained on updates).
Not covered: whether the operator's key deserves trust: compare the fingerprint with one from another channel (`--trust`).
"""

from __future__ import annotations

import base64
import binascii
import csv
import hashlib
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

from pydantic import Field, ValidationError

from common.config import FrozenModel
from common.errors import ConfigurationError, KohortError, RefusedError
from common.storage.files import read_capped
from common.wire import signing
from common.wire.messages import Header

SUMS, SIGNATURE, SIGNERS, MANIFEST = (
    "SHA256SUMS",
    "SHA256SUMS.sig",
    "allowed_signers",
    "manifest.json",
)
UNLISTED = (SUMS, SIGNATURE, SIGNERS)
TOP_LEVEL = {
    *UNLISTED, MANIFEST, "README.md", "LICENSE", "index.html", "contact_sheet.png", "metadata.csv", "croissant.json",
    "privacy_statement.json", "privacy_statement.md", "evaluation.json", "study.yaml", "study.sig",
}  # fmt: skip
INNER = re.compile(
    r"data/[a-z0-9][a-z0-9-]{0,31}/[0-9]{5}\.png|masks/[0-9]{5}\.(?:png|nii\.gz)"
    r"|models/[a-z]{1,16}\.safetensors|statements/[a-z][a-z0-9-]{0,31}\.json"
)
FILES_CAP, FILE_CAP_BYTES, TEXT_CAP_BYTES = 200_000, 1 << 30, 1 << 26


class FileEntry(FrozenModel):
    """One file of a release."""

    path: str
    size_bytes: int = Field(ge=0, le=FILE_CAP_BYTES)


class Manifest(FrozenModel):
    """What a release says of itself; everything in it is public. `k` is None where k-anonymity is not claimed."""

    format: str = Field(pattern=r"^kohort-release/1$")
    name: str
    version: str
    title: str
    date: str
    study: str = Field(pattern=r"^[0-9a-f]{64}$")
    operator_key: str
    k: int | None = Field(default=None, ge=2)
    grouping: str
    epsilon: float = Field(gt=0)
    delta: float = Field(gt=0)
    images: int = Field(ge=0)
    labels: tuple[str, ...]
    sites: tuple[str, ...]
    files: tuple[FileEntry, ...] = Field(max_length=FILES_CAP)

    @property
    def principal(self) -> str:
        """The signer's name in allowed_signers."""
        return f"operator@{self.name}"


class Statement(FrozenModel):
    """A site's signed description of what it sent, as it came over the wire."""

    site: str
    key: str
    header: str
    signature: str


def signers_line(principal: str, key: str) -> str:
    """Return the content of allowed_signers, as `ssh-keygen -Y verify` reads it."""
    return f'{principal} namespaces="{signing.RELEASE}" {" ".join(key.split()[:2])}\n'


def sums_text(digests: dict[str, str]) -> str:
    """Return SHA256SUMS in the form of `sha256sum`, sorted by name."""
    return "".join(f"{digests[name]}  {name}\n" for name in sorted(digests))


def parse_sums(data: bytes) -> dict[str, str]:
    """Return {name: digest}; refuses every spelling but the one that `sums_text` writes."""
    found = {}
    for line in data.decode("utf-8", "replace").splitlines():
        digest, _, name = line.partition("  ")
        if not re.fullmatch(r"[0-9a-f]{64}", digest) or not allowed_name(name) or name in UNLISTED:
            raise RefusedError(
                f"{SUMS}: a line is not `sha256  name` with a name that a release may hold"
            )
        found[name] = digest
    if sums_text(found).encode() != data:
        raise RefusedError(f"{SUMS}: not in its one canonical order and spelling")
    return found


def allowed_name(name: str) -> bool:
    """Return whether a release may hold a file of this name."""
    return name in TOP_LEVEL or INNER.fullmatch(name) is not None


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file in hex, read in blocks."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def verify(
    folder: Path,
    *,
    trust: str | None = None,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Manifest:
    """Return the manifest of a release that passes all six steps; raises RefusedError naming the file.

    `trust` is an OpenSSH public key line or a `SHA256:` fingerprint that the operator's key must have.
    """
    if not folder.is_dir():
        raise ConfigurationError(
            f"{folder}: no such folder", hint="give the folder of a downloaded release"
        )
    present = _listed(folder)  # step 1
    digests = _signed_sums(folder, trust)  # step 2
    _files_match(folder, digests, present, progress)  # step 3
    manifest = read_manifest(folder)
    _manifest_agrees(folder, manifest, digests)  # step 4
    _metadata_agrees(folder, manifest, digests)  # step 5
    for site in manifest.sites:  # step 6
        _statement_holds(folder / "statements" / f"{site}.json", site, manifest)
    return manifest


def _listed(folder: Path) -> set[str]:
    """Step 1: the names of all files below the folder."""
    names: set[str] = set()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            raise RefusedError(f"{name}: a release holds plain files only, no links or devices")
        if path.is_dir():
            continue
        if not allowed_name(name):
            raise RefusedError(
                f"{name}: not a file that a release may hold",
                hint="remove it, or pull the release again",
            )
        if path.stat().st_size > FILE_CAP_BYTES or len(names) >= FILES_CAP:
            raise RefusedError(f"{name}: larger or more files than a release may hold")
        names.add(name)
    for name in (*UNLISTED, MANIFEST, "metadata.csv"):
        if name not in names:
            raise RefusedError(
                f"{name}: missing", hint="pull the release again; the download is not complete"
            )
    return names


def _signed_sums(folder: Path, trust: str | None) -> dict[str, str]:
    """Step 2: SHA256SUMS, if its signature holds."""
    sums = read_capped(folder / SUMS, TEXT_CAP_BYTES)
    line = read_capped(folder / SIGNERS, 4096).decode("utf-8", "replace")
    match = re.fullmatch(
        r'operator@[a-z0-9-]+ namespaces="[a-z0-9-]+" (ssh-ed25519 [A-Za-z0-9+/=]+)\n', line
    )
    if not match:
        raise RefusedError(f"{SIGNERS}: not the one line that a release carries")
    try:
        key = signing.parse_public(match[1])
    except ConfigurationError as error:
        raise RefusedError(f"{SIGNERS}: {error}") from error
    if trust and signing.fingerprint(key) != _trusted(trust):
        raise RefusedError(
            f"{SIGNERS}: signed by {signing.fingerprint(key)}, you trust {_trusted(trust)}",
            hint="compare with the fingerprint that the study publishes elsewhere",
        )
    signature = read_capped(folder / SIGNATURE, signing.KEY_CAP_BYTES)
    try:
        signing.verify(key, signing.RELEASE, sums, signature, what=SUMS)
    except RefusedError as error:
        raise RefusedError(f"{error} ({SUMS}, {SIGNATURE} or {SIGNERS} was altered)") from error
    return parse_sums(sums)


def _trusted(trust: str) -> str:
    """The fingerprint behind a key line or a fingerprint."""
    return (
        trust if trust.startswith("SHA256:") else signing.fingerprint(signing.parse_public(trust))
    )


def _files_match(
    folder: Path, digests: dict[str, str], present: set[str], progress: Callable[[int, int], None]
) -> None:
    """Step 3: every listed file is unchanged, and nothing else is there."""
    extra = sorted(present - set(digests) - set(UNLISTED))
    if extra:
        raise RefusedError(f"{extra[0]}: not listed in {SUMS}")
    for done, (name, digest) in enumerate(digests.items(), 1):
        if name not in present:
            raise RefusedError(f"{name}: missing", hint="pull the release again; it resumes")
        got = file_digest(folder / name)
        if got != digest:
            raise RefusedError(
                f"{name}: altered: SHA-256 is {got[:16]}..., signed was {digest[:16]}..."
            )
        progress(done, len(digests))


def read_manifest(folder: Path) -> Manifest:
    """Return manifest.json, unverified."""
    try:
        return Manifest.model_validate_json(read_capped(folder / MANIFEST, TEXT_CAP_BYTES))
    except ValidationError as error:
        raise RefusedError(
            f"{MANIFEST}: {error.error_count()} fields are not as a release has them"
        ) from error


def _manifest_agrees(folder: Path, manifest: Manifest, digests: dict[str, str]) -> None:
    """Step 4: manifest, allowed_signers and file sizes say the same."""
    line = read_capped(folder / SIGNERS, 4096).decode("utf-8", "replace")
    if line != signers_line(manifest.principal, manifest.operator_key):
        raise RefusedError(
            f"{SIGNERS}: altered: it is not the line that the signed {MANIFEST} implies"
        )
    sizes = {entry.path: entry.size_bytes for entry in manifest.files}
    if set(sizes) != set(digests) - {MANIFEST}:
        raise RefusedError(f"{MANIFEST}: lists other files than {SUMS}")
    for name, size in sizes.items():
        if (folder / name).stat().st_size != size:
            raise RefusedError(
                f"{name}: {(folder / name).stat().st_size} bytes, {MANIFEST} says {size}"
            )


def _metadata_agrees(folder: Path, manifest: Manifest, digests: dict[str, str]) -> None:
    """Step 5: metadata.csv is the list of the images."""
    text = read_capped(folder / "metadata.csv", TEXT_CAP_BYTES).decode("utf-8", "replace")
    rows = list(csv.DictReader(io.StringIO(text)))
    images = sorted(name for name in digests if name.startswith("data/"))
    if (
        sorted(row.get("file_name") or "" for row in rows) != images
        or len(images) != manifest.images
    ):
        raise RefusedError(
            f"metadata.csv: lists {len(rows)} images, {len(images)} are there, {manifest.images} stated"
        )
    for row in rows:
        if row["label"] not in manifest.labels or row["file_name"].split("/")[1] != row["label"]:
            raise RefusedError(
                f"metadata.csv: {row['file_name']} stands in another folder than its label"
            )
        _k_agrees(row, manifest)
    _masks_agree(rows, {name for name in digests if name.startswith("masks/")})


def _k_agrees(row: dict[str, str], manifest: Manifest) -> None:
    """Step 5, k: at least the manifest's; not stated where the manifest claims none."""
    stated = row.get("k", "")
    if manifest.k is None and not stated:
        return
    if manifest.k is None or not stated.isdigit() or int(stated) < manifest.k:
        expected = "none" if manifest.k is None else f"at least {manifest.k}"
        raise RefusedError(
            f"metadata.csv: {row['file_name']} states k = {stated}, {expected} expected"
        )


def _masks_agree(rows: list[dict[str, str]], masks: set[str]) -> None:
    """Step 5, masks: a picture and a NIfTI file of each row's mask under the image's own number, and no others."""
    listed = [
        name for row in rows for name in (row.get("mask", ""), row.get("mask_nifti", "")) if name
    ]
    if set(listed) != masks or len(listed) != len(masks):
        raise RefusedError(f"metadata.csv: lists {len(listed)} mask files, {len(masks)} are there")
    for row in rows if masks else ():
        number = row["file_name"].rpartition("/")[2].removesuffix(".png")
        if (row.get("mask"), row.get("mask_nifti")) != (
            f"masks/{number}.png",
            f"masks/{number}.nii.gz",
        ):
            raise RefusedError(
                f"metadata.csv: {row['file_name']} stands beside another image's mask"
            )


def _statement_holds(path: Path, site: str, manifest: Manifest) -> None:
    """Step 6: the site's own signature over what it sent for this plan."""
    name = f"statements/{path.name}"
    _, header = open_statement(read_capped(path, 1 << 20), name)
    kind = "update" if manifest.k is None else "images"
    if header.sender != site or header.study != manifest.study or header.kind != kind:
        raise RefusedError(f"{name}: about another site or study, or not about {kind}")
    if manifest.k is not None and int(header.statement.get("k", 0)) < manifest.k:
        raise RefusedError(
            f"{name}: the site states k = {header.statement.get('k')}, the release {manifest.k}"
        )
    stated = (header.statement.get("epsilon"), header.statement.get("delta"))
    if manifest.k is None and stated != (manifest.epsilon, manifest.delta):
        raise RefusedError(
            f"{name}: the site states (epsilon, delta) = {stated}, not the release's"
        )


def open_statement(data: bytes, name: str) -> tuple[Statement, Header]:
    """Return a statement and the header in it, if the site's key in the statement signed it; raises RefusedError."""
    try:
        statement = Statement.model_validate_json(data)
        header = base64.b64decode(statement.header, validate=True)
        signature = base64.b64decode(statement.signature, validate=True)
        signing.verify(
            signing.parse_public(statement.key), signing.MESSAGE, header, signature, what=name
        )
        return statement, Header.model_validate_json(header)
    except (ValidationError, binascii.Error, KohortError) as error:
        reason = str(error) if isinstance(error, KohortError) else "damaged"
        raise RefusedError(f"{name}: {reason}") from error


def statement_json(site: str, key: str, header: bytes, signature: bytes) -> bytes:
    """Return the content of statements/SITE.json."""
    statement = Statement(
        site=site,
        key=key,
        header=base64.b64encode(header).decode(),
        signature=base64.b64encode(signature).decode(),
    )
    return json.dumps(statement.model_dump(), indent=1, sort_keys=True).encode() + b"\n"
