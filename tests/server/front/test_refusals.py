"""What the front counts of its refusals, and what the server reads of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from common.errors import EnvironmentFault
from server.front import refusals, rules
from server.front.refusals import Refusals
from server.operator.refusals import FILE, read_refusals, write_refusals
from tests.server.front.test_quota import Front, front

__all__ = ["front"]


def test_each_refusal_is_counted_by_its_status_and_a_taken_request_is_not(
    front: Callable[[int], Front],
) -> None:
    one = front(rules.MIB)
    for path, size in (
        (rules.PULL_MESSAGES, 1),
        ("/v1/fleet/%70ull-messages?hospital-x", 1),
        (rules.PUSH_OBJECT, 2 * rules.MIB),
        (rules.PULL_MESSAGES, rules.MIB),
    ):
        one.ask(path, size)
    counts = one.proxy.refusals.counts
    seen = {status: count for status, count in counts.items() if count}
    assert seen == {rules.UNKNOWN_PATH: 1, rules.TOO_MANY: 1, rules.TOO_LARGE: 1}
    assert tuple(counts) == rules.REFUSALS


def test_the_answer_between_studies_is_no_refusal(front: Callable[[int], Front]) -> None:
    one = front(rules.MIB)
    one.proxy._between = True
    assert one.ask(rules.PULL_MESSAGES) == rules.BETWEEN
    assert not any(one.proxy.refusals.counts.values())


def test_the_file_holds_every_status_and_nothing_of_a_peer(tmp_path: Path) -> None:
    counts = Refusals()
    counts.note(rules.NOT_ENROLLED)
    write_refusals(tmp_path, counts.counts)
    assert read_refusals(tmp_path) == counts.counts
    assert not set((tmp_path / FILE).read_text()) - set('0123456789 ":,{}')


@pytest.mark.parametrize(
    "text",
    [b"", b"[]", b'{"200": 1}', b'{"hospital-x": 1}', b"\xff", b"[" * 4000, b" " * 4097],
    ids=["empty", "a list", "no refusal", "a name", "no text", "deep", "too long"],
)
def test_a_file_that_is_no_counts_counts_as_none(tmp_path: Path, text: bytes) -> None:
    (tmp_path / FILE).write_bytes(text)
    assert read_refusals(tmp_path) == {}


@pytest.mark.parametrize("value", ["-1", "1.5", "true", '"9"', "9" * 30, "NaN"])
def test_a_value_that_is_no_count_spoils_the_file(tmp_path: Path, value: str) -> None:
    write_refusals(tmp_path, dict.fromkeys(rules.REFUSALS, 7))
    text = (tmp_path / FILE).read_text().replace("7", value, 1)
    (tmp_path / FILE).write_text(text)
    assert read_refusals(tmp_path) == {}


def test_the_file_follows_the_counts_and_a_full_disk_hinders_no_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = Refusals()
    written: list[int] = []

    def write(root: Path, found: dict[int, int]) -> None:
        written.append(found[rules.TOO_MANY])
        if len(written) == 1:
            raise EnvironmentFault("full", code="E-DISK-FULL")
        write_refusals(root, found)

    async def play() -> None:
        keeping = asyncio.create_task(refusals.keep_written(tmp_path, counts))
        while len(written) < 2:
            await asyncio.sleep(0.001)
        counts.note(rules.TOO_MANY)
        while read_refusals(tmp_path).get(rules.TOO_MANY) != 1:
            await asyncio.sleep(0.001)
        keeping.cancel()

    monkeypatch.setattr(refusals, "WRITE_S", 0.001)
    monkeypatch.setattr(refusals, "write_refusals", write)
    asyncio.run(asyncio.wait_for(play(), 60))
    assert written == [0, 0, 1]
