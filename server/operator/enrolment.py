"""Enrols a site: from its request file to its join file."""

from __future__ import annotations

import json
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding

from common.errors import disk_faults_named
from common.storage.files import read_capped
from server.operator.certificates import PEM_CAP_BYTES, issue_site_certificate, load_authority
from server.operator.config import ServerConfig
from server.operator.requests import read_request
from server.operator.sites import Registry
from server.operator.state import ServerState


def enrol(request_path: Path, state: ServerState, config: ServerConfig, operator_key: str) -> bytes:
    """Enrol the site behind a request file and return the content of its join file.

    `operator_key`: the operator's public key line. Enrolling the same request again gives a join
    file with a new certificate.
    """
    request = read_request(request_path)
    authority = load_authority(state.authority)
    registry = Registry(state.sites)
    try:
        site = registry.enrol(request)
    finally:
        registry.close()
    # A client certificate on the key that the site registers with Flower.
    certificate = state.root / "certificates" / f"{site.name}.crt"
    with disk_faults_named("create", certificate.parent):
        certificate.parent.mkdir(parents=True, exist_ok=True)
    issue_site_certificate(authority, site.name, site.node_key, certificate)
    # What the site needs to join.
    join = {
        "format": "kohort-join/1",
        "site": site.name,
        "server_url": config.url,
        "ca": authority.certificate.public_bytes(Encoding.PEM).decode(),
        "operator_key": operator_key,
        "client_certificate": read_capped(certificate, PEM_CAP_BYTES).decode(),
    }
    return json.dumps(join, indent=1, sort_keys=True).encode() + b"\n"
