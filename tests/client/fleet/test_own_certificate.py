"""A site's own certificate: a refusal is named before any connection."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from client.fleet import health as states
from client.fleet.connection import FleetSettings, create_node_key, tls_context
from client.fleet.expiry import ending_certificates, lifetimes
from client.fleet.failures import classify
from client.fleet.health import State
from client.fleet.own_certificate import OutsideDates, check_own_certificate
from client.fleet.wire import Wire
from common.errors import ConfigurationError
from server.operator.certificates import (
    create_authority,
    issue_server_certificate,
    issue_site_certificate,
    load_authority,
    read_certificate,
    site_certificate,
)


@pytest.fixture
def settings(tmp_path: Path) -> FleetSettings:
    authority = create_authority(tmp_path / "ca")
    create_node_key(tmp_path / "node.key", tmp_path / "node.pub", "a")
    public = (tmp_path / "node.pub").read_text()
    issue_site_certificate(authority, "a", public, tmp_path / "node.crt")
    return FleetSettings(
        "https://127.0.0.1:1",
        tmp_path / "ca" / "ca.crt",
        tmp_path / "node.key",
        tmp_path,
        tmp_path / "node.crt",
    )


def test_a_certificate_of_the_ca_that_is_valid_now_passes(settings: FleetSettings) -> None:
    check_own_certificate(settings)


@pytest.mark.parametrize(
    ("days", "fault"), [(-2, "is not valid yet"), (31, "has expired"), (410, "has expired")]
)
def test_a_certificate_outside_its_dates_is_named_with_both(
    settings: FleetSettings, days: int, fault: str
) -> None:
    now = datetime.now(UTC) + timedelta(days=days)
    with pytest.raises(
        OutsideDates, match=f"node.crt {fault}: valid from .* now it is {now:%Y-%m-%d}"
    ) as refused:
        check_own_certificate(settings, now)
    assert "check this machine's clock" in str(refused.value.hint)


def test_an_authority_outside_its_dates_is_named_and_not_called_unknown(
    settings: FleetSettings, tmp_path: Path
) -> None:
    """Its certificates end with it, so the file of an old one has to be put there by hand."""
    authority = load_authority(settings.ca_file.parent)
    later = datetime.now(UTC) + timedelta(days=3640)
    public = (tmp_path / "node.pub").read_text()
    text = site_certificate(authority, "a", public, days=30, now=later)
    (tmp_path / "node.crt").write_bytes(text)
    check_own_certificate(settings, later + timedelta(days=9))
    # an older version let a site's certificate outlive its authority
    [node, ca] = [read_certificate(path) for path in (tmp_path / "node.crt", settings.ca_file)]
    assert ca.not_valid_after_utc - node.not_valid_after_utc < timedelta(seconds=2)
    with pytest.raises(OutsideDates, match=r"has expired"):
        check_own_certificate(settings, later + timedelta(days=11))


def test_a_ca_file_of_two_authorities_trusts_both(settings: FleetSettings, tmp_path: Path) -> None:
    """While the consortium changes its authority."""
    create_authority(tmp_path / "next")
    both = (tmp_path / "next" / "ca.crt").read_bytes() + settings.ca_file.read_bytes()
    settings.ca_file.write_bytes(both)
    check_own_certificate(settings)


WRONG_CLOCKS = [
    (timedelta(days=-400), states.CLOCK_OFF),
    (timedelta(days=300), states.SERVER_CERTIFICATE_EXPIRED),
]


@pytest.mark.parametrize(("off", "state"), WRONG_CLOCKS, ids=["behind", "ahead"])
def test_a_wrong_clock_does_not_read_as_another_authority(
    tmp_path: Path, off: timedelta, state: State
) -> None:
    """The server's dates are moved instead of this machine's clock: it is the same to TLS."""
    now = datetime.now(UTC) - off
    ca = create_authority(tmp_path / "ca", now=now)
    files = issue_server_certificate(ca, tmp_path / "tls", days=30, now=now)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(files.certificate, files.key)
    client = tls_context(FleetSettings("https://localhost:1", files.ca, tmp_path, tmp_path))
    with pytest.raises(ssl.SSLCertVerificationError) as refused:
        shake_hands(client, server)
    found = classify(refused.value).state
    assert found is state
    assert "clock" in found.text + found.fix
    assert "CA" not in found.text


def shake_hands(client: ssl.SSLContext, server: ssl.SSLContext) -> None:
    """A handshake in memory; raises what the client says of the server."""
    ways = [ssl.MemoryBIO(), ssl.MemoryBIO()]
    ends = [
        client.wrap_bio(ways[0], ways[1], server_hostname="localhost"),
        server.wrap_bio(ways[1], ways[0], server_side=True),
    ]
    for _ in range(8):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue


@pytest.mark.parametrize(
    ("left_days", "severity"),
    [(16, None), (13, "warning"), (2, "error"), (-1, "error")],
)
def test_this_sites_certificate_is_named_once_its_renewal_is_overdue(
    settings: FleetSettings, left_days: int, severity: str | None
) -> None:
    now = datetime.now(UTC) + timedelta(days=30 - left_days)
    found = ending_certificates(settings, now)
    assert [one.severity for one in found] == ([severity] if severity else [])
    assert all(one.whose == "this site" for one in found)


def test_the_end_of_the_authority_is_named_while_there_is_time_to_change_it(
    settings: FleetSettings,
) -> None:
    now = datetime.now(UTC)
    [authority] = [one for one in lifetimes(settings) if one.whose == "the authority"]
    said = [
        [one.severity for one in ending_certificates(settings, now + timedelta(days=days))][1:]
        for days in (3550, 3580, 3600, 3640)
    ]
    assert said == [[], ["info"], ["warning"], ["error"]]
    assert authority.ends > now + timedelta(days=3640)


def test_a_certificate_of_another_ca_or_of_no_form_is_named(
    settings: FleetSettings, tmp_path: Path
) -> None:
    create_authority(tmp_path / "other")
    settings.ca_file.write_bytes((tmp_path / "other" / "ca.crt").read_bytes())
    with pytest.raises(ConfigurationError, match="not issued by"):
        check_own_certificate(settings)
    settings.ca_file.write_text("no certificate")
    with pytest.raises(ConfigurationError, match="not a certificate"):
        check_own_certificate(settings)


def test_no_connection_is_opened_with_an_expired_certificate(
    settings: FleetSettings, tmp_path: Path
) -> None:
    """Nothing listens at the address: that would be the failure of a connection."""
    authority = create_authority(tmp_path / "again")
    settings.ca_file.write_bytes((tmp_path / "again" / "ca.crt").read_bytes())
    public = (tmp_path / "node.pub").read_text()
    issue_site_certificate(authority, "a", public, tmp_path / "node.crt", days=-2)
    with pytest.raises(Exception, match="CLIENT-CERTIFICATE-DATES") as failed:
        Wire(settings).send_heartbeat(1)
    assert classify(failed.value).state.code == "CLIENT-CERTIFICATE-DATES"
