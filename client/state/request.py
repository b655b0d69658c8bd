"""The site's request to take part, with its present keys: what the operator enrols.

In: the state folder's keys. Out: `NAME.request.json`, signed by the signing key.
"""

from __future__ import annotations

import json
from pathlib import Path

from client.state.folder import State
from common.storage.files import atomic_write, read_capped
from common.wire import signing
from common.wire.messages import canonical

PUBLIC_KEY_CAP_BYTES = 4096


def request_fields(state: State, site: str) -> dict[str, str]:
    """Return the signed request to join."""
    key = state.signing_key()
    node_key = read_capped(state.node_key.with_suffix(".pub"), PUBLIC_KEY_CAP_BYTES)
    request = {
        "format": "kohort-request/1",
        "site": site,
        "node_key": node_key.decode().strip(),
        "sign_key": signing.public_text(key.public_key(), site),
    }
    request["signature"] = signing.sign(key, signing.REQUEST, canonical(request)).decode()
    return request


def write_request_file(state: State, site: str) -> Path:
    """Write the request and return its file."""
    path = state.root / f"{site}.request.json"
    atomic_write(path, json.dumps(request_fields(state, site), indent=1).encode() + b"\n")
    return path
