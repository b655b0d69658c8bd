"""`kohort-site` as typed: from `init` to `check`, with exit codes and words."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from client.cli.approve import plan_lines
from client.cli.look import site_status
from client.cli.main import run_command_line
from client.daemon.site import Site
from client.state.folder import State
from common.storage.lock import FolderLock
from common.study.bundle import write_bundle
from common.wire import signing
from server.operator.certificates import create_authority
from server.operator.config import ServerState, new_config
from server.operator.sites import enrol
from tests import phantoms
from tests.sites import WEIGHTS, Hospital, make_hospital, scripted, write_plan

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run one command; returns (exit code, standard output, standard error)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run_command_line([str(argument) for argument in arguments])
        return (code, *capsys.readouterr())

    return run


def photographs(folder: Path) -> Path:
    """Twelve invented people with one photograph each, and their labels file."""
    folder.mkdir()
    rows = ["file,patient,label,laterality"]
    for i in range(12):
        Image.fromarray(phantoms.fundus(i, 64)).save(folder / f"{i}.png")
        rows.append(f"{i}.png,P{i},{'none' if i < 6 else 'severe'},R")
    labels = folder.parent / "labels.csv"
    labels.write_text("\n".join(rows) + "\n")
    return labels


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


def test_a_site_is_set_up_by_typing_and_everything_it_needs_is_checked(
    joined: tuple[Path, Path], cli: Cli
) -> None:
    state, bundle = joined
    code, _, err = cli("check", "--state", state)
    assert code == 2
    assert "no plan is approved" in err
    code, out, _ = cli("approve", "--state", state, bundle, "--yes")
    assert code == 0
    assert "each of at least 5 distinct patients" in out
    code, out, _ = cli("ingest", "--state", state)
    assert code == 0
    assert "12 files of 12 patients" in out
    assert "is there already" in cli("ingest", "--state", state)[1]
    assert cli("check", "--state", state, "--offline")[0] == 0
    code, _, err = cli("check", "--state", state)
    assert code == 2
    assert "nothing answers" in err
    code, out, _ = cli("status", "--state", state, "--json")
    facts = json.loads(out)
    assert facts["plans"][0]["rounds"] == {"gan": [0, 2], "glow": [0, 1]}
    assert facts["plans"][0]["images"] == "not made yet"
    assert cli("review", "--state", state)[1] == "no images have been made yet\n"


def test_keys_are_readable_by_their_owner_alone(joined: tuple[Path, Path], cli: Cli) -> None:
    state, _ = joined
    for name in ("node.key", "sign.key", "pseudonym.key"):
        assert (state / "keys" / name).stat().st_mode & 0o077 == 0
    (state / "keys" / "sign.key").chmod(0o644)
    code, _, err = cli("check", "--state", state)
    assert code == 2
    assert "readable by others" in err


def test_a_second_init_changes_nothing(joined: tuple[Path, Path], cli: Cli, tmp_path: Path) -> None:
    state, _ = joined
    before = {path: path.read_bytes() for path in state.rglob("*") if path.is_file()}
    code, _, err = cli("init", "--state", state, "--site", "other", "--data", tmp_path / "data")
    assert code == 2
    assert "is a site already" in err
    assert {path: path.read_bytes() for path in state.rglob("*") if path.is_file()} == before


def test_a_join_file_for_another_site_or_key_is_refused(
    joined: tuple[Path, Path], cli: Cli, tmp_path: Path
) -> None:
    state, _ = joined
    data = json.loads((state / "membership.json").read_text())
    other = tmp_path / "other.json"
    other.write_text(json.dumps(data | {"site": "hospital-b"}))
    assert cli("join", "--state", state, other)[0] == 2
    assert (
        cli(
            "init", "--state", tmp_path / "two", "--site", "hospital-a", "--data", tmp_path / "data"
        )[0]
        == 0
    )
    code, _, err = cli("join", "--state", tmp_path / "two", state / "membership.json")
    assert code == 2
    assert "another key" in err
    other.write_text(json.dumps(data | {"server_url": "http://plain"}))
    assert "server_url" in cli("join", "--state", state, other)[2]


def test_a_plan_of_a_stranger_or_above_the_policy_is_not_approved(
    joined: tuple[Path, Path], cli: Cli, tmp_path: Path
) -> None:
    state, bundle = joined
    (tmp_path / "plan2").mkdir()
    write_bundle(write_plan(tmp_path / "plan2"), signing.new_key(), tmp_path / "foreign")
    assert cli("approve", "--state", state, tmp_path / "foreign", "--yes")[0] == 1
    site = (state / "site.yaml").read_text()
    (state / "site.yaml").write_text(
        site.replace("min_k: 5", "min_k: 10").replace("max_epsilon: 10.0", "max_epsilon: 2")
    )
    code, _, err = cli("approve", "--state", state, bundle, "--yes")
    assert code == 3
    assert err.count("kohort-site: error:") == 2
    assert "kohort-site: hint:" in err
    assert cli("run", "--state", state)[0] == 3


def test_a_hopeless_plan_is_not_approved(cli: Cli, tmp_path: Path) -> None:
    weights = {
        "gan": {"generator.a": np.ones(3, np.float32), "critic.a": np.ones(40_000, np.float32)},
        "glow": WEIGHTS["glow"],
    }
    hospital = make_hospital(
        tmp_path, weights=weights, approve=False, privacy__accept_infeasible=False
    )
    line = signing.public_text(hospital.operator.public_key())
    join = {
        "format": "kohort-join/1",
        "site": "hospital-a",
        "server_url": "https://127.0.0.1:1",
        "ca": "",
        "operator_key": line,
    }
    (hospital.root / "membership.json").write_text(json.dumps({**join, "client_certificate": ""}))
    code, _, err = cli("approve", "--state", hospital.root, hospital.bundle, "--yes")
    assert code == 3
    assert "infeasible: at 100 patients a site this will not learn" in err
    assert "hint:" in err
    assert not hospital.site().plans.approved(hospital.study.hash())


def test_a_second_daemon_on_one_state_folder_is_refused(
    joined: tuple[Path, Path], cli: Cli
) -> None:
    state, _ = joined
    with FolderLock(state / "lock", "kohort-site run"):
        code, _, err = cli("run", "--state", state)
    assert code == 5
    assert "stop it first" in err


def test_usage_errors_end_with_2(cli: Cli, tmp_path: Path) -> None:
    assert cli("no-such-command")[0] == 2
    assert cli("status", "--state", tmp_path / "nowhere")[0] == 2


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


def test_the_ledger_says_what_was_spent_by_both_accountants(
    worked: tuple[Hospital, Site], cli: Cli
) -> None:
    root = worked[0].root
    code, out, _ = cli("ledger", "--state", root)
    assert code == 0
    assert all(
        word in out
        for word in ("PLD", "RDP", "cap 10", "subsampled gaussian", "laplace", "not composed")
    )
    facts = json.loads(cli("ledger", "--state", root, "--json")[1])
    assert 0 < facts["epsilon"]["pld"] <= facts["epsilon"]["rdp"] + 0.01
    assert facts["cap_epsilon"] == 10.0
    assert "chain is whole" in cli("ledger", "--state", root, "verify")[1]
    assert cli("ledger", "--state", root, "burn")[0] == 2


def test_a_person_decides_on_a_batch_by_typing(worked: tuple[Hospital, Site], cli: Cli) -> None:
    hospital, site = worked
    digest = site.reviews.find("").digest
    assert "waiting" in cli("review", "--state", hospital.root)[1]
    assert site_status(hospital.root)["plans"][0]["images"] == "waiting"
    assert cli("review", "--state", hospital.root, "--approve", "--reject")[0] == 2
    code, out, _ = cli(
        "review", "--state", hospital.root, "--approve", digest[:6], "--reviewer", "Dr. R"
    )
    assert code == 0
    assert "approved by Dr. R" in out
    assert (
        cli("review", "--state", hospital.root, "--reject", digest[:6], "--reviewer", "Dr. R")[0]
        == 3
    )
    hospital.site().answer(hospital.ask("synthesize"))
    assert site_status(hospital.root)["plans"][0] | {"name": "", "hash": ""} == {
        "name": "",
        "hash": "",
        "rounds": {"gan": (1, 2), "glow": (0, 1)},
        "images": "sent",
    }


def test_the_plans_text_names_the_privatized_part(tmp_path: Path) -> None:
    text = "\n".join(plan_lines(make_hospital(tmp_path).study))
    assert "25% of the groups" in text
    assert "fingerprint" in text
