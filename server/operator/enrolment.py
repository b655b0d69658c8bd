"""Enrols a site: from its request file to its join file."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import NameOID

from common.errors import RefusedError
from server.operator.authorities import (
    issuing_folder,
    read_authorities,
    statement_text,
    trusted_pem,
)
from server.operator.certificates import (
    check_certificate,
    load_authority,
    parse_site_key,
    read_certificate,
    site_certificate,
    to_pem,
)
from server.operator.config import ServerConfig
from server.operator.renewals import is_for_a_site, keep_certificate
from server.operator.requests import Request, read_request
from server.operator.sites import Registry
from server.operator.state import ServerState


def enrol(
    request_path: Path,
    state: ServerState,
    config: ServerConfig,
    operator_key: str,
    certificate: Path | None = None,
    *,
    now: datetime | None = None,
) -> bytes:
    """Enrol the site behind a request file and return the content of its join file.

    `operator_key`: the operator's public key line. `certificate`: the site's, from `certify`, where
    the authority's key is elsewhere. Enrolling the same request again gives a join file with a new
    certificate.
    """
    # everything is checked before the registry changes
    request = read_request(request_path)
    if certificate is None:
        authority = load_authority(issuing_folder(state), now=now)
        issued = site_certificate(authority, request.site, request.node_key, now=now)
    else:
        issued = check_site_certificate(certificate, read_authorities(state)[-1], request)
    registry = Registry(state.sites)
    try:
        site = registry.enrol(request)
    finally:
        registry.close()
    # A client certificate on the key that the site registers with Flower.
    keep_certificate(state, site.name, issued)
    # What the site needs to join.
    join = {
        "format": "kohort-join/1",
        "site": site.name,
        "server_url": config.url,
        "ca": trusted_pem(state),
        "operator_key": operator_key,
        "client_certificate": issued.decode(),
    }
    if statement_text(state):
        join["authority"] = statement_text(state)
    return json.dumps(join, indent=1, sort_keys=True).encode() + b"\n"


def check_site_certificate(path: Path, authority: x509.Certificate, request: Request) -> bytes:
    """Return the PEM text of a certificate for exactly this request.

    Raises ConfigurationError for another authority's or an expired one, RefusedError for one of
    another site, key or purpose.
    """
    check_certificate(path, authority)
    certificate = read_certificate(path)
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if [name.value for name in names] != [request.site]:
        raise _refusal(path, f"not a certificate of {request.site}")
    if certificate.public_key() != parse_site_key(request.node_key):
        raise _refusal(path, "a certificate of another key")
    if not is_for_a_site(certificate):
        raise _refusal(path, "no site's certificate")
    return to_pem(certificate)


def _refusal(path: Path, what: str) -> RefusedError:
    return RefusedError(
        f"{path}: {what}",
        hint="`kohort-server certify` makes it of this very request",
        code="E-CERTIFICATE",
    )
