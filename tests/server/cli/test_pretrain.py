"""`kohort-server pretrain`: a checkpoint that a plan can start from."""

from __future__ import annotations

from pathlib import Path

from common.study.plan import load_study
from server.operator import plan as plans
from tests.server.cli.reports import Kohort


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
