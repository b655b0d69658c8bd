"""Verifies a release on disk, offline, in seven numbered steps.

In: a release folder. Out: its `Manifest`, or RefusedError that names the file. Guarantees, in
order:
  1. every file has a name and a size that a release may hold, and is no link;
  2. SHA256SUMS is signed by the key in allowed_signers, or by the key that the reader trusts;
  3. every file listed in SHA256SUMS is there with exactly that digest, and no other file is;
  4. manifest.json and allowed_signers agree with each other and with the files, whose names are
     those of the manifest's format;
  5. metadata.csv lists exactly the images, each with its label folder, and exactly their masks;
     data/train/metadata.csv and datalist.json, where loaders look, say the same (format 2);
  6. every site's statement is signed by that site's key and is about this study's plan. It states
     no smaller k (images), or the release's own epsilon and delta (a release without k: pairs drawn
     from a generator trained on updates);
  7. every sign-off is of a signer that manifest.json names, over this SHA256SUMS, and there are as
     many as the release or the reader requires.
Not covered: whether a key deserves trust. Compare the fingerprints with those from another channel
(`--trust`).
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

from kohort import signatures
from kohort.errors import ConfigurationError, RefusedError
from kohort.files import file_digest, read_capped
from kohort.forms import MASK, MASK_1, MASK_NIFTI, folder_rows, training_list
from kohort.header import Header
from kohort.layout import (
    DATALIST,
    DRAWN,
    FILE_CAP_BYTES,
    FILES_CAP,
    FOLDER_TABLE,
    FORMAT,
    MANIFEST,
    METADATA,
    SIGNATURE,
    SIGNERS,
    SUMS,
    TEXT_CAP_BYTES,
    UNLISTED,
    is_allowed_name,
    is_listed,
    parse_sums,
)
from kohort.manifest import Manifest, read_manifest
from kohort.sign_off import read_sign_offs, require_sign_offs
from kohort.statements import open_statement

SIGNERS_CAP_BYTES = 16_384
STATEMENT_CAP_BYTES = 1 << 20
PICTURE = re.compile(r"data/.*\.png")
WHOLE_NUMBER = re.compile(r"[0-9]{1,9}")
SIGNERS_LINE = re.compile(
    r'operator@[a-z0-9-]+ namespaces="[a-z0-9-]+" (ssh-ed25519 [A-Za-z0-9+/=]+)\n'
)


def verify(
    folder: Path,
    *,
    trust: frozenset[str] = frozenset(),
    require: int | None = None,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Manifest:
    """Return the manifest of a release that passes all seven steps; raises RefusedError.

    `trust`: fingerprints (kohort/trust.py). With `require` at least so many of these keys have
    signed the release off; otherwise the operator's key is one of them. Without `trust` the
    sign-offs of all signers in the manifest count. `require` None: as many as the manifest says.
    """
    if not folder.is_dir():
        raise ConfigurationError(
            f"{folder}: no such folder", hint="give the folder of a downloaded release"
        )
    if (folder / DRAWN).exists():
        raise RefusedError(
            f"{folder}: drawn by a user with `kohort sample`, not a signed release",
            hint=f"verify the release that its {DRAWN} names",
        )

    # (1) every file has a name and a size that a release may hold
    present = _list_files(folder)
    # (2) SHA256SUMS is signed by the operator
    sums = read_capped(folder / SUMS, TEXT_CAP_BYTES)
    digests = read_signed_sums(folder, sums, trust, require)
    # (3) the files are those of SHA256SUMS, unchanged
    _check_digests(folder, digests, present, progress)
    # (4) manifest, allowed_signers and files agree
    manifest = read_manifest(folder)
    _check_manifest(folder, manifest, digests)
    # (5) metadata.csv lists the images and masks
    _check_metadata(folder, manifest, digests)
    # (6) every site's signed statement fits the release
    for site in manifest.sites:
        if f"statements/{site}.json" not in digests:
            raise RefusedError(f"statements/{site}.json: missing, though {MANIFEST} names the site")
        _check_statement(folder / "statements" / f"{site}.json", site, manifest)
    # (7) enough of the named signers have signed it off
    signed = read_sign_offs(folder, manifest, sums)
    needed = manifest.sign_offs if require is None else require
    counting = trust if require and trust else None
    require_sign_offs(manifest, signed, needed, counting)
    return manifest


# ---- (1) names and sizes


def _list_files(folder: Path) -> set[str]:
    """Step 1: the names of all files below the folder."""
    names: set[str] = set()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            raise RefusedError(f"{name}: a release holds plain files only, no links or devices")
        if path.is_dir():
            continue
        if not is_allowed_name(name):
            raise RefusedError(
                f"{name}: not a file that a release may hold",
                hint="remove it, or pull the release again",
            )
        if path.stat().st_size > FILE_CAP_BYTES or len(names) >= FILES_CAP:
            raise RefusedError(f"{name}: larger or more files than a release may hold")
        names.add(name)
    for name in (*UNLISTED, MANIFEST, METADATA):
        if name not in names:
            raise RefusedError(
                f"{name}: missing", hint="pull the release again; the download is not complete"
            )
    return names


# ---- (2) the operator's signature


def read_signed_sums(
    folder: Path, sums: bytes, trust: frozenset[str], require: int | None
) -> dict[str, str]:
    """Return the digests in SHA256SUMS by name, if its signature holds: step 2 alone.

    `trust` and `require` are those of `verify`: where sign-offs are required, the operator's key
    may be any. Raises RefusedError.
    """
    trusted = frozenset() if require else trust
    # the first line is the operator's; step 4 compares them all
    match = SIGNERS_LINE.match(_read_signers(folder))
    if not match:
        raise RefusedError(f"{SIGNERS}: does not begin with the operator's line")
    try:
        key = signatures.parse_public(match[1])
    except ConfigurationError as error:
        raise RefusedError(f"{SIGNERS}: {error}") from error

    # The reader's own choice of key comes before the signature itself.
    found = signatures.fingerprint(key)
    if trusted and found not in trusted:
        raise RefusedError(
            f"{SIGNERS}: signed by {found}, you trust {', '.join(sorted(trusted))}",
            hint="compare with the fingerprint that the study publishes elsewhere",
        )

    signature = read_capped(folder / SIGNATURE, signatures.KEY_CAP_BYTES)
    try:
        signatures.verify(key, signatures.RELEASE, sums, signature, what=SUMS)
    except RefusedError as error:
        raise RefusedError(f"{error} ({SUMS}, {SIGNATURE} or {SIGNERS} was altered)") from error
    return parse_sums(sums)


def _read_signers(folder: Path) -> str:
    """The content of allowed_signers."""
    return read_capped(folder / SIGNERS, SIGNERS_CAP_BYTES).decode("utf-8", "replace")


# ---- (3) the files


def _check_digests(
    folder: Path, digests: dict[str, str], present: set[str], progress: Callable[[int, int], None]
) -> None:
    """Step 3: every listed file is unchanged, and nothing else is there."""
    extra = sorted(name for name in present - set(digests) if is_listed(name))
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


# ---- (4) the manifest


def _check_manifest(folder: Path, manifest: Manifest, digests: dict[str, str]) -> None:
    """Step 4: manifest, allowed_signers and file sizes agree."""
    if _read_signers(folder) != manifest.allowed_signers:
        raise RefusedError(f"{SIGNERS}: altered: it is not what the signed {MANIFEST} implies")
    for name in digests:
        if not is_allowed_name(name, manifest.format):
            raise RefusedError(f"{name}: not a file that a {manifest.format} may hold")
    sizes = {entry.path: entry.size_bytes for entry in manifest.files}
    if set(sizes) != set(digests) - {MANIFEST}:
        raise RefusedError(f"{MANIFEST}: lists other files than {SUMS}")
    for name, size in sizes.items():
        found = (folder / name).stat().st_size
        if found != size:
            raise RefusedError(f"{name}: {found} bytes, {MANIFEST} says {size}")


# ---- (5) the table of images


def _check_metadata(folder: Path, manifest: Manifest, digests: dict[str, str]) -> None:
    """Step 5: metadata.csv is the list of the images and masks."""
    rows = read_rows(folder, METADATA)
    images = sorted(name for name in digests if PICTURE.fullmatch(name))
    listed = sorted(row.get("file_name") or "" for row in rows)
    if listed != images or len(images) != manifest.images:
        raise RefusedError(
            f"{METADATA}: lists {len(rows)} images, {len(images)} are there, "
            f"{manifest.images} stated"
        )
    for row in rows:
        label = row.get("label")
        if label not in manifest.labels or row["file_name"].split("/")[-2] != label:
            raise RefusedError(
                f"{METADATA}: {row['file_name']} stands in another folder than its label"
            )
        _check_k(row, manifest)
    column = MASK if manifest.format == FORMAT else MASK_1
    _check_masks(rows, column, {name for name in digests if name.startswith("masks/")})
    if manifest.format == FORMAT:
        _check_forms(folder, manifest, digests, rows)


def read_rows(folder: Path, name: str) -> list[dict[str, str]]:
    """Return the rows of a table, unverified; a short row lacks its last values."""
    text = read_capped(folder / name, TEXT_CAP_BYTES).decode("utf-8", "replace")
    try:
        return list(csv.DictReader(io.StringIO(text, newline="")))
    except csv.Error as error:
        raise RefusedError(f"{name}: not a CSV table") from error


def _check_k(row: dict[str, str], manifest: Manifest) -> None:
    """Step 5: a row states at least the manifest's k, or none where the manifest claims none."""
    stated = row.get("k") or ""
    if manifest.k is None:
        fits = not stated
        expected = "none"
    else:
        fits = bool(WHOLE_NUMBER.fullmatch(stated)) and int(stated) >= manifest.k
        expected = f"at least {manifest.k}"
    if not fits:
        raise RefusedError(
            f"{METADATA}: {row['file_name']} states k = {stated}, {expected} expected"
        )


