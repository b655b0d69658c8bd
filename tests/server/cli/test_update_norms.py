"""The norm caps of plans: written where they are missing, and what the presets have."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from common.config import parse_yaml
from common.errors import ConfigurationError
from common.study.plan import Study, load_study
from common.wire import tensors
from server.operator import plan as plans
from server.operator.update_norms import update_norms, write_missing_norms
from tests.federation import pairs_plan, tiny_plan
from tests.server.cli.reports import Kohort, fake_report

STUDIES = Path(__file__).resolve().parents[3] / "deploy" / "studies"
CAP = re.compile(r" *max_update_norm: .*\n")


@pytest.fixture(autouse=True)
def _quick_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """The accountants take seconds."""
    monkeypatch.setattr(plans, "feasibility", fake_report("feasible"))


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_plan_has_the_cap_that_its_own_noise_and_steps_give(path: Path) -> None:
    study = load_study(path)
    for model, norm in update_norms(study, path.parent).items():
        assert study.models.trained()[model].max_update_norm == norm.cap, model
        assert norm.cap > norm.honest


def test_a_missing_cap_is_written_and_nothing_else_changes(tmp_path: Path, kohort: Kohort) -> None:
    """Comments stay; the shipped fundus plan comes back as it was."""
    source = (STUDIES / "fundus.yaml").read_text()
    bare = CAP.sub("", source)
    path = tmp_path / "study.yaml"
    path.write_text(bare)
    for checkpoint in parse_yaml(source, Study, path).checkpoints():
        (tmp_path / checkpoint.file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / checkpoint.file).symlink_to(STUDIES / checkpoint.file)
    code, output, _ = kohort("plan", path)
    assert code == 0 and "wrote models.gan.max_update_norm: 0.105\n" in output
    text = path.read_text()
    assert CAP.sub("", text) == bare
    assert parse_yaml(text, Study, path) == parse_yaml(source, Study, path)
    code, output, _ = kohort("plan", path)
    assert "wrote" not in output and path.read_text() == text


def test_a_missing_cap_is_written_into_a_plan_on_one_line(tmp_path: Path, kohort: Kohort) -> None:
    path = tiny_plan(tmp_path / "plan")
    data = json.loads(path.read_text())
    caps = {name: data["models"][name].pop("max_update_norm") for name in ("gan", "glow")}
    path.write_text(json.dumps(data))
    code, output, _ = kohort("plan", path, "--json")
    written = json.loads(output)["written"]
    assert code == 0 and set(written) == set(caps)
    assert json.loads(path.read_text())["models"]["gan"]["max_update_norm"] == written["gan"]


def test_a_plan_that_is_wrong_elsewhere_is_left_as_it_is(tmp_path: Path) -> None:
    path = tiny_plan(tmp_path / "plan")
    data = json.loads(path.read_text())
    del data["models"]["gan"]["max_update_norm"]
    data["models"]["gan"]["noise_multiplier"] = -1
    path.write_text(json.dumps(data))
    before = path.read_text()
    with pytest.raises(ConfigurationError, match=r"models\.gan\.noise_multiplier"):
        write_missing_norms(path)
    assert path.read_text() == before


def test_the_report_warns_of_a_cap_that_is_too_large_or_too_small(
    tmp_path: Path, kohort: Kohort
) -> None:
    for name, cap, warning in (
        ("large", 5.0, "one hostile site can weigh as much as"),
        ("small", 1e-9, "the cap can scale honest updates down"),
    ):
        path = tiny_plan(tmp_path / name, models__gan__max_update_norm=cap)
        _, output, _ = kohort("plan", path)
        norm = update_norms(load_study(path), path.parent)["gan"]
        fix = f"set models.gan.max_update_norm: {norm.cap:g}"
        lines = [line for line in output.splitlines() if warning in line]
        assert any(fix in line for line in lines), output
    fitting = tiny_plan(tmp_path / "fits", models__gan__max_update_norm=norm.cap)
    _, output, _ = kohort("plan", fitting)
    assert f"models.gan.max_update_norm: {norm.cap:g}" not in output


def test_the_gap_of_a_moving_average_is_read_from_the_checkpoint(tmp_path: Path) -> None:
    path = pairs_plan(tmp_path / "plan")
    study = load_study(path)
    plan = study.models.wgan
    assert plan is not None and plan.start is not None
    file = path.parent / plan.start.file
    arrays = tensors.read(file, max_bytes=1 << 20)
    averages = [name for name in arrays if name.startswith("average.")]
    assert averages
    moved = {name: arrays["generator." + name.removeprefix("average.")] for name in averages}
    closed = update_norms(study, path.parent)["wgan"]
    tensors.write(file, {**arrays, **{n: (a + 1).astype(np.float32) for n, a in moved.items()}})
    opened = update_norms(study, path.parent)["wgan"]
    numbers = sum(array.size for array in moved.values())
    share = 1 - plan.average_decay ** (plan.local_steps // plan.critic_steps)
    assert opened.start == pytest.approx(share * np.sqrt(numbers))
    assert opened.cap > closed.cap
