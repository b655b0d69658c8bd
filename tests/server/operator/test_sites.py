"""The registry: who may enrol, what each state allows, what survives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from common.errors import ConfigurationError, PolicyError, RefusedError
from common.wire import signing
from common.wire.messages import canonical
from server.operator.certificates import create_authority
from server.operator.config import ServerConfig
from server.operator.enrolment import enrol
from server.operator.requests import read_request
from server.operator.sites import Registry
from server.operator.state import ServerState

CONFIG = ServerConfig(name="demo", url="https://localhost:9443")


def request(path: Path, site: str = "hospital-a", **changes: Any) -> Path:
    """A site's request file, signed unless told otherwise."""
    key = changes.pop("key", None) or signing.new_key()
    node = ec.generate_private_key(ec.SECP256R1()).public_key()
    body: dict[str, Any] = {
        "format": "kohort-request/1",
        "site": site,
        "node_key": node.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode() + f" {site}",
        "sign_key": signing.public_text(key.public_key(), site),
    }
    altered = changes.pop("altered", {})
    body |= changes
    body["signature"] = signing.sign(key, signing.REQUEST, canonical(body)).decode()
    path.write_text(json.dumps(body | altered))
    return path


@pytest.fixture
def state(tmp_path: Path) -> ServerState:
    place = ServerState(tmp_path / "server")
    create_authority(place.authority)
    return place


def test_a_join_file_holds_what_the_site_needs(tmp_path: Path, state: ServerState) -> None:
    join = json.loads(enrol(request(tmp_path / "r.json"), state, CONFIG, "ssh-ed25519 AAAA demo"))
    assert {k: join[k] for k in ("format", "site", "server_url", "operator_key")} == {
        "format": "kohort-join/1",
        "site": "hospital-a",
        "server_url": "https://localhost:9443",
        "operator_key": "ssh-ed25519 AAAA demo",
    }
    certificate = x509.load_pem_x509_certificate(join["client_certificate"].encode())
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(join["ca"].encode()))
    assert "hospital-a" in certificate.subject.rfc4514_string()


def test_the_same_request_twice_gives_one_record_and_a_second_join_file(
    tmp_path: Path, state: ServerState
) -> None:
    path = request(tmp_path / "r.json")
    enrol(path, state, CONFIG, "line")
    enrol(path, state, CONFIG, "line")
    assert list(Registry(state.sites).sites()) == ["hospital-a"]


def test_a_name_belongs_to_the_first_who_enrolled_it(tmp_path: Path, state: ServerState) -> None:
    enrol(request(tmp_path / "a.json"), state, CONFIG, "line")
    with pytest.raises(RefusedError) as caught:
        enrol(request(tmp_path / "b.json"), state, CONFIG, "line")
    assert caught.value.code == "E-ENROL-NAME"


def test_a_key_belongs_to_one_site(tmp_path: Path, state: ServerState) -> None:
    key = signing.new_key()
    enrol(request(tmp_path / "a.json", key=key), state, CONFIG, "line")
    with pytest.raises(RefusedError) as caught:
        enrol(request(tmp_path / "b.json", "hospital-b", key=key), state, CONFIG, "line")
    assert caught.value.code == "E-ENROL-KEY"


def test_a_revoked_name_enrols_again_with_new_keys_only(tmp_path: Path, state: ServerState) -> None:
    path = request(tmp_path / "a.json")
    enrol(path, state, CONFIG, "line")
    Registry(state.sites).revoke("hospital-a")
    with pytest.raises(RefusedError, match="revoked"):
        enrol(path, state, CONFIG, "line")
    enrol(request(tmp_path / "b.json"), state, CONFIG, "line")
    assert Registry(state.sites).get("hospital-a").state == "enrolled"


REFUSED: dict[str, tuple[dict[str, Any], type[Exception]]] = {
    "its name was changed after signing": ({"altered": {"site": "hospital-b"}}, RefusedError),
    "its node key was changed after signing": (
        {"altered": {"node_key": "ecdsa-sha2-nistp256 AAAA"}},
        ConfigurationError,
    ),
    "it has another signature": ({"altered": {"signature": "x"}}, RefusedError),
    "it has an unknown field": ({"patients": 63}, ConfigurationError),
    "it has another format": ({"format": "kohort-request/2"}, ConfigurationError),
    "its name is no name": ({"site": "../a"}, ConfigurationError),
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_a_request_is_refused_when(sentence: str, tmp_path: Path) -> None:
    changes, error = REFUSED[sentence]
    with pytest.raises(error):
        read_request(request(tmp_path / "r.json", **changes))


def test_a_request_signed_by_another_key_is_refused(tmp_path: Path) -> None:
    other = signing.public_text(signing.new_key().public_key())
    with pytest.raises(RefusedError, match="another key"):
        read_request(request(tmp_path / "r.json", sign_key=other))


def test_states_follow_one_another_and_survive_a_new_process(
    tmp_path: Path, state: ServerState
) -> None:
    enrol(request(tmp_path / "r.json"), state, CONFIG, "line")

    def now() -> tuple[str, int | None, str, bool]:
        site = Registry(state.sites).get("hospital-a")
        return site.state, site.node_id, site.code, site.active

    registry = Registry(state.sites)
    assert now() == ("enrolled", None, "", False)
    registry.note_registered("hospital-a", 7)
    assert now() == ("registered", 7, "", True)
    registry.quarantine("hospital-a", "E-GATE-07")
    assert now() == ("quarantined", 7, "E-GATE-07", False)
    registry.release("hospital-a")
    assert now() == ("registered", 7, "", True)
    registry.revoke("hospital-a")
    assert now() == ("revoked", 7, "", False)
    registry.quarantine("hospital-a", "E-GATE-07")
    assert now() == ("revoked", 7, "", False)
    registry.note_unregistered("hospital-a")
    assert now() == ("revoked", None, "", False)


def test_release_needs_a_quarantine_and_a_known_name(tmp_path: Path, state: ServerState) -> None:
    enrol(request(tmp_path / "r.json"), state, CONFIG, "line")
    registry = Registry(state.sites)
    with pytest.raises(PolicyError):
        registry.release("hospital-a")
    with pytest.raises(ConfigurationError, match="known: hospital-a"):
        registry.quarantine("hospital-x", "E-X")
