"""The logs of our programs are bounded, while their writers hold them open."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from server.flower import child, logs
from server.flower.child import Child
from server.flower.logs import cap_log


def test_a_log_that_grew_too_large_begins_anew_and_its_writer_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "superlink.log"
    cap_log(path)
    assert not path.exists()
    with path.open("ab", buffering=0) as writer:
        writer.write(b"a" * 100)
        cap_log(path, most=100)
        assert path.stat().st_size == 100
        writer.write(b"b")
        cap_log(path, most=100)
        writer.write(b"c")
    assert path.read_bytes() == b"c"
    assert (tmp_path / "superlink.log.1").read_bytes() == b"a" * 99 + b"b"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["superlink.log", "superlink.log.1"]


def test_a_program_that_talks_without_end_fills_no_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "cap_log", lambda path: logs.cap_log(path, most=50_000))
    one = Child("talker", ["/bin/sh", "-c", "exec yes kohort"], tmp_path / "talker.log")
    try:
        deadline = time.monotonic() + 10
        while not (tmp_path / "talker.log.1").exists() and time.monotonic() < deadline:
            one.keep({}, tmp_path)
            time.sleep(0.02)
        assert (tmp_path / "talker.log.1").stat().st_size == 50_000
        assert one.runs
    finally:
        one.end()
