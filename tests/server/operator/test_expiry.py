"""Certificates that end within a month are named, with what to do; revoked sites are not."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from server.cli.main import app
from server.front.process import _warn_daily
from server.front.sites import Sites
from server.operator.certificates import (
    create_authority,
    issue_server_certificate,
    load_authority,
)
from server.operator.expiry import ending_certificates
from server.operator.sites import Registry
from server.operator.state import ServerState
from tests.server.operator.test_sites import request


def test_what_ends_within_a_month_is_named_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "server"
    state = ServerState(root)
    url = "https://127.0.0.1:9443"
    app(["init", "--state", str(root), "--name", "demo", "--url", url], standalone_mode=False)
    app(
        ["enrol", str(request(tmp_path / "hospital-a.request.json")), "--state", str(root)],
        standalone_mode=False,
    )
    registry = Registry(state.sites)
    assert ending_certificates(state, registry.sites()) == []
    # a site's daemon renews from day 15 on; from day 14 on its operator hears of it
    later = datetime.now(UTC) + timedelta(days=15)
    assert ending_certificates(state, registry.sites(), later) == []
    # the site's ends first, the server's two years later, the authority's in ten years
    later = datetime.now(UTC) + timedelta(days=17)
    [site] = ending_certificates(state, registry.sites(), later)
    assert (site.whose, site.severity, site.ended) == ("hospital-a", "warning", False)
    [site] = ending_certificates(state, registry.sites(), later + timedelta(days=12))
    assert (site.severity, site.ended) == ("error", False)
    [site] = ending_certificates(state, registry.sites(), later + timedelta(days=20))
    assert "certificate of hospital-a ended on" in site.line
    later = datetime.now(UTC) + timedelta(days=3630)
    whose = [one.whose for one in ending_certificates(state, registry.sites(), later)]
    assert whose == ["hospital-a", "the server", "the authority"]
    registry.revoke("hospital-a")
    whose = [one.whose for one in ending_certificates(state, registry.sites(), later)]
    assert whose == ["the server", "the authority"]
    registry.close()
    # and `status` says so
    issue_server_certificate(load_authority(state.authority), state.tls, days=20)
    capsys.readouterr()
    app(["status", "--state", str(root)], standalone_mode=False)
    said = capsys.readouterr().out
    assert "info: certificate of the server ends on" in said
    assert "kohort-server renew" in said
    app(["status", "--state", str(root), "--json"], standalone_mode=False)
    assert [row["of"] for row in json.loads(capsys.readouterr().out)["ending"]] == ["the server"]


def test_the_front_says_so_in_its_log_when_it_starts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = ServerState(tmp_path / "server")
    issue_server_certificate(create_authority(state.authority), state.tls, days=10)
    Registry(state.sites).close()
    sites = Sites(state.sites)

    async def a_moment() -> None:
        watch = asyncio.create_task(_warn_daily(state, sites))
        await asyncio.sleep(0.01)
        watch.cancel()

    asyncio.run(a_moment())
    sites.close()
    assert "certificate of the server ends on" in caplog.text
