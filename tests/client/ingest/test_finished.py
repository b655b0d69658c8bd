"""Finished work of an intake: whole or not there, for the same work alone, and sealed."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.ingest import finished
from client.ingest.decode import Refused
from client.ingest.finished import NAME, Finished, entries_of, entry_of_series, go_on
from client.ingest.outcomes import pack, unpack
from client.ingest.quarantine import Reason, Unusable
from client.ingest.request import Cut, Photograph, Scan, Settings, VolumeFiles

SETTINGS = Settings(8, 3, ("OP",), None, 1 << 20, 1 << 20, 1 << 30, 30.0)
ENTRIES = [f"{number:032x}" for number in range(4)]


def photograph(number: int) -> Photograph:
    pixels = np.full((8, 8, 3), number, np.uint8)
    return Photograph(pixels, bytes([number] * 32), True, f"MRN-MARKER-{number}", "WEST", 1)


def same(left: Any, right: Any) -> bool:
    """Whether two outcomes are equal; arrays and refusals have no equality of their own."""
    return bool(pack(left) == pack(right) and type(left) is type(right))


@pytest.mark.parametrize(
    "outcome",
    [
        photograph(3),
        Reason.NOT_AN_IMAGE,
        Unusable(Reason.UNKNOWN_FORMAT),
        Refused(Reason.UNDECODABLE, 2, ends=True),
        Scan("slice", "c0ffee", "MRN-1", "", "1.2.3", "1.2"),
        Cut(
            bytes(32),
            (b"a" * 16, b"b" * 16),
            np.arange(64 * 64, dtype=np.uint8).reshape(64, 64, 1),
            None,
            np.full((2, 4, 4, 2), 255, np.uint8),
        ),
        Cut(bytes(32), (), np.zeros((64, 64, 1), np.uint8), Reason.MASK_GRID, np.empty((0,) * 4)),
        (photograph(1), photograph(2)),
        {3: Reason.MASK_GRID, 1: np.ones(2, np.uint16)},
        None,
    ],
)
def test_an_outcome_comes_back_as_it_was(outcome: object) -> None:
    back = unpack(pack(outcome))
    assert same(back, outcome)
    if isinstance(outcome, Photograph):
        np.testing.assert_array_equal(back.pixels, outcome.pixels)
        assert replace(back, pixels=outcome.pixels) == outcome or back.digest == outcome.digest
    if isinstance(outcome, Refused):
        assert (back.reason, back.at, back.ends) == (outcome.reason, outcome.at, outcome.ends)


@pytest.mark.parametrize("outcome", [object(), {1}, 1j, VolumeFiles((Path("a"),), None)])
def test_what_is_no_answer_of_a_child_is_not_packed(outcome: object) -> None:
    with pytest.raises(TypeError):
        pack(outcome)


def opened(folder: Path, key: bytes, **changes: Any) -> Finished:
    return Finished(folder / NAME, key, replace(SETTINGS, **changes))


@pytest.fixture
def three(tmp_path: Path, key: bytes) -> Path:
    """A file of three entries."""
    work = opened(tmp_path, key)
    for number in range(3):
        work.note(ENTRIES[number], photograph(number))
    work.close()
    return tmp_path / NAME


def test_what_is_finished_is_found_at_the_next_start_and_more_is_added(
    three: Path, key: bytes
) -> None:
    assert three.stat().st_mode & 0o777 == 0o600
    work = opened(three.parent, key)
    assert [entry in work for entry in ENTRIES] == [True, True, True, False]
    assert same(work.find(ENTRIES[1]), photograph(1))
    work.note(ENTRIES[3], Reason.NOT_AN_IMAGE)
    work.close()
    work = opened(three.parent, key)
    assert len(work) == 4
    assert work.find(ENTRIES[3]) is Reason.NOT_AN_IMAGE
    work.close()


def test_no_id_of_a_header_is_readable_on_the_disk(three: Path) -> None:
    data = three.read_bytes()
    assert b"MARKER" not in data and b"WEST" not in data
    # nor the pixels
    assert bytes([1] * 32) not in data


@pytest.mark.parametrize("share", [0.0, 0.1, 0.34, 0.5, 0.67, 0.9, 0.999])
def test_of_a_file_that_was_cut_the_whole_entries_count(
    share: float, three: Path, key: bytes
) -> None:
    size = three.stat().st_size
    os.truncate(three, int(size * share))
    work = opened(three.parent, key)
    count = len(work)
    assert count == max(0, int((size * share - finished.HEAD_BYTES) * 3 / (size - 72)))
    for number in range(count):
        assert same(work.find(ENTRIES[number]), photograph(number))
    # it goes on behind them, and nothing of the torn one is left
    assert three.stat().st_size == 72 + count * ((size - 72) // 3)
    work.note(ENTRIES[3], photograph(9))
    work.close()
    work = opened(three.parent, key)
    assert len(work) == count + 1
    assert same(work.find(ENTRIES[3]), photograph(9))
    work.close()


def test_one_altered_byte_anywhere_costs_its_entry_and_those_behind_it(
    three: Path, key: bytes
) -> None:
    data = three.read_bytes()
    size = (len(data) - finished.HEAD_BYTES) // 3
    for place in range(0, len(data), 41):
        three.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        work = opened(three.parent, key)
        assert len(work) == max(0, (place - finished.HEAD_BYTES) // size)
        work.close()


def test_other_work_begins_anew(three: Path, key: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    data = three.read_bytes()
    others: list[tuple[bytes, dict[str, Any]]] = [
        (bytes(32), {}),
        (key, {"size_px": 16}),
        (key, {"window": (0.0, 1.0)}),
        (key, {"max_file_bytes": 2}),
    ]
    for other, changes in others:
        three.write_bytes(data)
        work = opened(three.parent, other, **changes)
        assert len(work) == 0
        work.close()
        assert three.stat().st_size == finished.HEAD_BYTES
    # other rules of the program, too
    three.write_bytes(data)
    monkeypatch.setattr(finished, "program", lambda: "of another version")
    work = opened(three.parent, key)
    assert len(work) == 0
    work.close()


@pytest.mark.parametrize("reason", finished.PASSING)
def test_what_may_pass_is_tried_again(reason: Reason, tmp_path: Path, key: bytes) -> None:
    work = opened(tmp_path, key)
    for outcome in (reason, Unusable(reason), Refused(reason, None)):
        work.note(ENTRIES[0], outcome)
    assert len(work) == 0
    work.close()


def test_each_request_is_answered_once_and_in_order(three: Path, key: bytes) -> None:
    asked: list[list[int]] = []

    def decode(numbers: list[int]) -> Iterator[Photograph]:
        asked.append(numbers)
        yield from map(photograph, numbers)

    work = opened(three.parent, key)
    entries = [None, ENTRIES[3], ENTRIES[1], None, ENTRIES[0]]
    found = list(go_on(work, entries, [10, 3, 11, 13, 12], decode))
    assert asked == [[10, 3, 13]]
    for outcome, number in zip(found, (10, 3, 1, 13, 0), strict=True):
        assert same(outcome, photograph(number))
    assert len(work) == 4
    work.close()
    numbers = [1, 2, 3, 4, 5]
    assert [one.digest[0] for one in go_on(None, entries, numbers, decode)] == numbers


def test_a_file_that_changed_in_any_way_has_another_entry(tmp_path: Path, key: bytes) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"one")
    times = path.stat()

    def entry(name: str = "a.png") -> str | None:
        return entries_of([path], [name], key)[0]

    first = entry()
    assert first == entry() and first != entry("b.png")
    # the same size, and the time of its change put back
    path.write_bytes(b"two")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert entry() != first
    path.unlink()
    assert entry() is None


def test_a_series_has_an_entry_if_all_its_files_have_one(key: bytes) -> None:
    assert entry_of_series(["a", None], [], key) is None
    assert entry_of_series(["a", "b"], [None], key) is None
    found = {entry_of_series(*parts, key) for parts in ((["a", "b"], []), (["a"], ["b"]), ([], []))}
    assert len(found) == 3 and None not in found


def test_the_disk_waits_for_every_block(
    tmp_path: Path, key: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(finished, "SYNC_ENTRIES", 2)
    monkeypatch.setattr(finished.os, "fsync", synced.append)
    work = opened(tmp_path, key)
    for entry in ENTRIES[:3]:
        work.note(entry, Reason.NOT_AN_IMAGE)
    assert len(synced) == 1
    work.close()


def test_a_full_disk_is_an_error_of_the_disk(
    tmp_path: Path, key: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = opened(tmp_path, key)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(work, "_write", full)
    with pytest.raises(OSError, match="space"):
        work.note(ENTRIES[0], photograph(0))
    assert ENTRIES[0] not in work
    work.close()
