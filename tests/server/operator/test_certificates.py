"""The private CA: what is issued works in a real handshake, and what is wrong is named."""

from __future__ import annotations

import base64
import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from client.fleet.connection import create_node_key
from common.errors import ConfigurationError
from common.wire import keys
from server.front.sites import read_visitor
from server.operator.certificates import (
    Authority,
    ServerFiles,
    check_certificate,
    create_authority,
    issue_server_certificate,
    issue_site_certificate,
    load_authority,
    parse_site_key,
    read_certificate,
    site_certificate,
    to_pem,
)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return create_authority(tmp_path_factory.mktemp("ca"))


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> str:
    """Return the TLS version of one loopback handshake with one byte each way.

    An error of the client is raised here.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            raw, _ = listener.accept()
            try:
                with raw, server.wrap_socket(raw, server_side=True) as secure:
                    secure.recv(1)
                    secure.sendall(b"y")
            except OSError:
                pass

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            raw = socket.create_connection(listener.getsockname(), timeout=10)
            with raw, client.wrap_socket(raw, server_hostname=name) as secure:
                secure.sendall(b"x")
                assert secure.recv(1) == b"y"
                return str(secure.version())
        finally:
            thread.join(10)


def server_context(files: ServerFiles, *, wants_client: bool = False) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)
    if wants_client:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(files.ca)
    return context


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "fleet.example.org"])
def test_the_server_certificate_is_good_for_loopback_and_the_given_host(
    name: str, authority: Authority, tmp_path: Path
) -> None:
    files = issue_server_certificate(authority, tmp_path, ["fleet.example.org"])
    assert (
        handshake(server_context(files), ssl.create_default_context(cafile=str(files.ca)), name)
        == "TLSv1.3"
    )


def test_a_name_that_was_not_given_is_refused(authority: Authority, tmp_path: Path) -> None:
    files = issue_server_certificate(authority, tmp_path)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(
            server_context(files),
            ssl.create_default_context(cafile=str(files.ca)),
            "fleet.example.org",
        )


def test_a_site_certificate_lets_the_holder_of_the_node_key_in_and_nobody_else(
    authority: Authority, tmp_path: Path
) -> None:
    files = issue_server_certificate(authority, tmp_path / "server")
    create_node_key(tmp_path / "node.key", tmp_path / "node.pub", "a")
    issue_site_certificate(
        authority, "a", (tmp_path / "node.pub").read_text(), tmp_path / "node.crt"
    )
    context = ssl.create_default_context(cafile=str(files.ca))
    with pytest.raises((ssl.SSLError, ConnectionError)):
        handshake(server_context(files, wants_client=True), context, "localhost")
    context.load_cert_chain(tmp_path / "node.crt", tmp_path / "node.key")
    assert handshake(server_context(files, wants_client=True), context, "localhost") == "TLSv1.3"


def test_a_site_certificate_cannot_act_as_a_server(authority: Authority, tmp_path: Path) -> None:
    create_node_key(tmp_path / "node.key", tmp_path / "node.pub", "a")
    issue_site_certificate(
        authority, "a", (tmp_path / "node.pub").read_text(), tmp_path / "node.crt"
    )
    certificate = read_certificate(tmp_path / "node.crt")
    usages = certificate.extensions.get_extension_for_oid(
        ExtendedKeyUsageOID.CLIENT_AUTH.__class__("2.5.29.37")
    ).value
    assert list(usages) == [ExtendedKeyUsageOID.CLIENT_AUTH]  # type: ignore[call-overload]
    assert certificate.subject.rfc4514_string() == "CN=a"


def test_keys_are_p256_and_readable_by_their_owner_alone(
    authority: Authority, tmp_path: Path
) -> None:
    create_authority(tmp_path / "ca")
    files = issue_server_certificate(authority, tmp_path / "server")
    create_node_key(tmp_path / "node.key", tmp_path / "node.pub", "a")
    for path in (tmp_path / "ca" / "ca.key", files.key, tmp_path / "node.key"):
        assert path.stat().st_mode & 0o777 == 0o600
        key = serialization.load_pem_private_key(path.read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        assert key.curve.name == "secp256r1"


def test_an_authority_and_a_node_key_are_never_replaced(tmp_path: Path) -> None:
    first = create_authority(tmp_path)
    with pytest.raises(ConfigurationError, match="already here"):
        create_authority(tmp_path)
    assert load_authority(tmp_path).certificate == first.certificate
    create_node_key(tmp_path / "node.key", tmp_path / "node.pub", "a")
    with pytest.raises(ConfigurationError, match="already here"):
        create_node_key(tmp_path / "node.key", tmp_path / "node.pub", "a")


def test_renewal_replaces_the_server_certificate_under_the_same_authority(
    authority: Authority, tmp_path: Path
) -> None:
    old = read_certificate(issue_server_certificate(authority, tmp_path, days=1).certificate)
    files = issue_server_certificate(authority, tmp_path)
    assert check_certificate(
        files.certificate, authority.certificate
    ) > old.not_valid_after_utc + timedelta(days=700)


def test_wrong_files_are_named(authority: Authority, tmp_path: Path) -> None:
    files = issue_server_certificate(authority, tmp_path / "server")
    other = create_authority(tmp_path / "other")
    text = tmp_path / "text.crt"
    text.write_text("no certificate")
    expired = issue_server_certificate(authority, tmp_path / "expired", days=-1)
    later = datetime.now(UTC) + timedelta(days=3000)
    earlier = datetime.now(UTC) - timedelta(days=2)
    for path, ca, now, words in [
        (files.certificate, other, None, "not issued by"),
        (files.certificate, authority, later, "expired on"),
        (files.certificate, authority, earlier, "not valid before"),
        (expired.certificate, authority, None, "expired on"),
        (text, authority, None, "not a PEM certificate"),
        (tmp_path / "none.crt", authority, None, "no such file"),
    ]:
        with pytest.raises(ConfigurationError, match=words):
            check_certificate(path, ca.certificate, now=now)


def test_the_key_of_another_authority_is_refused(tmp_path: Path) -> None:
    create_authority(tmp_path / "a")
    create_authority(tmp_path / "b")
    (tmp_path / "a" / "ca.key").write_bytes((tmp_path / "b" / "ca.key").read_bytes())
    with pytest.raises(ConfigurationError, match="not the key of"):
        load_authority(tmp_path / "a")


@pytest.mark.parametrize("kind", ["words", "ed25519", "empty"])
def test_only_an_ec_key_line_gets_a_site_certificate(
    kind: str, authority: Authority, tmp_path: Path
) -> None:
    key = ed25519.Ed25519PrivateKey.generate().public_key()
    line = key.public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    ).decode()
    with pytest.raises(ConfigurationError, match="expected one line"):
        issue_site_certificate(
            authority,
            "a",
            {"words": "hello world", "ed25519": line, "empty": ""}[kind],
            tmp_path / "c",
        )
    assert not (tmp_path / "c").exists()


def test_a_certificate_that_the_library_refuses_in_its_own_way_is_named(
    authority: Authority, tmp_path: Path
) -> None:
    der = authority.certificate.public_bytes(serialization.Encoding.DER)
    odd = {
        "a version that does not exist": der.replace(
            b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x08"
        ),
        "a curve that is none": der.replace(
            bytes.fromhex("06082a8648ce3d030107"), bytes.fromhex("06082a8648ce3d030177")
        ),
    }
    for case, data in odd.items():
        assert data != der, case
        text = base64.encodebytes(data).decode()
        pem = f"-----BEGIN CERTIFICATE-----\n{text}-----END CERTIFICATE-----\n"
        create_authority(tmp_path / case)
        (tmp_path / case / "ca.crt").write_text(pem)
        with pytest.raises(ConfigurationError):
            load_authority(tmp_path / case)
        assert read_visitor(data) is None


def test_damage_within_a_name_is_named(tmp_path: Path) -> None:
    create_authority(tmp_path)
    file = tmp_path / "ca.crt"
    der = x509.load_pem_x509_certificate(file.read_bytes()).public_bytes(serialization.Encoding.DER)
    damaged = base64.encodebytes(der.replace(b" authority", b"\xffauthority", 1)).decode()
    file.write_text(f"-----BEGIN CERTIFICATE-----\n{damaged}-----END CERTIFICATE-----\n")
    with pytest.raises(ConfigurationError, match="not a PEM certificate"):
        load_authority(tmp_path)


def test_a_site_key_that_the_library_does_not_know_is_refused() -> None:
    parts = (b"ecdsa-sha2-nistp256", b"nistp256", b"\x02" + bytes(32))
    blob = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    line = f"ecdsa-sha2-nistp256 {base64.b64encode(blob).decode()}"
    with pytest.raises(ConfigurationError, match="not an OpenSSH public key"):
        parse_site_key(line)


class Clock(datetime):
    """A machine's clock that is wrong."""

    wrong_by = timedelta()

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
        return datetime.now(tz) + cls.wrong_by


