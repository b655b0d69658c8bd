"""`kohort-server plan`, `pin` and `sign`: a plan from its draft to the signed bundle."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from common.config import parse_yaml
from common.privacy.accounting import epsilon_pld
from common.privacy.events import charged_image_event, round_event
from common.study.bundle import open_bundle
from common.study.plan import Study, load_study
from common.wire import signing
from server.operator import plan as plans
from server.operator.state import ServerState
from tests.federation import tiny_plan
from tests.server.cli.reports import Kohort, fake_report
from tests.sites import write_plan
from tests.sized_plans import IMAGES, KINDS, PLAN_PX, image_weights, write_misfit, wrong_files

STUDIES = Path(__file__).resolve().parents[3] / "deploy" / "studies"


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


def test_plan_prints_verdict_and_figures_for_people_and_programs(
    tmp_path: Path, kohort: Kohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    from common.privacy.plan_report import feasibility
    from tests.federation import pairs_plan

    # opacus takes seconds to load
    monkeypatch.setattr(plans, "feasibility", partial(feasibility, prv=False))
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


@pytest.mark.parametrize("form", [(), ("--json",)], ids=["text", "json"])
def test_plan_ends_with_an_error_for_a_plan_that_spends_more_than_it_promises(
    tmp_path: Path, kohort: Kohort, monkeypatch: pytest.MonkeyPatch, form: tuple[str, ...]
) -> None:
    from common.privacy.plan_report import feasibility

    monkeypatch.setattr(plans, "feasibility", partial(feasibility, prv=False))
    over = {"models__gan__noise_multiplier": 0.6, "privacy__epsilon": 1.0}
    path = tiny_plan(tmp_path / "plan", **over)
    code, output, errors = kohort("plan", path, *form)
    assert code == 3
    assert "over budget: it would spend epsilon" in output  # the whole report is printed first
    assert "over budget: it would spend epsilon" in errors
    assert "hint:" in errors


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


@pytest.mark.parametrize("name", ["fundus", "chest", "chest-demo"])
def test_a_preset_names_the_shipped_checkpoints(name: str) -> None:
    study = load_study(STUDIES / f"{name}.yaml")
    for checkpoint in study.checkpoints():
        assert (
            hashlib.sha256((STUDIES / checkpoint.file).read_bytes()).hexdigest()
            == checkpoint.sha256
        )


def test_the_fundus_study_trains_few_parameters() -> None:
    study = load_study(STUDIES / "fundus.yaml")
    assert plans.parameter_counts(study, STUDIES) == {"gan": 2305, "glow": 3072}


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_of_another_size_is_refused_by_plan_and_by_sign(
    tmp_path: Path, state: Path, kohort: Kohort, kind: str
) -> None:
    path = write_misfit(tmp_path / "plan", kind)
    for command in (("plan", path), ("sign", path, "--state", state, "--out", tmp_path / "out")):
        code, _, errors = kohort(*command)
        assert code == 3, command
        assert f"models.{kind}.start: {kind}.safetensors was made for" in errors
        assert "hint: set intake.size_px: 32, or pretrain" in errors
    assert not (tmp_path / "out").exists()


def test_a_plan_of_128_px_with_checkpoints_of_64_px_is_neither_planned_nor_signed(
    tmp_path: Path, state: Path, kohort: Kohort
) -> None:
    path = write_misfit(tmp_path / "plan", "gan", 128)
    for command in (("plan", path), ("sign", path, "--state", state, "--out", tmp_path / "out")):
        code, _, errors = kohort(*command)
        assert code == 3, command
        assert "made for intake.size_px 64; the plan has intake.size_px 128" in errors
        assert "hint: set intake.size_px: 64, or pretrain" in errors
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", range(3), ids=["another family", "truncated", "empty"])
def test_a_file_that_is_no_checkpoint_of_the_model_is_refused_by_plan_and_by_sign(
    tmp_path: Path, state: Path, kohort: Kohort, number: int
) -> None:
    folder = tmp_path / "plan"
    folder.mkdir()
    path = write_plan(folder, image_weights(PLAN_PX), **IMAGES)
    words, data = list(wrong_files(folder, "gan").items())[number]
    (folder / "gan.safetensors").write_bytes(data)
    assert kohort("pin", path)[0] == 0
    for command in (("plan", path), ("sign", path, "--state", state, "--out", tmp_path / "out")):
        code, _, errors = kohort(*command)
        assert code == 3, command
        assert "models.gan.start: " in errors
        assert words in errors
        assert "pretrain a checkpoint of the plan's sizes" in errors
    assert not (tmp_path / "out").exists()
