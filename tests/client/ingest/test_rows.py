"""client/ingest/rows.py: rows come back as written, in any order; a full disk is an error."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from client.ingest.rows import RowFile


def test_rows_come_back_in_any_order_also_while_more_are_written(tmp_path: Path) -> None:
    rows = np.arange(10 * 6, dtype=np.uint16).reshape(10, 2, 3)
    file = RowFile(tmp_path / "rows", (2, 3), np.uint16)
    file.append(rows[:4])
    assert np.array_equal(file[np.array([3, 0, 0])], rows[[3, 0, 0]])
    file.append(rows[4:, :, ::-1])
    assert len(file) == 10
    assert np.array_equal(file[np.array([9, 1])], np.stack([rows[9][:, ::-1], rows[1]]))
    file.remove()
    file.remove()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("row", [-1, 2])
def test_a_row_that_was_not_written_is_an_error(row: int, tmp_path: Path) -> None:
    file = RowFile(tmp_path / "rows", (3,), np.uint8)
    file.append(np.zeros((2, 3), np.uint8))
    with pytest.raises(IndexError):
        file[np.array([row])]
    file.remove()


def test_a_file_that_lost_its_end_is_an_error(tmp_path: Path) -> None:
    file = RowFile(tmp_path / "rows", (3,), np.uint8)
    file.append(np.zeros((2, 3), np.uint8))
    with open(tmp_path / "rows", "r+b") as other:
        other.truncate(4)
    with pytest.raises(OSError, match="shorter"):
        file[np.array([1])]
    file.remove()


@pytest.fixture
def small_files() -> Iterator[None]:
    """This process may write files of at most 1,000 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, ignored)


@pytest.mark.usefixtures("small_files")
def test_a_full_disk_is_an_error_and_no_row(tmp_path: Path) -> None:
    file = RowFile(tmp_path / "rows", (600,), np.uint8)
    file.append(np.ones((1, 600), np.uint8))
    with pytest.raises(OSError):
        file.append(np.ones((1, 600), np.uint8))
    assert len(file) == 1
    file.remove()
