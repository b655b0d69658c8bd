"""A site's request for its next certificate, and the server's answer.

In: keys, certificates, foreign bytes. Out: the bytes of a request or an answer, or the parsed one.
Guarantees: a request is signed by the key of the present certificate, which is in it, and by the
key that the next one is for; it names one site; anything else is refused (E-RENEWAL).
A request that is sent again asks for nothing new: the present certificate is named in it.
Not covered: who may renew now (server/operator/renewals.py).
"""

from __future__ import annotations

import base64
from datetime import datetime, timedelta
from typing import Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pydantic import Field, ValidationError

from common.config import FrozenModel
from common.errors import RefusedError, damage_named
from common.wire.messages import canonical

PATH = "/v1/kohort/renew-certificate"
MEDIA_TYPE = "application/json"
REQUEST_CAP_BYTES = 12 << 10
ANSWER_CAP_BYTES = 64 << 10
PURPOSE = b"kohort-renewal-v1\0"
LONG = timedelta(days=60)
ALGORITHM = ec.ECDSA(hashes.SHA256())
SITE = Field(pattern=r"^[a-z][a-z0-9-]{0,31}$")


class Asked(FrozenModel):
    """A request: whose, the present certificate, the next key, and a signature by each key.

    `handover`: the statement that the site's signing key changes (handover.py), or nothing.
    """

    format: Literal["kohort-renewal/1"]
    site: str = SITE
    certificate: str = Field(max_length=4096)
    node_key: str = Field(max_length=1000)
    handover: str = Field(default="", max_length=4096)
    present: str = Field(max_length=400)
    next: str = Field(max_length=400)

    def signed_bytes(self) -> bytes:
        """What both keys sign."""
        fields = self.model_dump(mode="json", exclude={"present", "next"})
        return PURPOSE + canonical(fields)


class Answer(FrozenModel):
    """What the server says: the certificate, or that a person has to sign it.

    `authority`: the operator's signed statement of the authorities (authority.py), or nothing.
    `sign_key`: the line of the site's signing key as the registry has it now.
    """

    format: Literal["kohort-renewal-answer/1"]
    state: Literal["issued", "waiting"]
    certificate: str = Field(default="", max_length=8192)
    authority: str = Field(default="", max_length=32_768)
    sign_key: str = Field(default="", max_length=1000)


def write_request(
    site: str,
    certificate: x509.Certificate,
    present: ec.EllipticCurvePrivateKey,
    next_key: ec.EllipticCurvePrivateKey,
    handover: str = "",
) -> bytes:
    """Return the signed request; `next_key` is the present one unless the site changes it."""
    fields = {
        "format": "kohort-renewal/1",
        "site": site,
        "certificate": certificate.public_bytes(serialization.Encoding.PEM).decode(),
        "node_key": key_line(next_key.public_key()),
        "handover": handover,
        "present": "",
        "next": "",
    }
    data = Asked.model_validate(fields).signed_bytes()
    for name, key in (("present", present), ("next", next_key)):
        fields[name] = base64.b64encode(key.sign(data, ALGORITHM)).decode()
    return canonical(fields)


def read_request(body: bytes) -> tuple[Asked, x509.Certificate]:
    """Return a request whose two signatures hold, and the certificate in it.

    Raises RefusedError (E-RENEWAL) for anything else. Whether an authority signed the certificate
    is not looked at.
    """
    # (1) size and fields
    if len(body) > REQUEST_CAP_BYTES:
        raise refusal("larger than any request")
    try:
        asked = Asked.model_validate_json(body)
    except ValidationError as error:
        raise refusal("not the fields of one") from error
    # (2) the certificate in it is this site's
    certificate = read_pem(asked.certificate)
    if name_of(certificate) != asked.site:
        raise refusal("its certificate is of another site")
    # (3) signed by the key of the present certificate, and by the next key
    data = asked.signed_bytes()
    _verify(_public_key(certificate), data, asked.present)
    _verify(parse_line(asked.node_key), data, asked.next)
    return asked, certificate


def write_answer(
    state: str, certificate: str = "", authority: str = "", sign_key: str = ""
) -> bytes:
    """Return the bytes of an answer."""
    fields = {"format": "kohort-renewal-answer/1", "state": state, "sign_key": sign_key}
    return canonical({**fields, "certificate": certificate, "authority": authority})


def read_answer(body: bytes) -> Answer:
    """Return an answer; raises RefusedError (E-RENEWAL) for anything else."""
    if len(body) > ANSWER_CAP_BYTES:
        raise refusal("larger than any answer")
    try:
        return Answer.model_validate_json(body)
    except ValidationError as error:
        raise refusal("not the fields of an answer") from error


def is_due(certificate: x509.Certificate, before: timedelta, now: datetime) -> bool:
    """Whether a certificate is in its last days, or of an older version, which made them long."""
    began, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return ends - now <= before or ends - began > LONG


def key_line(key: ec.EllipticCurvePublicKey) -> str:
    """Return a node key as its one line, without a comment."""
    return key.public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    ).decode()


def parse_line(line: str) -> ec.EllipticCurvePublicKey:
    """Return the EC key in a line that `key_line` wrote; raises RefusedError (E-RENEWAL)."""
    with damage_named(refusal("its next key is no key")):
        key = serialization.load_ssh_public_key(line.encode())
    if not isinstance(key, ec.EllipticCurvePublicKey) or key_line(key) != line:
        raise refusal("its next key is no EC key")
    return key


def read_pem(text: str) -> x509.Certificate:
    """Return the one certificate in a text; raises RefusedError (E-RENEWAL)."""
    with damage_named(refusal("no certificate in it")):
        [certificate] = x509.load_pem_x509_certificates(text.encode())
        certificate.subject.rfc4514_string()
        return certificate


def name_of(certificate: x509.Certificate) -> str:
    """Return the site that a certificate names; empty where it names none or several."""
    with damage_named(refusal("a certificate without a name")):
        names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        return str(names[0].value) if len(names) == 1 else ""


def _public_key(certificate: x509.Certificate) -> ec.EllipticCurvePublicKey:
    """The EC key in a certificate."""
    with damage_named(refusal("its certificate holds no key")):
        key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise refusal("its certificate holds no EC key")
    return key


def _verify(key: ec.EllipticCurvePublicKey, data: bytes, signature: str) -> None:
    """Refuse what a key did not sign."""
    try:
        key.verify(base64.b64decode(signature, validate=True), data, ALGORITHM)
    except (ValueError, InvalidSignature) as error:
        raise refusal("a signature in it does not hold") from error


def refusal(what: str) -> RefusedError:
    """Return the refusal of a request or an answer."""
    return RefusedError(
        f"renewal of a certificate: {what}",
        hint="both sides must run the same version of kohort; else ask the operator for a new "
        "join file",
        code="E-RENEWAL",
    )
