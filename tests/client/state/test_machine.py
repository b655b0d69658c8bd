"""A plan against the memory of this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.state import machine
from client.state.config import Limits, SiteCompute
from client.state.machine import GIB, Room, check_memory, memory_lines, read_room
from common.errors import EnvironmentFault
from common.study.forecast import peak_bytes, phases
from tests.sites import make_hospital, scripted
from tests.studies import small_study

STUDY = small_study()
NEEDED = peak_bytes(phases(STUDY))


def test_a_plan_that_fits_is_let_through_and_its_phases_are_shown() -> None:
    check_memory(STUDY, Room(NEEDED, NEEDED))
    check_memory(STUDY, Room(NEEDED // 2, 0, on_gpu=True))
    text = "\n".join(memory_lines(STUDY, Room(NEEDED, NEEDED)))
    for name in ("gan", "glow", "encoder", "invert", "align", "privatize"):
        assert f"    {name}: " in text
    assert "more than is free now" not in text
    assert "more than is free now: " in "\n".join(memory_lines(STUDY, Room(NEEDED, GIB // 4)))


@pytest.mark.parametrize(
    ("room", "words", "fix"),
    {
        "the site's limit": (
            Room(64 * GIB, 64 * GIB, GIB // 2),
            "limits.child_memory_gib is 0.5",
            "set limits.child_memory_gib to",
        ),
        "the machine": (
            Room(GIB // 2, GIB // 2),
            "this machine has 0.5 GiB",
            "take a machine with more than",
        ),
    }.values(),
    ids=str,
)
def test_a_plan_that_does_not_fit_is_refused_with_the_fix(room: Room, words: str, fix: str) -> None:
    with pytest.raises(EnvironmentFault) as refused:
        check_memory(STUDY, room)
    assert refused.value.code == "E-PLAN-MEMORY"
    assert words in str(refused.value)
    assert "nothing was spent" in str(refused.value)
    assert fix in refused.value.hint


def test_the_room_is_the_machines_own() -> None:
    room = read_room(Limits(child_memory_gib=2), SiteCompute())
    assert 0 < room.free_bytes <= room.total_bytes
    assert room.limit_bytes == 2 * GIB


def test_nothing_is_reserved_for_a_plan_that_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hospital = make_hospital(tmp_path)
    children = scripted(monkeypatch, hospital.study)
    text = (hospital.root / "site.yaml").read_text()
    assert "child_memory_gib: 0 " in text
    text = text.replace("child_memory_gib: 0 ", "child_memory_gib: 0.25 ")
    (hospital.root / "site.yaml").write_text(text)
    site = hospital.site()
    with pytest.raises(EnvironmentFault) as refused:
        site.answer(hospital.ask("train"))
    assert refused.value.code == "E-PLAN-MEMORY"
    assert children.runs == 0
    assert [row.kind for row in site.ledger().rows()] == ["open"]


def test_a_machine_with_a_gpu_is_not_judged_by_its_main_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for drivers, expected in (((), False), (("/dev/null",), True)):
        monkeypatch.setattr(machine, "DRIVERS", drivers)
        assert read_room(Limits(), SiteCompute()).on_gpu is expected


def test_processes_that_train_together_share_the_memory() -> None:
    study = small_study()
    most = max(phase.memory_bytes for phase in phases(study))
    check_memory(study, Room(2 * most, 2 * most))
    with pytest.raises(EnvironmentFault, match="gan about") as refused:
        check_memory(study, Room(2 * most, 2 * most, processes=8))
    assert refused.value.code == "E-PLAN-MEMORY"
