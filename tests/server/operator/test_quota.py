"""Disk limits of server.yaml: checked before anything is written, with the fix."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from common.errors import EnvironmentFault
from server.operator import quota
from server.operator.quota import GIB, check_quota, folder_bytes


def test_the_bytes_of_a_folder_are_those_of_its_files_and_of_no_link(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "one").write_bytes(b"x" * 100)
    (tmp_path / "a" / "b" / "two").write_bytes(b"x" * 50)
    before = folder_bytes(tmp_path)
    assert before == 150
    (tmp_path / "loop").symlink_to(tmp_path)
    assert folder_bytes(tmp_path) - before < 200
    assert folder_bytes(tmp_path / "none") == 0


def test_a_limit_is_named_with_its_key_and_the_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_quota(tmp_path / "studies", "studies_gib", 1, GIB // 1000)
    monkeypatch.setattr(quota, "folder_bytes", lambda folder: GIB)
    with pytest.raises(EnvironmentFault, match=r"limits.studies_gib of server.yaml") as full:
        check_quota(tmp_path, "studies_gib", 1, 1)
    assert full.value.code == "E-QUOTA"
    assert "raise limits.studies_gib" in full.value.hint


def test_a_disk_without_room_is_named_before_it_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage(10, 9, 1))
    with pytest.raises(EnvironmentFault) as full:
        check_quota(tmp_path / "not" / "yet", "studies_gib", 1, 2)
    assert full.value.code == "E-DISK-FULL"
