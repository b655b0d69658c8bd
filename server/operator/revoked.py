"""The revocation list: every certificate of a revoked site, and of a key that was given up.

In: the registry, what was issued, the authority's key. Out: `ca/crl.pem`, for whoever audits.
The front does not read it: it asks the registry at each request, which is never out of date
(docs/decisions/0051-certificates-renew-themselves.md).
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from common.storage.files import atomic_write
from server.operator.authorities import has_key, issuing_folder
from server.operator.certificates import load_authority
from server.operator.issued import authority_id, open_issued
from server.operator.sites import Registry
from server.operator.state import ServerState

FILE = "crl.pem"
DAYS = timedelta(days=30)


def write_revoked(
    state: ServerState, registry: Registry, now: datetime | None = None
) -> Path | None:
    """Write the list and return its file; None where the authority's key is elsewhere."""
    if not has_key(state):
        return None
    now = now or datetime.now(UTC)
    authority = load_authority(issuing_folder(state), now=now)
    builder = x509.CertificateRevocationListBuilder()
    builder = builder.issuer_name(authority.certificate.subject)
    builder = builder.last_update(now).next_update(now + DAYS)
    own = authority_id(authority.certificate)
    with open_issued(state.root) as issued:
        for name, site in registry.sites().items():
            keys = () if site.state == "revoked" else site.node_keys
            for fact in issued.of(name):
                if fact.key in keys or fact.authority != own or fact.end < now:
                    continue
                entry = x509.RevokedCertificateBuilder().serial_number(int(fact.serial, 16))
                builder = builder.add_revoked_certificate(entry.revocation_date(now).build())
    made = builder.sign(authority.key, hashes.SHA256())
    path = state.authority / FILE
    atomic_write(path, made.public_bytes(serialization.Encoding.PEM))
    return path
