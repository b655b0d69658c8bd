"""The reserve: records are written on a full disk, and nothing else gets the room."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.errors import EnvironmentFault, disk_faults_named
from common.storage import reserve
from common.storage.files import atomic_write
from common.storage.journal import Journal
from common.storage.reserve import hold_reserve, make_room, release_reserve, write_with_reserve
from tests.full_disks import fill, free_bytes, small_disk


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk") as folder:
        yield folder


def test_the_reserve_takes_its_room_and_gives_it_back(disk: Path) -> None:
    before = free_bytes(disk)
    assert hold_reserve(disk)
    assert before - free_bytes(disk) >= reserve.SIZE_BYTES
    assert (disk / reserve.NAME).stat().st_mode & 0o777 == 0o600
    assert hold_reserve(disk)
    assert release_reserve(disk)
    assert free_bytes(disk) == before
    assert not release_reserve(disk)


def test_a_journal_goes_on_on_a_full_disk(disk: Path) -> None:
    assert hold_reserve(disk)
    journal = Journal(disk / "journal.sqlite")
    fill(disk)
    # more than any page that is there already
    for number in range(40):
        journal.append("key", "state", {"number": number, "text": "x" * 10_000})
    assert not (disk / reserve.NAME).exists()
    assert len(journal.entries()) == 40
    journal.close()


def test_a_journal_opens_on_a_full_disk(disk: Path) -> None:
    assert hold_reserve(disk)
    fill(disk)
    journal = Journal(disk / "journal.sqlite")
    journal.append("key", "state")
    journal.close()


def test_without_a_reserve_a_full_disk_is_named(disk: Path) -> None:
    fill(disk)
    with pytest.raises(EnvironmentFault) as refused:
        write_with_reserve(disk, lambda: atomic_write(disk / "file", bytes(10_000)))
    assert refused.value.code == "E-DISK-FULL"


def test_the_reserve_is_made_again_only_where_there_is_room(disk: Path) -> None:
    assert hold_reserve(disk)
    filler = fill(disk)
    write_with_reserve(disk, lambda: atomic_write(disk / "file", bytes(10_000)))
    assert not hold_reserve(disk)
    assert not (disk / reserve.NAME).exists()
    filler.unlink()
    assert hold_reserve(disk)


def test_room_for_the_reserve_alone_is_not_enough(disk: Path) -> None:
    filler = fill(disk)
    os.truncate(filler, filler.stat().st_size - reserve.SIZE_BYTES - 2 * reserve.LOW_BYTES)
    assert not hold_reserve(disk)
    os.truncate(filler, filler.stat().st_size - reserve.SIZE_BYTES)
    assert hold_reserve(disk)


def test_a_nearly_full_disk_gives_the_reserve_up_before_a_transaction(disk: Path) -> None:
    assert hold_reserve(disk)
    make_room(disk)
    assert (disk / reserve.NAME).exists()
    fill(disk)
    make_room(disk)
    assert free_bytes(disk) >= reserve.SIZE_BYTES - reserve.LOW_BYTES


def test_a_full_disk_is_met_once_and_other_faults_keep_the_reserve(tmp_path: Path) -> None:
    """The same without a file system of its own: the faults are raised."""
    assert hold_reserve(tmp_path, 4096)
    faults = [errno.EIO, errno.ENOSPC, errno.EDQUOT]

    def write() -> str:
        with disk_faults_named("cannot write", tmp_path):
            if faults:
                raise OSError(faults.pop(0), "no")
        return "written"

    with pytest.raises(EnvironmentFault):
        write_with_reserve(tmp_path, write)
    assert (tmp_path / reserve.NAME).exists()
    with pytest.raises(EnvironmentFault):
        write_with_reserve(tmp_path, write)
    assert not (tmp_path / reserve.NAME).exists()
    assert write_with_reserve(tmp_path, write) == "written"
