"""A site's signed statement: the header of what it sent, with its key and signature."""

from __future__ import annotations

import base64
import json

from kohort import signatures
from kohort.errors import KohortError, RefusedError, damage_named
from kohort.frozen import FrozenModel
from kohort.header import Header


class Statement(FrozenModel):
    """The content of statements/SITE.json; `header` and `signature` are base64."""

    site: str
    key: str
    header: str
    signature: str


def open_statement(data: bytes, name: str) -> tuple[Statement, Header]:
    """Return a statement and its header; `name` names the file in messages.

    Raises RefusedError unless the key in the statement signed the header.
    """
    try:
        # not base64, not ASCII, or not the fields
        with damage_named(RefusedError("damaged")):
            statement = Statement.model_validate_json(data)
            header = base64.b64decode(statement.header, validate=True)
            signature = base64.b64decode(statement.signature, validate=True)
            key = signatures.parse_public(statement.key)
            signatures.verify(key, signatures.MESSAGE, header, signature, what=name)
            return statement, Header.model_validate_json(header)
    except KohortError as error:
        raise RefusedError(f"{name}: {error}") from error


def statement_json(site: str, key: str, header: bytes, signature: bytes) -> bytes:
    """Return the content of statements/SITE.json."""
    statement = Statement(
        site=site,
        key=key,
        header=base64.b64encode(header).decode(),
        signature=base64.b64encode(signature).decode(),
    )
    return json.dumps(statement.model_dump(), indent=1, sort_keys=True).encode() + b"\n"
