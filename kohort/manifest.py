"""The manifest: what a release says of itself. Everything in it is public."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, ValidationError

from kohort.errors import RefusedError
from kohort.files import read_capped
from kohort.frozen import FrozenModel
from kohort.layout import FILE_CAP_BYTES, FILES_CAP, MANIFEST, TEXT_CAP_BYTES


class FileEntry(FrozenModel):
    """One file of a release."""

    path: str
    size_bytes: int = Field(ge=0, le=FILE_CAP_BYTES)


class Manifest(FrozenModel):
    """The content of manifest.json. `k` is None where k-anonymity is not claimed."""

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


def read_manifest(folder: Path) -> Manifest:
    """Return manifest.json, unverified."""
    try:
        return Manifest.model_validate_json(read_capped(folder / MANIFEST, TEXT_CAP_BYTES))
    except ValidationError as error:
        raise RefusedError(
            f"{MANIFEST}: {error.error_count()} fields are not as a release has them"
        ) from error
