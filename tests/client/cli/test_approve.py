"""`kohort-site approve`, as typed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from client.cli.approve import plan_lines
from client.state.folder import State
from client.state.records import note_loss
from common.study.bundle import write_bundle
from common.wire import signing
from tests.client.cli.typing_commands import Cli
from tests.sites import WEIGHTS, Hospital, make_hospital, write_plan
from tests.sized_plans import IMAGES, KINDS, PLAN_PX, image_weights, misfit


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


def write_membership(hospital: Hospital) -> None:
    """What `kohort-site join` leaves in the state folder."""
    line = signing.public_text(hospital.operator.public_key())
    join = {
        "format": "kohort-join/1",
        "site": "hospital-a",
        "server_url": "https://127.0.0.1:1",
        "ca": "",
        "operator_key": line,
    }
    (hospital.root / "membership.json").write_text(json.dumps({**join, "client_certificate": ""}))


def test_a_plan_that_spends_more_than_it_promises_is_not_approved(cli: Cli, tmp_path: Path) -> None:
    hospital = make_hospital(
        tmp_path, approve=False, models__gan__noise_multiplier=0.6, privacy__epsilon=1.0
    )
    write_membership(hospital)
    code, _, err = cli("approve", "--state", hospital.root, hospital.bundle, "--yes")
    assert code == 3
    assert "over budget: it would spend epsilon" in err
    assert "the plan promises 1; nothing was spent" in err
    assert "hint:" in err
    assert not hospital.site().plans.is_approved(hospital.study.hash())


def test_a_plan_that_does_not_fit_beside_what_was_spent_is_not_approved(
    cli: Cli, tmp_path: Path
) -> None:
    hospital = make_hospital(tmp_path, approve=False)
    write_membership(hospital)
    note_loss(State(hospital.root), 9.8)
    code, out, err = cli("approve", "--state", hospital.root, hospital.bundle, "--yes")
    assert code == 3
    assert "9.8 of it before a loss" in out
    assert "policy.max_epsilon is 10" in err
    assert not hospital.site().plans.is_approved(hospital.study.hash())


def test_a_hopeless_plan_is_not_approved(cli: Cli, tmp_path: Path) -> None:
    weights = {
        "gan": {"generator.a": np.ones(3, np.float32), "critic.a": np.ones(40_000, np.float32)},
        "glow": WEIGHTS["glow"],
    }
    hospital = make_hospital(
        tmp_path, weights=weights, approve=False, privacy__accept_infeasible=False
    )
    write_membership(hospital)
    code, _, err = cli("approve", "--state", hospital.root, hospital.bundle, "--yes")
    assert code == 3
    assert "infeasible: at 100 patients a site this will not learn" in err
    assert "hint:" in err
    assert not hospital.site().plans.is_approved(hospital.study.hash())


@pytest.mark.parametrize("kind", KINDS)
def test_a_plan_with_a_checkpoint_of_another_size_is_not_approved(
    cli: Cli, tmp_path: Path, kind: str
) -> None:
    weights, changes = misfit(kind)
    hospital = make_hospital(tmp_path, weights=weights, approve=False, **changes)
    write_membership(hospital)
    code, _, err = cli("approve", "--state", hospital.root, hospital.bundle, "--yes")
    assert code == 3
    assert f"models.{kind}.start: {kind}.safetensors was made for intake.size_px 32" in err
    assert "hint: set intake.size_px: 32, or pretrain" in err
    assert not hospital.site().plans.is_approved(hospital.study.hash())


def test_a_plan_whose_checkpoint_is_another_models_is_not_approved(
    cli: Cli, tmp_path: Path
) -> None:
    weights = image_weights(PLAN_PX)
    weights["glow"] = weights["gan"]
    hospital = make_hospital(tmp_path, weights=weights, approve=False, **IMAGES)
    write_membership(hospital)
    code, _, err = cli("approve", "--state", hospital.root, hospital.bundle, "--yes")
    assert code == 3
    assert "models.glow.start: glow.safetensors: a checkpoint of models.gan" in err
    assert not hospital.site().plans.is_approved(hospital.study.hash())


def test_the_plans_text_names_the_privatized_part(tmp_path: Path) -> None:
    text = "\n".join(plan_lines(make_hospital(tmp_path).study))
    assert "25% of the groups" in text
    assert "fingerprint" in text


def test_the_plans_text_says_what_the_plan_claims(tmp_path: Path) -> None:
    text = list(plan_lines(make_hospital(tmp_path).study))
    claimed = [line.removeprefix("  claimed      ") for line in text if "claimed" in line]
    assert claimed == [
        "updates: epsilon 8 for one patient (zero-out of one patient): "
        "what each site sent through training",
        "k-anonymity, no epsilon: "
        "every image: it aggregates at least 5 distinct patients of one site",
        "privatized averages: epsilon 492 for one average (replace-one patient): "
        "each privatized average by itself: 25% of the groups",
    ]
