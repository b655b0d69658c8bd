"""What a study may come to need, and what earlier starts left behind."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from common.errors import EnvironmentFault
from common.privacy import boundary
from common.wire import tensors
from common.wire.messages import HEADER_CAP_BYTES
from server.cli import serve
from server.front.sockets import SOCKETS
from server.operator.config import new_config
from server.operator.quota import folder_bytes
from server.rounds.loop import image_round, train_round
from server.rounds.room import bytes_to_come, largest_reply, sweep_parts, sweep_rounds
from tests.federation import Federation


def test_a_study_never_holds_more_than_was_foreseen(tmp_path: Path) -> None:
    federation = Federation.create(tmp_path)
    run = federation.open()
    foreseen = bytes_to_come(run.record)
    before = folder_bytes(run.record.root)
    for model, plan in run.study.models.trained().items():
        for number in range(plan.rounds):
            train_round(run, federation.grid(), model, number)
    image_round(run, federation.grid())
    journal = sum(path.stat().st_size for path in run.record.root.glob("journal*"))
    grown = folder_bytes(run.record.root) - before - journal
    assert 0 < grown < foreseen


def test_no_reply_is_larger_than_the_plan_lets_the_server_assemble(tmp_path: Path) -> None:
    federation = Federation.create(tmp_path)
    run = federation.open()
    bound = largest_reply(run.record)
    for model, plan in run.study.models.trained().items():
        for number in range(plan.rounds):
            update = tensors.dumps(run.record.weights(model, number))
            assert len(update) + HEADER_CAP_BYTES < bound
            train_round(run, federation.grid(), model, number)
    # far below what any plan may have: this one is tiny
    assert boundary.PART_CAP_BYTES < bound < boundary.UPDATE_CAP_BYTES // 4


def test_folders_of_closed_rounds_go_and_those_of_open_ones_stay(tmp_path: Path) -> None:
    federation = Federation.create(tmp_path)
    run = federation.open()
    train_round(run, federation.grid(), "gan", 0)
    for number in (0, 1):
        left = run.record.round_folder("gan", number)
        left.mkdir(parents=True)
        (left / "hospital-a.sealed").write_bytes(b"x")
    (run.record.root / "rounds" / "notes").mkdir()
    assert sweep_rounds(run.record) == 1
    names = sorted(path.name for path in (run.record.root / "rounds").iterdir())
    assert names == ["gan-000001", "notes"]


def test_unfinished_files_go_when_nobody_can_be_at_work_on_them(tmp_path: Path) -> None:
    old = time.time() - 7200
    for name in (".part-old", ".part-new", "part-of-a-name"):
        (tmp_path / "a").mkdir(exist_ok=True)
        (tmp_path / "a" / name).write_bytes(b"x")
    for name in (".part-old", "part-of-a-name"):
        os.utime(tmp_path / "a" / name, (old, old))
    assert sweep_parts(tmp_path) == 1
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        ".part-new",
        "part-of-a-name",
    ]


def test_a_start_sweeps_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    federation = Federation.create(tmp_path)
    run = federation.open()
    sockets = federation.state.superlink / SOCKETS
    sockets.mkdir(parents=True)
    (sockets / "front.sock").touch()
    part = federation.state.root / ".part-x"
    part.touch()
    os.utime(part, (0, 0))
    serve.sweep(federation.state, run.record)
    assert "swept 1 unfinished files and 0 folders" in capsys.readouterr().out
    assert not part.exists()
    assert list(sockets.iterdir()) == []
    serve.sweep(federation.state, run.record)
    assert capsys.readouterr().out == ""


def test_a_study_that_would_not_fit_is_not_started(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from server.cli.main import app

    federation = Federation.create(tmp_path)
    new_config("demo", "https://127.0.0.1:9443", federation.state.config)
    bundle = federation.state.study(federation.study.hash()) / "bundle"
    started: list[str] = []
    monkeypatch.setattr(serve, "serve", lambda *rest: started.append("yes"))
    monkeypatch.setattr(serve, "bytes_to_come", lambda record: 1 << 50)
    with pytest.raises(EnvironmentFault, match=r"limits.studies_gib of server.yaml allows 100"):
        app(["run", str(bundle), "--state", str(federation.state.root)], standalone_mode=False)
    assert started == []
