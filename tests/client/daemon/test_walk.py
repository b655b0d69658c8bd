"""The walk of one instruction: each file of the daemon is entered once.

Definition: the calls of `Site.answer` are recorded in order, each as the file of client/daemon
whose code runs. site.py calls every step, so it is left out. Every other
file must then stand in one unbroken run: once another file is entered, nobody comes back to it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import client.daemon
from client.daemon import training
from tests.sites import Hospital, make_hospital, scripted

DAEMON = Path(client.daemon.__file__).parent
SPINE = "site.py"


@pytest.fixture
def hospital(tmp_path: Path) -> Hospital:
    return make_hospital(tmp_path)


def calls_of(act: Callable[[], object]) -> list[tuple[str, str]]:
    """The calls (file, function) into client/daemon while `act` runs, in order."""
    calls: list[tuple[str, str]] = []

    def note(frame: FrameType, event: str, _: object) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.parent == DAEMON:
            calls.append((path.name, frame.f_code.co_name))

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        act()
    finally:
        sys.setprofile(before)
    return calls


def files_in_order(calls: list[tuple[str, str]]) -> list[str]:
    """The files apart from site.py, one entry for each unbroken run of calls."""
    return [file for file, _ in groupby(file for file, _ in calls if file != SPINE)]


@pytest.mark.parametrize(("kind", "last"), [("train", "training.py"), ("synthesize", "images.py")])
def test_an_answered_instruction_enters_each_file_of_the_daemon_once(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch, kind: str, last: str
) -> None:
    scripted(monkeypatch, hospital.study)
    site = hospital.site(review="not_required")
    asked = hospital.ask(kind)
    calls = calls_of(lambda: site.answer(asked))
    print("\n".join(f"{file}: {function}" for file, function in calls))
    assert calls[0] == (SPINE, "answer")
    assert files_in_order(calls) == ["rounds.py", "path.py", "spending.py", "jobs.py", last]


def test_every_file_of_the_daemon_is_on_the_walk() -> None:
    # device.py looks before the first instruction comes; the others look on from beside
    apart = {"__init__.py", SPINE, "device.py"}
    apart |= {"certificates.py", "metrics.py", "own_people.py", "standing.py"}
    found = {path.name for path in DAEMON.glob("*.py")} - apart
    assert found == {"rounds.py", "path.py", "spending.py", "jobs.py", "training.py", "images.py"}


def test_a_stored_reply_enters_no_file_beside_the_spine(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, hospital.study)
    site = hospital.site()
    asked = hospital.ask("train")
    first = site.answer(asked)
    calls = calls_of(lambda: site.answer(asked))
    assert files_in_order(calls) == []
    assert site.answer(asked) == first


def test_a_step_that_goes_back_is_seen(hospital: Hospital, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above fails when a later step calls an earlier file again."""
    scripted(monkeypatch, hospital.study)
    site = hospital.site()
    clear = training.clear

    def clear_and_reserve_again(output: Any, *rest: Any) -> Any:
        site._spending.reserve(output.round)
        return clear(output, *rest)

    monkeypatch.setattr("client.daemon.training.clear", clear_and_reserve_again)
    asked = hospital.ask("train")
    files = files_in_order(calls_of(lambda: site.answer(asked)))
    assert files.count("spending.py") == 2
