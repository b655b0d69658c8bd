"""When an answer leaves (docs/promises/5-nothing-else-leaves.md), as theorems, by a fake clock."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from client.daemon.site import Site
from client.fleet.app import record_of, reply_to
from common.errors import KohortError
from common.wire import signing
from common.wire.messages import Sealed
from tests.client.fleet.test_app import message_of
from tests.sites import Hospital, make_hospital, scripted

SLOT_S = 2.0
BEGAN_S = 1000.25


class Clock:
    """A clock that only work and waiting move."""

    def __init__(self) -> None:
        self.now_s = BEGAN_S

    def monotonic(self) -> float:
        return self.now_s


class FakeEvent(threading.Event):
    """Waits on the fake clock."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def wait(self, timeout: float | None = None) -> bool:
        self.clock.now_s += timeout or 0.0
        return self.is_set()


@pytest.fixture
def hospital(tmp_path: Path) -> Hospital:
    return make_hospital(tmp_path)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("client.daemon.site.time", clock)
    return clock


def site_with(hospital: Hospital, clock: Clock) -> Site:
    site = hospital.site(review="not_required")
    network = site.config.network.model_copy(update={"send_slot_s": SLOT_S})
    site.config = site.config.model_copy(update={"network": network})
    site.stop = FakeEvent(clock)
    return site


def works_for(children: Any, clock: Clock, work_s: float, script: str) -> None:
    """Let the scripted child take its time, then do what the script says."""
    children.script = [script] * 5
    original: Callable[[], Any] = children.script.pop

    class Script(list[str]):
        def pop(self, index: Any = -1) -> str:
            clock.now_s += work_s
            return str(original(index))

    children.script = Script(children.script)


def leaves_at(site: Site, clock: Clock, asked: Sealed) -> float:
    """The seconds after the question at which the answer leaves, whatever it is."""
    clock.now_s = BEGAN_S
    try:
        site.answer(asked)
    except KohortError:
        pass
    return clock.now_s - BEGAN_S


@pytest.mark.parametrize("work_s", [0.1, 1.9, 2.1, 3.7])
@pytest.mark.parametrize("script", ["finish", "refuse", "crash"])
def test_replies_and_refusals_leave_at_whole_multiples_of_the_slot(
    hospital: Hospital, clock: Clock, monkeypatch: pytest.MonkeyPatch, script: str, work_s: float
) -> None:
    children = scripted(monkeypatch, hospital.study)
    works_for(children, clock, work_s, script)
    left_s = leaves_at(site_with(hospital, clock), clock, hospital.ask("train"))
    worked_s = work_s * children.runs
    assert children.runs >= 1
    assert left_s == pytest.approx(SLOT_S * (worked_s // SLOT_S + 1))


REFUSED: dict[str, Callable[[Hospital], Sealed]] = {
    "signed by somebody else": lambda h: h.ask("train", key=signing.new_key()),
    "a plan that nobody approved": lambda h: h.ask("train", study="0" * 64),
    "a round that the plan has not": lambda h: h.ask("train", round=99),
    "a receipt for what was never sent": lambda h: h.ask("train", receipts=("0" * 64,)),
    "a part of images that were never made": lambda h: h.ask("synthesize", part=1, parts=2),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_before_any_work_leaves_at_the_slot(
    hospital: Hospital, clock: Clock, case: str
) -> None:
    asked = REFUSED[case](hospital)
    assert leaves_at(site_with(hospital, clock), clock, asked) == pytest.approx(SLOT_S)


def test_a_bug_leaves_at_the_slot(
    hospital: Hospital, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = site_with(hospital, clock)

    def break_down(*_: object) -> None:
        clock.now_s += 0.3
        raise ValueError("/data/Mueller.dcm")

    monkeypatch.setattr("client.daemon.site.check_order", break_down)
    sent: list[tuple[float, Any]] = []
    monkeypatch.setattr(
        "client.fleet.app.Message",
        lambda content, reply_to: sent.append((clock.now_s - BEGAN_S, content)),
    )
    reply_to(message_of(record_of(hospital.ask("train"))), site.answer)
    ((left_s, error),) = sent
    assert error.reason == "E-BUG"
    assert left_s == pytest.approx(SLOT_S)


def test_a_stored_reply_leaves_at_the_slot_too(
    hospital: Hospital, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    children = scripted(monkeypatch, hospital.study)
    site = site_with(hospital, clock)
    asked = hospital.ask("train")
    site.answer(asked)
    assert leaves_at(site, clock, asked) == pytest.approx(SLOT_S)
    assert children.runs == 1


def test_a_stopped_site_waits_for_no_slot(
    hospital: Hospital, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, hospital.study)
    site = hospital.site()
    network = site.config.network.model_copy(update={"send_slot_s": 3600.0})
    site.config = site.config.model_copy(update={"network": network})
    site.stop.set()
    with pytest.raises(KohortError):
        site.answer(hospital.ask("synthesize"))
