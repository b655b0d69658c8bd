"""Writes provenance.c2pa: one C2PA manifest of a release, signed offline.

In: the contact sheet, facts of the release, the operator's key. Out: a manifest store (C2PA 2.x).
It stands beside the contact sheet, which it binds by digest, and names the digests of the lists
that name every picture.
Guarantees: the same inputs and key give the same bytes: no salt, no time stamp, no random id.
Not covered: trust. Its root certificate is the operator's own; no public list names it.

The steps:
  1. certificates: the operator's key certifies a signing key that follows from it;
  2. assertions: what was done, the digest of the contact sheet, the facts of the release;
  3. the claim links the assertions by digest, and is signed (COSE, EdDSA).
"""

from __future__ import annotations

import datetime
import hashlib
import uuid
from collections.abc import Mapping
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from common.wire import signing
from kohort.credentials import RELEASE_ASSERTION
from kohort.marks import SOURCE_TYPE
from server.release.boxes import Tagged, box, cbor, link_hash_input, superbox

PURPOSE = b"kohort-c2pa-v1"  # sets the signing key apart from all else that follows from a key
ALGORITHM = "sha256"
EDDSA = -8  # COSE's number
KEY_ALGORITHM, CERTIFICATES = 1, 33  # COSE's headers
COSE_SIGN1 = 18
# RFC 5280: "has no well-defined expiration date"; the release's own signature decides
NOT_BEFORE = datetime.datetime(2020, 1, 1)
NOT_AFTER = datetime.datetime(9999, 12, 31, 23, 59, 59)


@dataclass(frozen=True)
class Credentials:
    """The signing key, its certificate and the operator's root, both as DER."""

    key: Ed25519PrivateKey
    chain: tuple[bytes, bytes]


def c2pa_manifest(
    title: str, sheet: bytes, facts: Mapping[str, str], key: Ed25519PrivateKey
) -> bytes:
    """Return the bytes of provenance.c2pa.

    `sheet` is the PNG file beside which it stands, `facts` what the release says of itself.
    """
    # (1) certificates that follow from the operator's key
    credentials = _credentials(key)

    # (2) assertions: what was done, to which bytes, of which release
    created = {"action": "c2pa.created", "digitalSourceType": SOURCE_TYPE}
    digest = hashlib.sha256(sheet).digest()
    hashed = {"name": "contact sheet", "alg": ALGORITHM, "hash": digest, "pad": b""}
    assertions = {
        "c2pa.hash.data": _assertion("c2pa.hash.data", hashed),
        "c2pa.actions.v2": _assertion("c2pa.actions.v2", {"actions": [created]}),
        RELEASE_ASSERTION: _assertion(RELEASE_ASSERTION, dict(facts)),
    }

    # (3) the claim, its signature, and the boxes around them
    seed = b"".join(assertions.values()) + credentials.chain[1]
    name = uuid.UUID(bytes=hashlib.sha256(seed).digest()[:16], version=5)
    label = f"urn:c2pa:{name}"
    claim = cbor(_claim(title, label, name, assertions))
    return superbox(
        b"c2pa",
        "c2pa",
        superbox(
            b"c2ma",
            label,
            superbox(b"c2as", "c2pa.assertions", *assertions.values()),
            superbox(b"c2cl", "c2pa.claim.v2", box(b"cbor", claim)),
            superbox(b"c2cs", "c2pa.signature", box(b"cbor", _sign(claim, credentials))),
        ),
    )


# ---- (1) certificates


def root_certificate(key: Ed25519PrivateKey) -> x509.Certificate:
    """Return the root that a C2PA validator would have to trust: the operator's key, by itself."""
    name = _name(f"kohort {signing.fingerprint(key.public_key())}")
    builder = _certificate(name, name, key.public_key())
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(certifies=True), critical=True)
    return builder.sign(key, None)


def _credentials(key: Ed25519PrivateKey) -> Credentials:
    """The signing key, which follows from the operator's, with its two certificates."""
    seed = HKDF(hashes.SHA256(), 32, None, PURPOSE).derive(key.private_bytes_raw())
    own = Ed25519PrivateKey.from_private_bytes(seed)
    root = root_certificate(key)
    builder = _certificate(_name("kohort release"), root.subject, own.public_key())
    builder = builder.add_extension(
        x509.BasicConstraints(ca=False, path_length=None), critical=True
    )
    builder = builder.add_extension(_usage(certifies=False), critical=True)
    purposes = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])  # as C2PA asks
    builder = builder.add_extension(purposes, critical=False)
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())
    signed = builder.add_extension(issuer, critical=False).sign(key, None)
    chain = (signed.public_bytes(Encoding.DER), root.public_bytes(Encoding.DER))
    return Credentials(own, chain)


def _certificate(
    subject: x509.Name, issuer: x509.Name, public: Ed25519PublicKey
) -> x509.CertificateBuilder:
    """What both certificates have: names, dates, and a serial number that follows from the key."""
    digest = hashlib.sha256(public.public_bytes_raw()).digest()
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(int.from_bytes(digest[:16], "big") >> 1)
        .not_valid_before(NOT_BEFORE)
        .not_valid_after(NOT_AFTER)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _name(common: str) -> x509.Name:
    """A name of a certificate: at most 64 characters."""
    organization = x509.NameAttribute(NameOID.ORGANIZATION_NAME, "kohort")
    return x509.Name([organization, x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _usage(*, certifies: bool) -> x509.KeyUsage:
    """The key either certifies or signs, never both."""
    return x509.KeyUsage(
        digital_signature=not certifies,
        key_cert_sign=certifies,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


# ---- (2, 3) assertions, claim and signature


def _assertion(label: str, content: Mapping[str, object]) -> bytes:
    """One assertion as a box."""
    return superbox(b"cbor", label, box(b"cbor", cbor(content)))


def _claim(
    title: str, label: str, name: uuid.UUID, assertions: Mapping[str, bytes]
) -> dict[str, object]:
    """The claim: who says so, and the digest of each assertion."""
    links = []
    for assertion, whole in assertions.items():
        digest = hashlib.sha256(link_hash_input(whole)).digest()
        links.append({"url": f"self#jumbf=c2pa.assertions/{assertion}", "hash": digest})
    return {
        "instanceID": f"xmp:iid:{name}",
        "claim_generator_info": {"name": "kohort"},
        "signature": f"self#jumbf=/c2pa/{label}/c2pa.signature",
        "created_assertions": links,
        "dc:title": title,
        "alg": ALGORITHM,
    }


def _sign(claim: bytes, credentials: Credentials) -> bytes:
    """A COSE_Sign1 over the claim (RFC 9052), which is not repeated in it."""
    protected = cbor({KEY_ALGORITHM: EDDSA, CERTIFICATES: list(credentials.chain)})
    signed = cbor(["Signature1", protected, b"", claim])
    signature = credentials.key.sign(signed)
    return cbor(Tagged(COSE_SIGN1, [protected, {}, None, signature]))
