"""The manifest: what a release says of itself. Everything in it is public."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from kohort.errors import RefusedError
from kohort.files import read_capped
from kohort.frozen import FrozenModel
from kohort.header import Name
from kohort.layout import FILE_CAP_BYTES, FILES_CAP, MANIFEST, TEXT_CAP_BYTES, signers_text

SIGNERS_MOST = 32


class FileEntry(FrozenModel):
    """One file of a release."""

    path: str
    size_bytes: int = Field(ge=0, le=FILE_CAP_BYTES)


class Signer(FrozenModel):
    """Somebody who may sign a release off: a name, and a public key line without comment."""

    name: str = Name
    key: str = Field(pattern=r"^ssh-ed25519 [A-Za-z0-9+/=]{1,200}$")


class Manifest(FrozenModel):
    """The content of manifest.json. `k` is None where k-anonymity is not claimed.

    `sign_offs` of the `signers` vouch for the release besides its operator. Without signers the two
    keys are left out of the file.
    """

    format: str = Field(pattern=r"^kohort-release/[12]$")
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
    sign_offs: int = Field(default=0, ge=0, le=SIGNERS_MOST)
    signers: tuple[Signer, ...] = Field(default=(), max_length=SIGNERS_MOST)

    @property
    def allowed_signers(self) -> str:
        """What allowed_signers holds."""
        signers = {signer.name: signer.key for signer in self.signers}
        return signers_text(self.name, self.operator_key, signers)

    def facts(self) -> dict[str, Any]:
        """Return the fields as plain data, for manifest.json."""
        left_out = set() if self.signers else {"sign_offs", "signers"}
        return self.model_dump(mode="json", exclude=left_out)


def read_manifest(folder: Path) -> Manifest:
    """Return manifest.json, unverified."""
    try:
        return Manifest.model_validate_json(read_capped(folder / MANIFEST, TEXT_CAP_BYTES))
    except ValidationError as error:
        raise RefusedError(
            f"{MANIFEST}: {error.error_count()} fields are not as a release has them"
        ) from error
