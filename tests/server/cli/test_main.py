"""`kohort-server` as an operator types it: set-up, pin, plan, sign, enrol, sites, status, refusals with hints."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from common.config import parse_yaml
from common.errors import EnvironmentFault, PolicyError
from common.privacy.accounting import Spent, epsilon_pld
from common.privacy.mechanisms import charged_image_event, round_event
from common.privacy.planning import ModelReport, PlanReport
from common.storage.lock import FolderLock
from common.study.plan import Study, load_study, open_bundle
from common.wire import signing
from kohort.commands import run_typer
from server.cli import main as cli
from server.operator import plan as plans
from server.operator.config import ServerState
from server.operator.sites import Registry
from tests.federation import Federation, tiny_plan
from tests.server.operator.test_sites import request

STUDIES = Path(__file__).resolve().parents[3] / "deploy" / "studies"
Kohort = Callable[..., tuple[int, str, str]]


@pytest.fixture
def kohort(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Kohort:
    """Run a command; returns exit code, output and errors."""
    import sys

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(cli, "write", sys.stdout.write)
        code = run_typer(
            "kohort-server", lambda: cli.app([str(a) for a in arguments], standalone_mode=False)
        )
        output = capsys.readouterr()
        return code, output.out, output.err

    return run


@pytest.fixture
def state(tmp_path: Path, kohort: Kohort) -> Path:
    folder = tmp_path / "server"
    assert (
        kohort("init", "--state", folder, "--name", "demo", "--url", "https://localhost:9443")[0]
        == 0
    )
    return folder


def fake_report(verdict: str) -> Callable[..., PlanReport]:
    """Accounting without accountants: this file tests the gate behind them."""

    def report(study: Study, counts: dict[str, int], **named: object) -> PlanReport:
        models = tuple(
            ModelReport(name, round_event(study, name, counts[name]), plan, len(study.sites))
            for name, plan in study.models.trained().items()
        )
        return PlanReport(
            study, models, Spent(1e-5, 7.9, 8.4, 7.9, 0.0), 10.0, verdict, ("fewer rounds",)
        )

    return report


def test_init_makes_everything_and_replaces_nothing(state: Path, kohort: Kohort) -> None:
    place = ServerState(state)
    for path in (
        place.config,
        place.operator_key,
        place.authority / "ca.crt",
        place.tls / "server.crt",
    ):
        assert path.is_file()
    assert place.operator_key.stat().st_mode & 0o77 == 0
    code, _, errors = kohort(
        "init", "--state", state, "--name", "demo", "--url", "https://localhost:9443"
    )
    assert code == 2 and "set up here already" in errors


@pytest.mark.parametrize("url", ["http://localhost:1", "https://localhost", "localhost:1"])
def test_init_refuses_a_url_that_no_site_could_use(
    url: str, tmp_path: Path, kohort: Kohort
) -> None:
    code, _, errors = kohort("init", "--state", tmp_path / "s", "--name", "demo", "--url", url)
    assert code == 2 and "https://HOST:PORT" in errors and not (tmp_path / "s").exists()


def test_every_command_on_an_empty_folder_says_init(tmp_path: Path, kohort: Kohort) -> None:
    for command in (["sites"], ["status"]):
        code, _, errors = kohort(*command, "--state", tmp_path)
        assert code == 2 and "hint: kohort-server init" in errors


def test_pin_rewrites_the_digests_alone(tmp_path: Path, kohort: Kohort) -> None:
    source = (STUDIES / "fundus.yaml").read_text()
    study = parse_yaml(source, Study, Path("study.yaml"))
    for number, checkpoint in enumerate(study.checkpoints()):
        path = tmp_path / checkpoint.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes([number]))
    (tmp_path / "study.yaml").write_text(source)
    code, output, _ = kohort("pin", tmp_path / "study.yaml")
    text, expected = (tmp_path / "study.yaml").read_text(), source
    for number, checkpoint in enumerate(study.checkpoints()):
        digest = hashlib.sha256(bytes([number])).hexdigest()
        expected = expected.replace(checkpoint.sha256, digest)
        assert digest in output
    assert code == 0 and text == expected


def test_a_plan_over_its_budget_is_not_signed(
    tmp_path: Path, state: Path, kohort: Kohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_plan(tmp_path / "plan")
    for verdict, accepts, exit_code in (
        ("over budget", True, 3),
        ("infeasible", False, 3),
        ("infeasible", True, 0),
        ("feasible", False, 0),
    ):
        monkeypatch.setattr(plans, "feasibility", fake_report(verdict))
        data = json.loads(path.read_text())
        data["privacy"]["accept_infeasible"] = accepts
        path.write_text(json.dumps(data))
        out = tmp_path / f"{verdict}-{accepts}"
        code, output, errors = kohort("sign", path, "--state", state, "--out", out)
        assert code == exit_code, (verdict, accepts, errors)
        assert out.exists() == (exit_code == 0)
        assert ("read aloud" in output) == (exit_code == 0)


def test_a_signed_bundle_opens_with_the_operators_key(
    tmp_path: Path, state: Path, kohort: Kohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plans, "feasibility", fake_report("feasible"))
    path = tiny_plan(tmp_path / "plan")
    kohort("sign", path, "--state", state, "--out", tmp_path / "bundle")
    key = signing.load_private(ServerState(state).operator_key).public_key()
    assert open_bundle(tmp_path / "bundle", key) == load_study(path)


def test_a_plan_without_starting_weights_is_not_signed(
    tmp_path: Path, state: Path, kohort: Kohort
) -> None:
    path = tiny_plan(tmp_path / "plan")
    data = json.loads(path.read_text())
    del data["models"]["glow"]["start"]
    path.write_text(json.dumps(data))
    code, _, errors = kohort("sign", path, "--state", state, "--out", tmp_path / "bundle")
    assert code == 3 and "models.glow.start" in errors and "pretrain" in errors


def test_parameters_are_counted_without_generator_and_untrained_tensors(tmp_path: Path) -> None:
    path = tiny_plan(tmp_path / "plan", models__gan__trainable=["critic.b"])
    assert plans.parameter_counts(load_study(path), path.parent) == {"gan": 4, "glow": 7}


def test_enrol_writes_the_join_file_and_sites_lists_it(
    tmp_path: Path, state: Path, kohort: Kohort
) -> None:
    path = request(tmp_path / "hospital-a.request.json")
    code, output, _ = kohort("enrol", path, "--state", state, "--out", tmp_path / "a.join.json")
    join = json.loads((tmp_path / "a.join.json").read_text())
    registry = Registry(ServerState(state).sites)
    assert (
        code == 0
        and join["site"] == "hospital-a"
        and registry.get("hospital-a").fingerprint in output
    )
    registry.registered("hospital-a", 5)
    registry.quarantine("hospital-a", "E-GATE-07")
    assert "quarantined  E-GATE-07" in kohort("sites", "--state", state)[1]
    assert "registered" in kohort("sites", "--state", state, "release", "hospital-a")[1]
    assert "revoked" in kohort("sites", "--state", state, "revoke", "hospital-a")[1]
    code, _, errors = kohort("sites", "--state", state, "remove", "hospital-a")
    assert code == 2 and "revoke NAME" in errors


def test_status_tells_rounds_and_sites_from_the_journal(tmp_path: Path, kohort: Kohort) -> None:
    federation = Federation.create(tmp_path)
    federation.open()._train_round(federation.grid(), "gan", 0)
    code, output, _ = kohort("status", "--state", federation.state.root, "--json")
    facts = json.loads(output)
    assert code == 0 and [row["state"] for row in facts["sites"]] == ["registered"] * 3
    (study,) = facts["studies"]
    assert (study["done"], study["total"], study["phase"]) == (1, 4, "gan round 2 of 2")


def test_a_second_server_on_one_state_folder_is_refused(
    tmp_path: Path, state: Path, kohort: Kohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plans, "feasibility", fake_report("feasible"))
    kohort("sign", tiny_plan(tmp_path / "plan"), "--state", state, "--out", tmp_path / "bundle")
    with FolderLock(ServerState(state).lock, "a kohort server"):
        code, _, errors = kohort("run", tmp_path / "bundle", "--state", state)
    assert code == EnvironmentFault.exit_code and "already running" in errors


def test_a_release_needs_a_complete_study(
    tmp_path: Path, state: Path, kohort: Kohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plans, "feasibility", fake_report("feasible"))
    kohort("sign", tiny_plan(tmp_path / "plan"), "--state", state, "--out", tmp_path / "bundle")
    code, _, errors = kohort(
        "release", tmp_path / "bundle", "--state", state, "--out", tmp_path / "out"
    )
    assert (
        code == PolicyError.exit_code
        and "not complete" in errors
        and not (tmp_path / "out").exists()
    )


def test_a_complete_study_is_released_and_verifies(tmp_path: Path, kohort: Kohort) -> None:
    from kohort.manifest import verify

    federation = Federation.create(tmp_path)
    run = federation.run()
    run.registry.quarantine("hospital-c", "E-TEST")
    code, output, errors = kohort(
        "release", tmp_path / "bundle", "--state", federation.state.root, "--out", tmp_path / "out"
    )
    assert code == 0, errors
    (folder,) = (tmp_path / "out").iterdir()
    verify(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (
        manifest["images"] == 12
        and manifest["sites"] == ["hospital-a", "hospital-b"]
        and str(folder) in output
    )


def test_a_complete_study_of_pairs_is_released_and_compared_with_public_pairs(
    tmp_path: Path, kohort: Kohort
) -> None:
    from kohort.manifest import verify
    from tests.server.public_data.test_pairs import folder as public_folder

    federation = Federation.of_pairs(tmp_path)
    run = federation.run()
    run.registry.quarantine("hospital-c", "E-TEST")
    command = (
        "release",
        tmp_path / "bundle",
        "--state",
        federation.state.root,
        "--out",
        tmp_path / "out",
    )
    code, output, errors = kohort(*command, "--reference", public_folder(tmp_path / "public"))
    assert code == 0, errors
    (folder,) = (tmp_path / "out").iterdir()
    manifest = verify(folder)
    assert manifest.k is None and manifest.images == 12 and str(folder) in output
    assert manifest.sites == (
        "hospital-a",
        "hospital-b",
        "hospital-c",
    )  # all of them are in the weights
    names = {
        finding["name"]
        for finding in json.loads((folder / "evaluation.json").read_text())["findings"]
    }
    assert any("segmentation DSC" in name for name in names)
    run.registry.quarantine("hospital-b", "E-TEST")
    code, _, errors = kohort(*command)
    assert code == PolicyError.exit_code and "1 sites of the last round" in errors


def test_plan_prints_verdict_and_figures_for_people_and_programs(
    tmp_path: Path, kohort: Kohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    from common.privacy.planning import feasibility
    from tests.federation import pairs_plan

    monkeypatch.setattr(
        plans, "feasibility", partial(feasibility, prv=False)
    )  # opacus takes seconds to load
    path = pairs_plan(tmp_path / "plan", privacy__accept_infeasible=False)
    code, output, _ = kohort("plan", path)
    assert code == 0 and "would use the budget exactly" in output and "verdict: " in output
    code, output, _ = kohort("plan", path, "--json")
    facts = json.loads(output)
    model = facts["models"]["wgan"]
    assert (
        model["steps"] == 4
        and model["calibrated_noise_multiplier"] < 4.0 == model["noise_multiplier"]
    )
    assert (
        facts["sampler_delta"] < 1e-10
        and 0 < facts["share_of_cap"] < 1
        and facts["sentence"].startswith(facts["verdict"])
    )
    assert model["round_bytes"] > 4 * model["parameters"] == 4 * facts["parameters"]["wgan"]


def test_pretrain_makes_a_checkpoint_of_phantoms_that_a_plan_can_start_from(
    tmp_path: Path, kohort: Kohort
) -> None:
    from tests.federation import pairs_plan

    path = pairs_plan(tmp_path / "plan")
    command = (
        "pretrain",
        "--model",
        "wgan",
        "--out",
        tmp_path / "made",
        "--minutes",
        "0.02",
        "--study",
        path,
    )
    code, _, errors = kohort(*command)
    assert code == 2 and "--phantoms N" in errors
    code, output, errors = kohort(*command, "--phantoms", "2")
    assert code == 0 and "samples.png" in output, errors
    (tmp_path / "plan" / "wgan.safetensors").write_bytes(
        (tmp_path / "made" / "wgan.safetensors").read_bytes()
    )
    assert kohort("pin", path)[0] == 0
    assert (
        load_study(path).checkpoints()[0].sha256
        in (tmp_path / "made" / "MODEL_CARD.md").read_text()
    )
    assert plans.parameter_counts(load_study(path), path.parent)["wgan"] > 1000


@pytest.mark.parametrize("name", ["fundus", "chest", "vessels"])
def test_a_preset_is_valid_and_within_its_budget_by_pld(name: str) -> None:
    study = load_study(STUDIES / f"{name}.yaml")
    events = [
        replace(round_event(study, model, 1), steps=plan.steps)
        for model, plan in study.models.trained().items()
    ]
    images = charged_image_event(study)  # averages of random groups spend of the same epsilon
    spent = [*events, images] if images else events
    assert (
        study.privacy.epsilon * 0.9
        < epsilon_pld(spent, study.privacy.delta)
        <= study.privacy.epsilon
    )
    assert study.modality == name and (study.synthesis is None or study.synthesis.k >= 5)


def test_the_demo_study_names_the_shipped_checkpoints() -> None:
    study = load_study(STUDIES / "fundus.yaml")
    for checkpoint in study.checkpoints():
        assert (
            hashlib.sha256((STUDIES / checkpoint.file).read_bytes()).hexdigest()
            == checkpoint.sha256
        )
    assert plans.parameter_counts(study, STUDIES) == {"gan": 2305, "glow": 3072}