def test_a_clock_that_fell_back_to_1970_makes_no_authority(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Clock, "wrong_by", datetime(1970, 1, 2, tzinfo=UTC) - datetime.now(UTC))
    monkeypatch.setattr("server.operator.certificates.datetime", Clock)
    with pytest.raises(ConfigurationError, match="clock says 1970-01-02") as found:
        create_authority(tmp_path)
    assert "set the clock" in str(found.value.hint)
    assert not list(tmp_path.iterdir())


def test_an_authority_of_a_clock_that_was_a_day_ahead_is_good_when_it_is_right_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Clock, "wrong_by", timedelta(days=1))
        patch.setattr("server.operator.certificates.datetime", Clock)
        create_authority(tmp_path)
    assert load_authority(tmp_path)


def intermediate(root: Authority, folder: Path) -> Authority:
    """An authority whose certificate another one signed."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a hospital group's authority")])
    builder = x509.CertificateBuilder().subject_name(subject)
    builder = builder.issuer_name(root.certificate.subject).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number())
    now = datetime.now(UTC)
    builder = builder.not_valid_before(now - timedelta(1)).not_valid_after(now + timedelta(9))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    found = Authority(builder.sign(root.key, hashes.SHA256()), key)
    folder.mkdir()
    (folder / "ca.crt").write_bytes(to_pem(found.certificate))
    (folder / "ca.key").write_bytes(keys.to_pem(key, None))
    return found


def test_a_chain_with_an_intermediate_authority_is_refused_by_its_name(
    authority: Authority, tmp_path: Path
) -> None:
    below = intermediate(authority, tmp_path / "ca")
    with pytest.raises(
        ConfigurationError, match="expected an authority that signs itself"
    ) as error:
        load_authority(tmp_path / "ca")
    assert "an intermediate authority is not taken" in error.value.hint
    # a site's certificate with the chain behind it
    create_node_key(tmp_path / "node.key", tmp_path / "node.pub", "a")
    line = (tmp_path / "node.pub").read_text()
    chain = site_certificate(below, "a", line) + to_pem(below.certificate)
    (tmp_path / "node.crt").write_bytes(chain)
    with pytest.raises(ConfigurationError, match="not issued by") as error:
        check_certificate(tmp_path / "node.crt", authority.certificate)
    assert "an intermediate authority is not taken" in error.value.hint
    # a single certificate of a stranger keeps its own advice
    (tmp_path / "node.crt").write_bytes(site_certificate(below, "a", line))
    with pytest.raises(ConfigurationError, match="not issued by") as error:
        check_certificate(tmp_path / "node.crt", authority.certificate)
    assert "of the same consortium" in error.value.hint
