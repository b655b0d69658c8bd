"""A state folder that is open to others is closed, or refused where it is another user's."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from client.cli.state_folder import open_site
from client.state.folder import State
from client.state.private import close_to_others
from common.errors import EnvironmentFault
from tests.sites import make_hospital


def test_a_folder_that_is_open_to_others_is_closed_with_a_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hospital = make_hospital(tmp_path)
    State(hospital.root).membership.write_text(hospital.site().membership.model_dump_json())
    hospital.root.chmod(0o755)
    (hospital.root / "site.yaml").chmod(0o644)
    with caplog.at_level(logging.WARNING), open_site(hospital.root):
        pass
    assert "was open to other users" in caplog.text
    for path in (hospital.root, *hospital.root.rglob("*")):
        assert path.stat().st_mode & 0o077 == 0, path
    # in a closed folder, a file with more rights is no news
    caplog.clear()
    (hospital.root / "site.yaml").chmod(0o644)
    with open_site(hospital.root):
        pass
    assert caplog.text == ""
    assert (hospital.root / "site.yaml").stat().st_mode & 0o077 == 0


def test_what_a_link_points_to_is_not_changed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"")
    outside.chmod(0o644)
    root = tmp_path / "state"
    root.mkdir(mode=0o700)
    (root / "link").symlink_to(outside)
    assert not close_to_others(root)
    assert outside.stat().st_mode & 0o777 == 0o644


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_what_belongs_to_another_user_is_refused_and_nothing_is_changed(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "file").write_bytes(b"")
    os.chown(tmp_path / "file", 12345, -1)
    with pytest.raises(EnvironmentFault) as refused:
        close_to_others(tmp_path)
    assert refused.value.code == "E-STATE-OWNER"
    assert "chown" in refused.value.hint
    assert tmp_path.stat().st_mode & 0o777 == 0o755
