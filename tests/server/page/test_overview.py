"""The page of a state folder as it lies on disk."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from common.errors import ConfigurationError
from server.operator.state import ServerState
from server.page import disk
from server.page.overview import read_overview
from server.page.render import render_page
from tests.federation import Federation


def snapshot(root: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of every file."""
    found = {}
    for path in root.rglob("*"):
        if path.is_file() and not path.name.endswith(("-wal", "-shm")):
            found[str(path)] = (path.stat().st_size, path.stat().st_mtime_ns)
    return found


def test_a_consortium_is_shown_and_nothing_of_it_is_changed(tmp_path: Path) -> None:
    federation = Federation.create(tmp_path)
    run = federation.open()
    run.record.note_paused(
        run.record.place("train", "gan", 0), "E-QUORUM", "waiting for hospital-b"
    )
    run.record.close()
    run.registry.quarantine("hospital-c", "E-INTAKE-SIZE")
    place = federation.state
    # a page that opened the signing key would fail here
    place.operator_key.with_suffix(".pub").write_text(public_line(place))
    place.operator_key.write_text("nobody reads this")
    before = snapshot(place.root)
    found = read_overview(place, tmp_path / "releases")
    assert snapshot(place.root) == before
    codes = {alert.code for alert in found.alerts()}
    assert {"E-QUORUM", "SERVER-NOT-RUNNING", "E-INTAKE-SIZE"} <= codes
    text = render_page(found)
    for said in ("hospital-a", "small", "kohort-server sites release hospital-c", "studies_gib"):
        assert said in text
    assert "nobody reads this" not in text


def public_line(place: ServerState) -> str:
    """The operator's public key, as `init` writes it beside the other."""
    from common.wire import signing

    return signing.public_text(signing.load_private(place.operator_key).public_key())


def test_a_folder_that_is_no_servers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no server is set up here"):
        read_overview(ServerState(tmp_path))


def test_each_certificate_has_its_days(tmp_path: Path) -> None:
    federation = Federation.create(tmp_path)
    found = read_overview(federation.state)
    assert [one.ends for one in found.certificates] == sorted(
        one.ends for one in found.certificates
    )
    late = datetime.now(UTC) + timedelta(days=4000)
    ended = read_overview(federation.state, now=late).certificates
    assert all(one.days < 0 and one.severity == "error" for one in ended)


def test_a_folder_is_as_full_as_its_limit_or_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "weights").write_bytes(b"x" * 4096)
    limits = disk.Limits(studies_gib=1)
    free = {"bytes": 1 << 40}
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: usage._replace(free=free["bytes"]))
    studies, inbox = disk.read_disk(ServerState(tmp_path), limits, None)
    assert (studies.used_bytes, inbox.used_bytes) == (4096, 0)
    assert studies.share == 4096 / (1 << 30)
    free["bytes"] = 0
    studies, inbox = disk.read_disk(ServerState(tmp_path), limits, tmp_path / "r")[:2]
    assert studies.share == inbox.share == 1.0
