"""Who the operator is: the operator's join file, kept as membership.json.

In: a join file. Out: `Membership`. Guarantees: an unknown or missing field is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import Field, ValidationError
from pydantic_core import ErrorDetails

from common.config import FrozenModel
from common.errors import ConfigurationError
from common.problems import describe
from common.storage.files import read_capped
from common.study.fields import Identifier
from common.wire import signing

JSON_CAP_BYTES = 1 << 20


class Membership(FrozenModel):
    """What the operator's join file says.

    `authority`: the operator's signed statement of its authorities, once they were replaced.
    """

    format: Literal["kohort-join/1"]
    site: Identifier
    server_url: str = Field(pattern=r"^https://[^/\s]+$", max_length=300)
    ca: str = Field(max_length=65_536)
    operator_key: str = Field(max_length=4096)
    client_certificate: str = Field(max_length=65_536)
    authority: str = Field(default="", max_length=32_768)

    @property
    def operator(self) -> Ed25519PublicKey:
        """The key that signs plans and instructions."""
        return signing.parse_public(self.operator_key)


def read_membership(path: Path) -> Membership:
    """Return the membership in a join file; raises ConfigurationError."""
    return parse_membership(read_join_file(path), path)


def read_join_file(path: Path) -> bytes:
    """Return the bytes of a join file; raises ConfigurationError where there is none."""
    if not path.is_file():
        raise ConfigurationError(
            f"{path}: no such file", hint="kohort-site join FILE, with the operator's join file"
        )
    return read_capped(path, JSON_CAP_BYTES)


def parse_membership(text: bytes, path: Path) -> Membership:
    """Return the membership in the bytes of the join file at `path`."""
    try:
        return Membership.model_validate_json(text)
    except ValidationError as error:
        wrong = "; ".join(sorted({_problem(item) for item in error.errors()}))
        raise ConfigurationError(
            f"{path}: not a join file of kohort ({wrong})",
            hint="ask the operator for the join file again",
        ) from error


def _problem(item: ErrorDetails) -> str:
    """One wrong field, in plain words; a key or certificate is not repeated."""
    if not item["loc"]:
        return "the file"
    name = str(item["loc"][0])
    return f"{name}: {describe(item)}" if name == "server_url" else name
