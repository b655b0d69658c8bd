"""Files: capped reads, atomic writes, digests; and the two sides use the very same functions."""

import hashlib
import os
import tracemalloc
from pathlib import Path

import pytest

from common.storage import files as shared
from kohort import files
from kohort.errors import EnvironmentFault, RefusedError


def test_a_file_up_to_the_cap_is_read_and_one_byte_more_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert files.read_capped(path, 5) == b"12345"
    with pytest.raises(RefusedError, match="larger than the 4 bytes"):
        files.read_capped(path, 4)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    files.atomic_write(path, b"old", mode=0o600)
    assert path.stat().st_mode & 0o777 == 0o600

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(EnvironmentFault) as caught:
        files.atomic_write(path, b"new")
    assert caught.value.code == "E-DISK-FULL"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == b"old"


def test_a_digest_is_the_sha256_of_the_content(tmp_path: Path) -> None:
    data = bytes(range(256)) * 10_000
    (tmp_path / "file").write_bytes(data)
    assert files.file_digest(tmp_path / "file") == hashlib.sha256(data).hexdigest()


def test_the_two_sides_use_the_same_functions() -> None:
    for name in shared.__all__:
        assert getattr(shared, name) is getattr(files, name)


def test_a_small_file_takes_little_memory_whatever_the_cap(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    tracemalloc.start()
    try:
        assert files.read_capped(tmp_path / "file", 1 << 30) == b"12345"
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_what_says_no_size_is_read_up_to_the_cap_and_no_further() -> None:
    whole = files.read_capped(Path("/proc/self/status"), 1 << 16)
    assert whole.startswith(b"Name:") and whole.count(b"\n") > 10
    with pytest.raises(RefusedError, match="larger than the 100 bytes"):
        files.read_capped(Path("/dev/zero"), 100)
