"""A site's own certificate: a refusal is named before any connection."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from client.fleet.connection import FleetSettings, create_node_key
from client.fleet.failures import classify
from client.fleet.own_certificate import OutsideDates, check_own_certificate
from client.fleet.wire import Wire
from common.errors import ConfigurationError
from server.operator.certificates import create_authority, issue_site_certificate


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


@pytest.mark.parametrize("days", [-2, 398])
def test_a_certificate_outside_its_dates_is_named_with_both(
    settings: FleetSettings, days: int
) -> None:
    now = datetime.now(UTC) + timedelta(days=days)
    with pytest.raises(OutsideDates, match=f"valid from .* now it is {now:%Y-%m-%d}"):
        check_own_certificate(settings, now)


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
