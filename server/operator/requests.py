"""A site's request to take part: its name, its two public keys, its signature.

In: the file that the site sent. Out: a `Request`.
Guarantees: the request is signed by its own signing key; both keys are keys.
Not covered: who the person behind it is: the fingerprint must be read over another channel.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import Field, ValidationError

from common.config import FrozenModel
from common.errors import ConfigurationError, RefusedError
from common.problems import describe
from common.storage.files import read_capped
from common.study.fields import Identifier
from common.wire import signing
from common.wire.messages import canonical
from server.operator.certificates import parse_site_key

REQUEST_CAP_BYTES = 65_536


class Request(FrozenModel):
    """A site's request file."""

    format: Literal["kohort-request/1"]
    site: Identifier
    node_key: str = Field(max_length=1000)
    sign_key: str = Field(max_length=1000)
    signature: str = Field(max_length=4000)


def read_request(path: Path) -> Request:
    """Return the request in a file.

    Raises ConfigurationError for anything else than a request, RefusedError for a size over the
    cap or a signature that fails.
    """
    if not path.is_file():
        raise ConfigurationError(
            f"{path}: no such file", hint="give the NAME.request.json that the site sent"
        )
    # (1) the size, (2) the fields
    text = read_capped(path, REQUEST_CAP_BYTES)
    try:
        request = Request.model_validate_json(text)
    except ValidationError as error:
        raise ConfigurationError(
            f"{path}: not a site's request: {_name_problems(error)}",
            hint="the site makes it with `kohort-site init`",
        ) from error
    # (3) the two keys
    public = _check_keys(request, path)
    # (4) the signature, by the request's own signing key
    fields = json.loads(text)
    del fields["signature"]
    signed = canonical(fields)
    try:
        signing.verify(public, signing.REQUEST, signed, request.signature.encode(), what=str(path))
    except RefusedError as error:
        hint = error.hint or "ask the site for its file again, unchanged"
        raise RefusedError(str(error), hint=hint, code=error.code) from error
    return request


def _check_keys(request: Request, path: Path) -> Ed25519PublicKey:
    """The signing key of a request whose two keys are keys."""
    try:
        parse_site_key(request.node_key)
        return signing.parse_public(request.sign_key)
    except ConfigurationError as error:
        raise ConfigurationError(
            f"{path}: {error}", hint="the site makes it with `kohort-site init`"
        ) from error


def _name_problems(error: ValidationError) -> str:
    """Every wrong field in words."""
    words = []
    for item in error.errors():
        field = f"{item['loc'][0]}: " if item["loc"] else ""
        words.append(field + describe(item))
    return "; ".join(words)
