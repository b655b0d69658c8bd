"""`kohort-server run` and `status`: one server a folder, progress from the journal."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from common.errors import ConfigurationError, EnvironmentFault
from common.notify import READY
from common.storage.lock import FolderLock
from server.operator import plan as plans
from server.operator.state import ServerState
from server.rounds.loop import train_round
from server.rounds.record import StudyRecord
from tests.federation import Federation, tiny_plan
from tests.server.cli.reports import Kohort, fake_report


def test_status_tells_rounds_and_sites_from_the_journal(tmp_path: Path, kohort: Kohort) -> None:
    federation = Federation.create(tmp_path)
    train_round(federation.open(), federation.grid(), "gan", 0)
    code, output, _ = kohort("status", "--state", federation.state.root, "--json")
    facts = json.loads(output)
    assert code == 0 and [row["state"] for row in facts["sites"]] == ["registered"] * 3
    (study,) = facts["studies"]
    assert (study["done"], study["total"], study["phase"]) == (1, 4, "train gan round 2 of 2")


def test_a_second_server_on_one_state_folder_is_refused(
    tmp_path: Path, state: Path, kohort: Kohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plans, "feasibility", fake_report("feasible"))
    kohort("sign", tiny_plan(tmp_path / "plan"), "--state", state, "--out", tmp_path / "bundle")
    with FolderLock(ServerState(state).lock, "a kohort server"):
        code, _, errors = kohort("run", tmp_path / "bundle", "--state", state)
    assert code == EnvironmentFault.exit_code and "already running" in errors


def test_a_study_that_cannot_be_read_hides_neither_the_others_nor_their_ways_out(
    tmp_path: Path, kohort: Kohort
) -> None:
    federation = Federation.create(tmp_path)
    train_round(federation.open(), federation.grid(), "gan", 0)
    root = federation.state.root
    broken = root / "studies" / ("0" * 64) / "bundle"
    shutil.copytree(federation.state.study(federation.study.hash()) / "bundle", broken)
    (broken / "study.sig").write_text("of another version")
    code, output, _ = kohort("status", "--state", root)
    assert code == 0 and "1 of 4 rounds" in output and "000000000000" in output
    facts = json.loads(kohort("status", "--state", root, "--json")[1])
    assert [row["hash"] for row in facts["unreadable"]] == ["0" * 64]
    code, _, errors = kohort("study", "--state", root, "abandon", federation.study.name)
    assert code == 0, errors


def test_the_front_is_given_the_plans_largest_reply(
    tmp_path: Path, state: Path, kohort: Kohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[int] = []

    def refuse(*arguments: object) -> None:
        given.append(int(str(arguments[3])))
        raise EnvironmentFault("enough")

    monkeypatch.setattr(plans, "feasibility", fake_report("feasible"))
    monkeypatch.setattr("server.cli.serve.open_door", refuse)
    bundle = tmp_path / "bundle"
    kohort("sign", tiny_plan(tmp_path / "plan"), "--state", state, "--out", bundle)
    code, _, errors = kohort("run", bundle, "--state", state)
    assert code == EnvironmentFault.exit_code and "enough" in errors
    # a part of images, and what Flower adds
    assert given == [48 << 20]


def test_a_study_that_is_complete_already_is_told_to_systemd_as_ready(
    tmp_path: Path, state: Path, kohort: Kohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(plans, "feasibility", fake_report("feasible"))
    monkeypatch.setattr("server.cli.serve.notify", told.append)
    monkeypatch.setattr(StudyRecord, "ended", lambda record: True)
    bundle = tmp_path / "bundle"
    kohort("sign", tiny_plan(tmp_path / "plan"), "--state", state, "--out", bundle)
    code, output, _ = kohort("run", bundle, "--state", state)
    assert (code, told) == (0, [READY]) and "is complete" in output


def test_a_port_is_refused_where_nginx_has_it(tmp_path: Path, state: Path, kohort: Kohort) -> None:
    config = ServerState(state).config
    text = config.read_text()
    assert "front: embedded" in text
    config.write_text(text.replace("front: embedded", "front: nginx"))
    code, _, errors = kohort("run", tmp_path, "--state", state, "--port", 9555)
    assert code == ConfigurationError.exit_code
    assert "--port 9555: nginx listens, on port 9443" in errors and "listen.port" in errors
