"""Sites on which commands are typed."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.cli.main import run_command_line
from client.daemon.site import Site
from client.ingest import refresh
from client.state.folder import State
from common.study.bundle import write_bundle
from common.wire import signing
from server.operator.certificates import create_authority
from server.operator.config import new_config
from server.operator.enrolment import enrol
from server.operator.state import ServerState
from tests.client.cli.typing_commands import Cli, photographs
from tests.sites import Hospital, make_hospital, scripted, write_plan


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run one command; returns (exit code, standard output, standard error)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run_command_line([str(argument) for argument in arguments])
        return (code, *capsys.readouterr())

    return run


@pytest.fixture(autouse=True)
def _no_text_detector(monkeypatch: pytest.MonkeyPatch) -> None:
    """Search no picture for text: it would cost each site of these tests a second."""
    monkeypatch.setattr(refresh, "is_installed", lambda: False)


@pytest.fixture
def joined(tmp_path: Path, cli: Cli) -> tuple[Path, Path]:
    """A site that has joined by the files alone, and the operator's signed bundle."""
    state = tmp_path / "site"
    labels = photographs(tmp_path / "data")
    code, out, _ = cli(
        "init",
        "--state",
        state,
        "--site",
        "hospital-a",
        "--data",
        tmp_path / "data",
        "--labels",
        labels,
    )
    assert code == 0
    assert "hospital-a.request.json" in out
    server, operator = ServerState(tmp_path / "server"), signing.new_key()
    config = new_config("test", "https://127.0.0.1:4433", server.config)
    create_authority(server.authority)
    join = tmp_path / "join.json"
    public = signing.public_text(operator.public_key())
    join.write_bytes(enrol(state / "hospital-a.request.json", server, config, public))
    code, out, _ = cli("join", "--state", state, join)
    assert code == 0
    assert signing.fingerprint(operator.public_key()) in out
    (tmp_path / "plan").mkdir()
    write_bundle(write_plan(tmp_path / "plan"), operator, tmp_path / "bundle")
    return state, tmp_path / "bundle"


@pytest.fixture
def worked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Hospital, Site]:
    """A site that has answered one round, and waits for a person with its images."""
    hospital = make_hospital(tmp_path)
    scripted(monkeypatch, hospital.study)
    site = hospital.site()
    State(hospital.root).membership.write_text(site.membership.model_dump_json())
    site.answer(hospital.ask("train"))
    site.stop.set()
    with pytest.raises(Exception, match="wait for review"):
        site.answer(hospital.ask("synthesize"))
    return hospital, site