def _check_masks(rows: list[dict[str, str]], mask: str, masks: set[str]) -> None:
    """Step 5: each row's mask is a picture and a NIfTI file under the image's own number."""
    listed = []
    for row in rows:
        listed += [row[column] for column in (mask, MASK_NIFTI) if row.get(column)]
    if set(listed) != masks or len(listed) != len(masks):
        raise RefusedError(f"{METADATA}: lists {len(listed)} mask files, {len(masks)} are there")
    if not masks:
        return
    for row in rows:
        number = row["file_name"].rpartition("/")[2].removesuffix(".png")
        expected = (f"masks/{number}.png", f"masks/{number}.nii.gz")
        if (row.get(mask), row.get(MASK_NIFTI)) != expected:
            raise RefusedError(f"{METADATA}: {row['file_name']} stands beside another image's mask")


def _check_forms(
    folder: Path, manifest: Manifest, digests: dict[str, str], rows: list[dict[str, str]]
) -> None:
    """Step 5: what loaders read by itself says the same as metadata.csv, in the same order."""
    for name in (FOLDER_TABLE, DATALIST):
        if name not in digests:
            raise RefusedError(f"{name}: missing, though a {manifest.format} has it")
    if read_rows(folder, FOLDER_TABLE) != folder_rows(rows):
        raise RefusedError(f"{FOLDER_TABLE}: says other things than {METADATA}")
    try:
        found = json.loads(read_capped(folder / DATALIST, TEXT_CAP_BYTES))["training"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise RefusedError(f"{DATALIST}: not JSON with a list `training`") from error
    if found != training_list(rows, manifest.labels):
        raise RefusedError(f"{DATALIST}: lists other images, labels or masks than {METADATA}")


# ---- (6) the sites' statements


def _check_statement(path: Path, site: str, manifest: Manifest) -> None:
    """Step 6: the site's own signature over what it sent for this plan."""
    name = f"statements/{path.name}"
    _, header = open_statement(read_capped(path, STATEMENT_CAP_BYTES), name)
    kind = "update" if manifest.k is None else "images"
    if header.sender != site or header.study != manifest.study or header.kind != kind:
        raise RefusedError(f"{name}: about another site or study, or not about {kind}")
    if manifest.k is None:
        _check_budget(name, header, manifest)
    else:
        _check_stated_k(name, header, manifest.k)


def _check_stated_k(name: str, header: Header, k: int) -> None:
    """Step 6: the site states the release's k or a larger one, as a whole number."""
    stated = header.statement.get("k")
    if not isinstance(stated, int) or isinstance(stated, bool) or stated < k:
        raise RefusedError(f"{name}: the site states k = {stated}, the release {k}")


def _check_budget(name: str, header: Header, manifest: Manifest) -> None:
    """Step 6: a release without k carries the epsilon and delta that the site states."""
    stated = (header.statement.get("epsilon"), header.statement.get("delta"))
    exact = all(type(value) is float for value in stated)
    if not exact or stated != (manifest.epsilon, manifest.delta):
        raise RefusedError(
            f"{name}: the site states (epsilon, delta) = {stated}, not the release's"
        )
