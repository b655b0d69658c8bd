"""The authority's key on another machine, renewal, and keys under a passphrase, by the commands."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from client.fleet.connection import create_node_key
from common import passphrase
from common.wire import keys, signing
from common.wire.messages import canonical
from server.cli import serve
from server.front import rules
from server.front.port import open_port
from server.front.sites import header_of
from server.operator.certificates import (
    load_authority,
    parse_site_key,
    read_certificate,
    site_certificate,
)
from server.operator.config import load_config
from server.operator.state import ServerState
from tests.passphrases import descriptor_of, forget_passphrase
from tests.server.cli.reports import Kohort

URL = "https://127.0.0.1:9443"


@pytest.fixture(autouse=True)
def no_passphrase(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_passphrase(monkeypatch)


@pytest.fixture
def apart(tmp_path: Path, kohort: Kohort) -> tuple[ServerState, Path]:
    """A server without the authority's key, and the folder of that key."""
    server, ca = tmp_path / "server", tmp_path / "stick" / "ca"
    code, _, errors = kohort("init", "--state", server, "--name", "demo", "--url", URL, "--ca", ca)
    assert code == 0, errors
    return ServerState(server), ca


def asked(folder: Path, name: str) -> Path:
    """The request file of a site whose node key lies in a folder."""
    create_node_key(folder / "node.key", folder / "node.pub", name)
    key = signing.new_key()
    fields = {
        "format": "kohort-request/1",
        "site": name,
        "node_key": " ".join((folder / "node.pub").read_text().split()[:2]),
        "sign_key": signing.public_text(key.public_key()),
    }
    fields["signature"] = signing.sign(key, signing.REQUEST, canonical(fields)).decode()
    path = folder / f"{name}.request.json"
    path.write_text(json.dumps(fields))
    return path


def status_at_the_front(state: ServerState, folder: Path) -> int:
    """What the front of this server says to a site with these files; no SuperLink is behind it."""
    join = json.loads((folder / "join.json").read_text())
    (folder / "node.crt").write_text(join["client_certificate"])
    context = ssl.create_default_context(cadata=join["ca"])
    context.load_cert_chain(folder / "node.crt", folder / "node.key")
    with open_port("127.0.0.1", 0) as listener:
        number = listener.fileno()
        front = [sys.executable, "-P", "-m", "server.front.process", str(state.root), str(number)]
        inherited = (number, *passphrase.descriptors())
        process = subprocess.Popen(front, pass_fds=inherited)
        try:
            url = f"https://127.0.0.1:{listener.getsockname()[1]}{rules.PULL_MESSAGES}"
            public = parse_site_key((folder / "node.pub").read_text())
            head = {"content-type": "application/protobuf", "flwr-public-key": header_of(public)}
            with httpx.Client(verify=context, trust_env=False, timeout=30) as client:
                return client.post(url, content=b"x", headers=head).status_code
        finally:
            process.terminate()
            process.wait(20)


def test_a_site_is_enrolled_where_only_the_authoritys_folder_is_and_then_connects(
    tmp_path: Path, apart: tuple[ServerState, Path], kohort: Kohort
) -> None:
    state, ca = apart
    assert not list(state.root.rglob("ca.key"))
    folder = tmp_path / "site"
    request = asked(folder, "hospital-a")
    # the server alone cannot, and says how
    code, _, errors = kohort("enrol", request, "--state", state.root)
    assert code == 2 and "certify" in errors
    assert "hospital-a" not in kohort("sites", "--state", state.root)[1]
    # the machine of the authority has its two files and nothing else
    assert sorted(path.name for path in ca.iterdir()) == ["ca.crt", "ca.key"]
    code, said, _ = kohort("certify", request, "--ca", ca, "--out", tmp_path / "a.crt")
    assert code == 0 and "a certificate of hospital-a" in said
    code, _, errors = kohort(
        "enrol", request, "--state", state.root, "--out", folder / "join.json",
        "--certificate", tmp_path / "a.crt",
    )  # fmt: skip
    assert code == 0, errors
    # admitted: nothing answers behind the front
    assert status_at_the_front(state, folder) == rules.UPSTREAM
    assert serve.issue_certificate(state, load_config(state.config)) is None
    assert not list(state.root.rglob("ca.key"))


def test_a_certificate_of_another_site_key_purpose_or_authority_enrols_nobody(
    tmp_path: Path, apart: tuple[ServerState, Path], kohort: Kohort
) -> None:
    state, ca = apart
    wanted = asked(tmp_path / "a", "hospital-a")
    others = {
        "another site": asked(tmp_path / "b", "hospital-b"),
        "another key": asked(tmp_path / "c", "hospital-a"),
    }
    for words, request in others.items():
        kohort("certify", request, "--ca", ca, "--out", tmp_path / f"{words}.crt")
    renamed = site_certificate(
        load_authority(ca), "hospital-b", json.loads(wanted.read_text())["node_key"]
    )
    (tmp_path / "another name.crt").write_bytes(renamed)
    foreign = tmp_path / "foreign"
    kohort("init", "--state", foreign, "--name", "other", "--url", URL)
    kohort("certify", wanted, "--ca", foreign / "ca", "--out", tmp_path / "another CA.crt")
    codes = {}
    for path in [*tmp_path.glob("*.crt"), state.tls / "server.crt"]:
        codes[path.stem] = kohort("enrol", wanted, "--state", state.root, "--certificate", path)[0]
    assert codes == {
        "another site": 1,
        "another key": 1,
        "another name": 1,
        "another CA": 2,
        "server": 1,
    }
    assert "hospital" not in kohort("sites", "--state", state.root)[1]


