"""Which files a release may hold, and the one spelling of SHA256SUMS and allowed_signers.

A release's format decides: `FORMAT` is what is written; `NAMES` has those that are read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from kohort import signatures
from kohort.errors import RefusedError

SUMS = "SHA256SUMS"
SIGNATURE = "SHA256SUMS.sig"
SIGNERS = "allowed_signers"
MANIFEST = "manifest.json"
METADATA = "metadata.csv"
DRAWN = "drawn.json"  # in a folder that `kohort sample` wrote; no release has it
PICTURES = "data/train"  # a folder a label, as ImageFolder reads it
FOLDER_TABLE = f"{PICTURES}/metadata.csv"  # for `imagefolder`
DATALIST = "datalist.json"  # for MONAI
# no name in reports/ has a split's word (eval, test, dev, val): loaders would take it for data
FINDINGS = "reports/findings.json"
CONTACT_SHEET = "reports/contact_sheet.png"
UNLISTED = (SUMS, SIGNATURE, SIGNERS)
SIGN_OFF = re.compile(r"SHA256SUMS\.([a-z][a-z0-9-]{0,31})\.sig")
PIXELS = "reports/pixels.json"  # the SHA-256 of every picture's pixels
PROVENANCE = "provenance.c2pa"
IN_EVERY_FORMAT = frozenset(
    {
        *UNLISTED,
        MANIFEST,
        METADATA,
        "LICENSE",
        "README.md",
        "croissant.json",
        "index.html",
        "privacy_statement.json",
        "privacy_statement.md",
        "study.sig",
        "study.yaml",
    }
)


@dataclass(frozen=True)
class Names:
    """The names of one format: those at the top, and a pattern for those in folders."""

    top_level: frozenset[str]
    inner: re.Pattern[str]

    def __contains__(self, name: str) -> bool:
        return name in self.top_level or self.inner.fullmatch(name) is not None


LABEL = "[a-z0-9][a-z0-9-]{0,31}"
MODEL = "[a-z][a-z0-9_-]{0,31}"
SHARED_FOLDERS = (
    r"masks/[0-9]{5}\.(?:png|nii\.gz)|pages/[0-9]{4}\.html"
    r"|statements/[a-z][a-z0-9-]{0,31}\.json"
)
FORMAT = "kohort-release/2"
NAMES = {
    "kohort-release/1": Names(
        IN_EVERY_FORMAT | {"contact_sheet.png", "evaluation.json"},
        re.compile(
            rf"{SHARED_FOLDERS}|data/{LABEL}/[0-9]{{5}}\.png|models/[a-z]{{1,16}}\.safetensors"
        ),
    ),
    FORMAT: Names(
        IN_EVERY_FORMAT | {"CITATION.cff", DATALIST, "provenance.c2pa", "ro-crate-metadata.json"},
        re.compile(
            rf"{SHARED_FOLDERS}|{PICTURES}/{LABEL}/[0-9]{{5}}\.png|{PICTURES}/metadata\.csv"
            r"|parquet/train-[0-9]{5}-of-[0-9]{5}\.parquet|webdataset/train-[0-9]{6}\.tar"
            rf"|models/{MODEL}\.(?:safetensors|json|onnx)|reports/{MODEL}\.(?:json|png|md)"
        ),
    ),
}
IMAGES_CAP = 100_000  # five digits number them
FILES_CAP = 200_000
FILE_CAP_BYTES = 1 << 30
TEXT_CAP_BYTES = 1 << 26
SIGNED_CAP_BYTES = signatures.KEY_CAP_BYTES


def is_allowed_name(name: str, release_format: str | None = None) -> bool:
    """Return whether a release of this format may hold a file of this name; None: of any format."""
    if not is_listed(name):
        return True
    formats = NAMES.values() if release_format is None else (NAMES[release_format],)
    return any(name in names for names in formats)


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
