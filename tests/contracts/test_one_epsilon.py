"""One study has one epsilon: the same words and digits, whoever shows it.

"Epsilon is shown as 8 (approve), 2.01 (plan), 4.31 (ledger), at most 8.0 (page)."
"""

from __future__ import annotations

import html
import re
from dataclasses import replace
from pathlib import Path

import pytest

from client.cli.main import run_command_line
from client.state.folder import State
from common.wire import signing
from kohort.console import run_typer
from server.cli import main as server_cli
from server.cli.publish import make_account
from server.release.build import build_release
from tests.releases import release_inputs
from tests.sites import Hospital, make_hospital, scripted

pytestmark = pytest.mark.filterwarnings("ignore")  # third-party accountants


@pytest.fixture
def shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> dict[str, str]:
    """What each command and page says of one study that one hospital has completed."""
    hospital = make_hospital(tmp_path, approve=False)
    scripted(monkeypatch, hospital.study)
    State(hospital.root).membership.write_text(hospital.site().membership.model_dump_json())
    plan = hospital.bundle.parent / "study.yaml"
    said = {}

    def site(*arguments: object) -> str:
        assert run_command_line([str(one) for one in arguments]) == 0
        return capsys.readouterr().out

    typed = ["plan", str(plan)]
    assert run_typer("kohort-server", lambda: server_cli.app(typed, standalone_mode=False)) == 0
    said["plan"] = capsys.readouterr().out
    said["approve"] = site(
        "approve", hospital.bundle, "--state", hospital.root, "--yes", "--by", "A"
    )
    complete(hospital)
    for command in ("ledger", "review", "status"):
        said[command] = site(command, "--state", hospital.root)
    return said | release_texts(hospital, tmp_path)


def complete(hospital: Hospital) -> None:
    """Let the site answer every round, and let a person approve its images."""
    site = hospital.site()
    for model, plan in hospital.study.models.trained().items():
        for number in range(plan.rounds):
            site.answer(hospital.ask("train", model=model, round=number))
    site.stop.set()
    with pytest.raises(Exception, match="wait for review"):
        site.answer(hospital.ask("synthesize"))


def release_texts(hospital: Hospital, folder: Path) -> dict[str, str]:
    """The page and the statement of a release of the hospital's plan."""
    operator = signing.new_key()
    inputs = release_inputs(folder / "release", operator)
    account = make_account(hospital.study, hospital.bundle, [])
    release = build_release(replace(inputs, account=account), folder / "releases", operator)
    return {
        "page": html.unescape((release / "index.html").read_text()),
        "statement": (release / "privacy_statement.md").read_text(),
    }


def test_a_study_is_shown_with_one_epsilon_everywhere(shown: dict[str, str]) -> None:
    planned = {where: digits("planned", text) for where, text in shown.items()}
    assert len(set(planned.values())) == 1, planned
    promised = {where: digits("promised:? at most", text) for where, text in shown.items()}
    assert set(promised.values()) == {"8"}, promised


def test_what_a_completed_study_spent_is_what_it_planned(shown: dict[str, str]) -> None:
    planned = digits("planned", shown["plan"])
    after = digits("after this plan", shown["approve"])
    assert after == planned
    for where in ("ledger", "review", "status"):
        assert digits("spent so far", shown[where]) == planned, where
    assert digits("spent so far", shown["approve"]) == "0"


def test_left_and_cap_are_the_same_everywhere_on_the_site(shown: dict[str, str]) -> None:
    for where in ("ledger", "review", "status"):
        assert digits("cap", shown[where]) == "10"
        total = float(digits("left", shown[where])) + float(digits("spent so far", shown[where]))
        assert total == pytest.approx(10), where


def digits(word: str, text: str) -> str:
    """The digits that stand after a word."""
    found = re.search(rf"\b{word}\s+([0-9][0-9.,]*[0-9]|[0-9])", text)
    assert found is not None, (word, text)
    return found.group(1)