def test_the_servers_certificate_is_renewed_through_a_request(
    tmp_path: Path, apart: tuple[ServerState, Path], kohort: Kohort
) -> None:
    state, ca = apart
    old = read_certificate(state.tls / "server.crt")
    code, said, _ = kohort("renew", "--state", state.root)
    request = state.tls / "server.request.pem"
    assert code == 0 and str(request) in said
    assert read_certificate(state.tls / "server.crt") == old
    code, said, _ = kohort("certify", request, "--ca", ca, "--out", tmp_path / "server.crt")
    assert code == 0 and "this machine alone" in said
    code, said, errors = kohort(
        "renew", "--state", state.root, "--certificate", tmp_path / "server.crt"
    )
    assert code == 0 and "SIGHUP" in said, errors
    assert read_certificate(state.tls / "server.crt") != old
    serve.issue_certificate(state, load_config(state.config))
    assert not (state.tls / "next.key").exists()
    # the same once more: there is no request, and then one of another key
    again = ("renew", "--state", state.root, "--certificate", tmp_path / "server.crt")
    code, _, errors = kohort(*again)
    assert code == 2 and "no such file" in errors
    kohort("renew", "--state", state.root)
    code, _, errors = kohort(*again)
    assert code == 1 and "another key" in errors


def test_a_site_certificate_is_no_servers(
    tmp_path: Path, apart: tuple[ServerState, Path], kohort: Kohort
) -> None:
    state, ca = apart
    request = asked(tmp_path / "a", "hospital-a")
    kohort("certify", request, "--ca", ca, "--out", tmp_path / "a.crt")
    kohort("renew", "--state", state.root)
    old = read_certificate(state.tls / "server.crt")
    (state.tls / "next.key").write_bytes((tmp_path / "a" / "node.key").read_bytes())
    code, _, errors = kohort("renew", "--state", state.root, "--certificate", tmp_path / "a.crt")
    assert code == 1 and "no server's certificate" in errors
    assert read_certificate(state.tls / "server.crt") == old


def test_a_request_that_its_own_key_did_not_sign_gets_no_certificate(
    tmp_path: Path, apart: tuple[ServerState, Path], kohort: Kohort
) -> None:
    _, ca = apart
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "x")])
    builder = x509.CertificateSigningRequestBuilder().subject_name(name)
    good = builder.add_extension(
        x509.SubjectAlternativeName([x509.DNSName("x.example")]), critical=False
    ).sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    bare = builder.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    der = bytearray(good.public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1
    bad = x509.load_der_x509_csr(bytes(der))
    codes = []
    for request in (good, bad, bare):
        path = tmp_path / "request.pem"
        path.write_bytes(request.public_bytes(serialization.Encoding.PEM))
        codes.append(kohort("certify", path, "--ca", ca, "--out", tmp_path / "x.crt")[0])
    assert codes == [0, 1, 1]


def test_protected_keys_need_the_passphrase_that_a_descriptor_gives(
    tmp_path: Path, state: Path, kohort: Kohort
) -> None:
    folder = tmp_path / "site"
    request = asked(folder, "hospital-a")

    code, said, errors = kohort(
        "protect", "--state", state, "--new-passphrase-fd", descriptor_of(b"old one\n")
    )
    assert code == 0 and said.count("protected ") == 3, errors
    place = ServerState(state)
    for path in (place.operator_key, place.authority / "ca.key", place.tls / "server.key"):
        assert path.read_bytes().startswith(keys.PROTECTED)
        assert path.stat().st_mode & 0o777 == 0o600
    # what signs nothing needs none; what signs says what is missing, or wrong
    assert kohort("sites", "--state", state)[0] == kohort("status", "--state", state)[0] == 0
    code, _, errors = kohort("enrol", request, "--state", state)
    assert code == 2 and "none was given" in errors and "--passphrase-fd 3" in errors
    code, _, errors = kohort(
        "--passphrase-fd", descriptor_of(b"bad"), "enrol", request, "--state", state
    )
    assert code == 2 and "does not open" in errors
    out = folder / "join.json"
    code, _, errors = kohort(
        "--passphrase-fd",
        descriptor_of(b"old one"),
        "enrol",
        request,
        "--state",
        state,
        "--out",
        out,
    )
    assert code == 0, errors
    # a fresh certificate's key is protected as well, and the front opens it
    serve.issue_certificate(place, load_config(place.config))
    assert (place.tls / "server.key").read_bytes().startswith(keys.PROTECTED)
    assert status_at_the_front(place, folder) == rules.UPSTREAM
    # another passphrase: the old one opens, the new one closes
    code, _, errors = kohort(
        "protect", "--state", state, "--new-passphrase-fd", descriptor_of(b"new")
    )
    assert code == 0, errors
    passphrase.offer(b"new")
    signing.load_private(place.operator_key)


def test_a_folder_that_was_open_is_closed_and_anothers_is_refused(
    state: Path, kohort: Kohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    state.chmod(0o755)
    assert kohort("sites", "--state", state)[0] == 0
    assert state.stat().st_mode & 0o777 == 0o700
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    code, _, errors = kohort("sites", "--state", state)
    assert code == 5 and f"belongs to user {owner}" in errors
