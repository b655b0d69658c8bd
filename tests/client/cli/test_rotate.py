"""`rotate`, and what `check` says of a certificate, by typing."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from client.state.folder import State
from common.wire import signing
from server.operator.certificates import load_authority, site_certificate
from tests.client.cli.typing_commands import Cli


@pytest.mark.parametrize(
    ("which", "made"), [("node", "next_node_key"), ("signing", "next_sign_key")]
)
def test_a_new_key_is_made_once_and_the_old_one_stays_until_it_counts(
    joined: tuple[Path, Path], cli: Cli, which: str, made: str
) -> None:
    place = State(joined[0])
    before = place.node_key.read_bytes(), place.sign_key.read_bytes()
    code, out, _ = cli("rotate", which, "--state", place.root)
    assert code == 0
    assert "kohort-site run" in out
    key: Path = getattr(place, made)
    assert key.stat().st_mode & 0o077 == 0
    assert (place.node_key.read_bytes(), place.sign_key.read_bytes()) == before
    if which == "signing":
        for path in (place.sign_key, key):
            assert signing.fingerprint(signing.load_private(path).public_key()) in out
    code, _, err = cli("rotate", which, "--state", place.root)
    assert code != 0
    assert "already on its way" in err


def test_another_word_is_named(joined: tuple[Path, Path], cli: Cli) -> None:
    code, _, err = cli("rotate", "pseudonym", "--state", joined[0])
    assert code == 2
    assert "expected node or signing" in err


def test_check_names_a_certificate_that_has_expired(
    joined: tuple[Path, Path], cli: Cli, tmp_path: Path
) -> None:
    """410 days after the join file came: `check` once said ok."""
    place = State(joined[0])
    authority = load_authority(tmp_path / "server" / "ca")
    line = (place.root / "keys" / "node.pub").read_text()
    born = datetime.now(UTC) - timedelta(days=300)
    place.certificate.write_bytes(site_certificate(authority, "hospital-a", line, now=born))
    code, out, err = cli("check", "--offline", "--state", place.root)
    assert code == 2
    assert "certificates: 1 to repair" in out
    assert "node.crt has expired: valid from" in err
    assert "check this machine's clock; else ask the operator for a new join file" in err
    # one whose renewal is overdue is named while it still works
    for age, severity in ((20, "warning: "), (28, "")):
        born = datetime.now(UTC) - timedelta(days=age)
        place.certificate.write_bytes(site_certificate(authority, "hospital-a", line, now=born))
        _, out, err = cli("check", "--offline", "--state", place.root)
        assert f"{severity}certificate of this site ends on" in out + err
