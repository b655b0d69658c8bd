"""Which files a release may hold, and the one spelling of SHA256SUMS and allowed_signers."""

from __future__ import annotations

import re
from collections.abc import Mapping

from kohort import signatures
from kohort.errors import RefusedError

SUMS = "SHA256SUMS"
SIGNATURE = "SHA256SUMS.sig"
SIGNERS = "allowed_signers"
MANIFEST = "manifest.json"
METADATA = "metadata.csv"
UNLISTED = (SUMS, SIGNATURE, SIGNERS)
SIGN_OFF = re.compile(r"SHA256SUMS\.([a-z][a-z0-9-]{0,31})\.sig")
TOP_LEVEL = {
    *UNLISTED,
    MANIFEST,
    METADATA,
    "LICENSE",
    "README.md",
    "contact_sheet.png",
    "croissant.json",
    "evaluation.json",
    "index.html",
    "privacy_statement.json",
    "privacy_statement.md",
    "study.sig",
    "study.yaml",
}
INNER = re.compile(
    r"data/[a-z0-9][a-z0-9-]{0,31}/[0-9]{5}\.png|masks/[0-9]{5}\.(?:png|nii\.gz)"
    r"|pages/[0-9]{4}\.html|models/[a-z]{1,16}\.safetensors|statements/[a-z][a-z0-9-]{0,31}\.json"
)
IMAGES_CAP = 100_000  # five digits number them
FILES_CAP = 200_000
FILE_CAP_BYTES = 1 << 30
TEXT_CAP_BYTES = 1 << 26
SIGNED_CAP_BYTES = signatures.KEY_CAP_BYTES


def is_allowed_name(name: str) -> bool:
    """Return whether a release may hold a file of this name."""
    return name in TOP_LEVEL or not is_listed(name) or INNER.fullmatch(name) is not None


def is_listed(name: str) -> bool:
    """Return whether SHA256SUMS lists a file of this name: all but itself and who signed it."""
    return name not in UNLISTED and SIGN_OFF.fullmatch(name) is None


def sign_off_file(name: str) -> str:
    """Return the file of a signer's own signature over SHA256SUMS."""
    return f"{SUMS}.{name}.sig"


def signers_line(principal: str, key: str) -> str:
    """Return one line of allowed_signers, as `ssh-keygen -Y verify` reads it."""
    return f'{principal} namespaces="{signatures.RELEASE}" {" ".join(key.split()[:2])}\n'


def signers_text(release: str, operator_key: str, signers: Mapping[str, str]) -> str:
    """Return allowed_signers: the operator's line, then each signer's, by name."""
    text = signers_line(f"operator@{release}", operator_key)
    for name in sorted(signers):
        text += signers_line(f"{name}@{release}", signers[name])
    return text


def sums_text(digests: dict[str, str]) -> str:
    """Return SHA256SUMS in the form of `sha256sum`, sorted by name."""
    return "".join(f"{digests[name]}  {name}\n" for name in sorted(digests))


def parse_sums(data: bytes) -> dict[str, str]:
    """Return {name: digest}; refuses every spelling but the one that `sums_text` writes."""
    found = {}
    for line in data.decode("utf-8", "replace").splitlines():
        digest, _, name = line.partition("  ")
        allowed = is_allowed_name(name) and is_listed(name)
        if not re.fullmatch(r"[0-9a-f]{64}", digest) or not allowed:
            raise RefusedError(
                f"{SUMS}: a line is not `sha256  name` with a name that a release may hold"
            )
        found[name] = digest
    if sums_text(found).encode() != data:
        raise RefusedError(f"{SUMS}: not in its one canonical order and spelling")
    return found
