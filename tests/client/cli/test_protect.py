"""The site's two keys under a passphrase: `protect`, and what opens them."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.fleet.connection import FleetSettings, read_node_key, tls_context
from client.state.folder import State
from common import passphrase
from common.errors import ConfigurationError
from common.wire import keys, signing
from tests.client.cli.typing_commands import Cli
from tests.passphrases import descriptor_of, forget_passphrase


@pytest.fixture(autouse=True)
def no_passphrase(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_passphrase(monkeypatch)


def test_protected_keys_open_with_their_passphrase_alone(
    joined: tuple[Path, Path], cli: Cli
) -> None:
    state, _ = joined
    place = State(state)
    node, signer = read_node_key(place.node_key), signing.load_private(place.sign_key)
    code, said, errors = cli(
        "protect", "--state", state, "--new-passphrase-fd", descriptor_of(b"words\n")
    )
    assert code == 0 and said.count("protected ") == 2, errors
    for path in (place.node_key, place.sign_key):
        assert path.read_bytes().startswith(keys.PROTECTED)
        assert path.stat().st_mode & 0o777 == 0o600
    settings = FleetSettings(
        "https://127.0.0.1:1",
        state / "ca.crt",
        place.node_key,
        state / "fleet",
        state / "node.crt",
    )
    # without one and with another one the error is named, and nothing asks a terminal
    for wrong in (b"", b"other"):
        if wrong:
            passphrase.offer(wrong)
        with pytest.raises(ConfigurationError) as refused:
            read_node_key(place.node_key)
        with pytest.raises(ConfigurationError, match="not usable for TLS"):
            tls_context(settings)
        assert refused.value.code == "E-PASSPHRASE"
        with pytest.raises(ConfigurationError, match="passphrase"):
            signing.load_private(place.sign_key)
    assert cli("--passphrase-fd", descriptor_of(b"other"), "check", "--state", state)[0] != 0
    assert (
        "does not open"
        in cli("--passphrase-fd", descriptor_of(b"other"), "check", "--state", state)[2]
    )
    passphrase.offer(b"words")
    assert read_node_key(place.node_key).private_numbers() == node.private_numbers()
    assert signing.load_private(place.sign_key).private_bytes_raw() == signer.private_bytes_raw()
    # TLS takes the pair
    assert tls_context(settings).cert_store_stats()["x509_ca"] == 1
