"""Checkpoints against the sizes of their plan."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.errors import PolicyError
from common.models import layouts
from common.models.sizes import PAIR_SIZES_PX
from common.study.fit import check_checkpoints
from common.study.plan import Study, load_study
from common.wire import tensors
from tests.sites import write_plan
from tests.sized_plans import (
    CODE,
    IMAGES,
    KINDS,
    OTHER_PX,
    PAIRS,
    PLAN_PX,
    image_weights,
    misfit,
    pair_weights,
    write_misfit,
    wrong_files,
    zeros,
)
from tests.studies import small_study, vessels_plan

SIZES = (32, 64, 96, 128, 256, 512)


def planned(folder: Path, weights: dict[str, tensors.Arrays], **changes: Any) -> Study:
    return load_study(write_plan(folder, weights, **changes))


@pytest.mark.parametrize("size_px", SIZES)
def test_checkpoints_of_the_plans_own_size_fit_at_every_size(tmp_path: Path, size_px: int) -> None:
    study = planned(tmp_path, image_weights(size_px), intake__size_px=size_px)
    check_checkpoints(study, tmp_path)


@pytest.mark.parametrize(
    ("kind", "size_px"), [(kind, size) for kind in PAIR_SIZES_PX for size in PAIR_SIZES_PX[kind]]
)
def test_pair_checkpoints_of_the_plans_own_size_fit_at_every_size(
    tmp_path: Path, kind: str, size_px: int
) -> None:
    wgan = {**PAIRS["models"]["wgan"], "architecture": kind}
    if kind == "mask-first":
        wgan["start"] = {"file": "wgan.safetensors", "sha256": "0" * 64}
    changes = {"intake": {**PAIRS["intake"], "size_px": size_px}, "models": {"wgan": wgan}}
    check_checkpoints(
        planned(tmp_path, pair_weights(size_px, kind), **{**PAIRS, **changes}), tmp_path
    )


def test_a_checkpoint_of_another_architecture_is_named(tmp_path: Path) -> None:
    study = planned(tmp_path, pair_weights(PLAN_PX, "mask-first"), **PAIRS)
    with pytest.raises(PolicyError, match="mask-first"):
        check_checkpoints(study, tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_of_another_size_is_named_with_the_fix(tmp_path: Path, kind: str) -> None:
    study = load_study(write_misfit(tmp_path / "plan", kind))
    with pytest.raises(PolicyError) as refused:
        check_checkpoints(study, tmp_path / "plan")
    assert refused.value.code == CODE
    assert f"models.{kind}.start: {kind}.safetensors was made for " in str(refused.value)
    assert f"size_px {OTHER_PX}; the plan has intake.size_px {PLAN_PX}" in str(refused.value)
    assert f"set intake.size_px: {OTHER_PX}, or pretrain" in refused.value.hint


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        ("gan", "models__gan__width", 24),
        ("gan", "models__gan__latent", 32),
        ("gan", "intake__channels", 1),
        ("encoder", "models__encoder__width", 24),
        ("glow", "models__glow__levels", 4),
        ("glow", "models__glow__steps_per_level", 3),
        ("glow", "models__glow__width", 24),
        ("glow", "models__glow__doublings", 1),
    ],
)
def test_the_key_that_differs_is_named(tmp_path: Path, kind: str, key: str, value: int) -> None:
    weights = {kind: image_weights(PLAN_PX)[kind]}
    study = planned(tmp_path, weights, **{**IMAGES, key: value})
    with pytest.raises(PolicyError) as refused:
        check_checkpoints(study, tmp_path)
    assert f"the plan has {key.replace('__', '.')} {value}" in str(refused.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [("width", 16), ("generator_width", 16), ("latent", 32), ("architecture", "kossen2022")],
)
def test_the_key_of_a_pair_model_that_differs_is_named(
    tmp_path: Path, key: str, value: object
) -> None:
    models = {"wgan": {**PAIRS["models"]["wgan"], key: value}}
    study = planned(tmp_path, pair_weights(PLAN_PX), **{**PAIRS, "models": models})
    with pytest.raises(PolicyError, match=rf"the plan has models\.wgan\.{key} {value}"):
        check_checkpoints(study, tmp_path)


def test_every_misfit_is_named_at_once(tmp_path: Path) -> None:
    study = planned(tmp_path, image_weights(OTHER_PX), **IMAGES)
    with pytest.raises(PolicyError) as refused:
        check_checkpoints(study, tmp_path)
    for kind in ("gan", "glow", "encoder"):
        assert f"models.{kind}.start: " in str(refused.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w.pop("critic.score.bias"), "1 tensors of the plan's"),
        (
            lambda w: w.update({"critic.more": np.zeros(2, np.float32)}),
            "1 are not part of it (critic.more)",
        ),
        (
            lambda w: w.update({"critic.score.bias": np.zeros(2, np.float32)}),
            "critic.score.bias: [2], expected [1]",
        ),
    ],
    ids=["a tensor is missing", "a tensor is unknown", "a tensor has another shape"],
)
def test_a_checkpoint_of_no_architecture_is_described(
    tmp_path: Path, change: Any, words: str
) -> None:
    weights = {"gan": image_weights(PLAN_PX)["gan"]}
    change(weights["gan"])
    study = planned(tmp_path, weights, **IMAGES)
    with pytest.raises(PolicyError) as refused:
        check_checkpoints(study, tmp_path)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("shape", "fits"), [((4, 768), True), ((5, 768), True), ((3, 768), False), ((4, 3072), False)]
)
def test_the_basis_has_the_flows_coordinates(
    tmp_path: Path, shape: tuple[int, int], fits: bool
) -> None:
    write_basis(tmp_path / "basis.safetensors", shape)
    basis = {"file": "basis.safetensors", "sha256": "0" * 64}
    privatize = {"share": 0.25, "radius": 0.8, "scale": 0.5, "components": 4, "basis": basis}
    study = small_study(synthesis__privatize=privatize)
    if fits:
        check_checkpoints(study, tmp_path)
        return
    with pytest.raises(PolicyError, match=r"at least 4 of 768 coordinates \(levels top, 32 px\)"):
        check_checkpoints(study, tmp_path)


@pytest.mark.parametrize(
    ("shape", "fits"), [((8, 128), True), ((9, 128), True), ((7, 128), False), ((8, 768), False)]
)
def test_the_basis_of_anchors_has_the_codes_coordinates(
    tmp_path: Path, shape: tuple[int, int], fits: bool
) -> None:
    """8 layers of 16 coordinates each at 32 px."""
    write_basis(tmp_path / "codes.safetensors", shape)
    basis = {"file": "codes.safetensors", "sha256": "0" * 64}
    anchors = {"noise_multiplier": 0.8, "threshold_delta": 1e-6, "components": 8, "basis": basis}
    study = small_study(
        synthesis__grouping="anchors", synthesis__anchors=anchors, synthesis__privatize=None
    )
    assert [file.name for file in study.checkpoints()] == ["codes.safetensors"]
    if fits:
        check_checkpoints(study, tmp_path)
        return
    with pytest.raises(
        PolicyError, match=r"anchors\.basis: .*at least 8 of 128 coordinates \(latent 16, 32 px\)"
    ):
        check_checkpoints(study, tmp_path)


def test_a_file_that_is_not_there_is_passed_over(tmp_path: Path) -> None:
    study = load_study(write_misfit(tmp_path / "plan", "gan"))
    check_checkpoints(study, tmp_path)


@pytest.mark.parametrize("kind", ["gan", "encoder", "glow"])
@pytest.mark.parametrize("number", range(3), ids=["another family", "truncated", "empty"])
def test_a_file_of_another_family_or_a_damaged_one_is_named(
    tmp_path: Path, kind: str, number: int
) -> None:
    study = planned(tmp_path, image_weights(PLAN_PX), **IMAGES)
    words, data = list(wrong_files(tmp_path, kind).items())[number]
    (tmp_path / f"{kind}.safetensors").write_bytes(data)
    with pytest.raises(PolicyError) as refused:
        check_checkpoints(study, tmp_path)
    assert refused.value.code == CODE
    assert f"models.{kind}.start: " in str(refused.value)
    assert words in str(refused.value)
    assert f"{kind}.safetensors" in str(refused.value)
    assert "pretrain a checkpoint of the plan's sizes" in refused.value.hint


def test_a_damaged_basis_is_named(tmp_path: Path) -> None:
    (tmp_path / "basis.safetensors").write_bytes(b"no tensors")
    basis = {"file": "basis.safetensors", "sha256": "0" * 64}
    privatize = {"share": 0.25, "radius": 0.8, "scale": 0.5, "components": 4, "basis": basis}
    study = small_study(synthesis__privatize=privatize)
    with pytest.raises(PolicyError, match=r"basis: damaged: .*not a safetensors file"):
        check_checkpoints(study, tmp_path)


def write_basis(path: Path, shape: tuple[int, int], **changes: np.ndarray) -> None:
    arrays = {"mean": np.zeros(shape[1]), "directions": np.eye(*shape), "spread": np.ones(shape[0])}
    tensors.write(path, arrays | changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mean": np.zeros(127)}, "expected mean"),
        ({"spread": np.ones(7)}, "expected mean"),
        ({"spread": np.zeros(8)}, "not positive"),
        ({"directions": np.ones((8, 128))}, "not orthonormal"),
        ({"directions": np.full((8, 128), np.nan)}, "expected mean"),
        ({"mean": np.zeros(128), "more": np.ones(1)}, "expected mean, directions and spread"),
    ],
)
def test_a_basis_that_a_child_would_refuse_is_refused_before_anything_is_spent(
    tmp_path: Path, changes: dict[str, np.ndarray], words: str
) -> None:
    write_basis(tmp_path / "codes.safetensors", (8, 128), **changes)
    file = {"file": "codes.safetensors", "sha256": "0" * 64}
    anchors = {"noise_multiplier": 0.8, "threshold_delta": 1e-6, "components": 8, "basis": file}
    study = small_study(
        synthesis__grouping="anchors", synthesis__anchors=anchors, synthesis__privatize=None
    )
    with pytest.raises(PolicyError, match=rf"anchors\.basis: damaged: .*{words}"):
        check_checkpoints(study, tmp_path)


def test_a_hostile_header_is_only_compared(tmp_path: Path) -> None:
    """Widths of a million describe no network here: nothing of their size is made."""
    huge = {"generator.image_bias": (1 << 19,), "generator.mapping.layers.0.bias": (1 << 19,)}
    weights = image_weights(PLAN_PX)
    weights["gan"] |= {name: np.zeros(shape, np.float32) for name, shape in huge.items()}
    study = planned(tmp_path, weights, **IMAGES)
    with pytest.raises(PolicyError, match="have another shape"):
        check_checkpoints(study, tmp_path)


def test_the_comparison_imports_no_torch() -> None:
    code = "import sys, common.study.fit; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_plan_of_a_size_that_no_architecture_has_names_those_it_has() -> None:
    with pytest.raises(ValueError, match=r"small is built for 32, 64, 96, 128 or 256 px"):
        Study.model_validate(vessels_plan(intake__size_px=512))
    with pytest.raises(ValueError, match=r"kossen2022 is built for 64, 96, 128 or 256 px"):
        Study.model_validate(vessels_plan(models__wgan__architecture="kossen2022"))
    with pytest.raises(ValueError, match="96 px cannot be halved 6 times; at most 5 levels"):
        small_study(intake__size_px=96, models__glow__levels=6)


def test_misfits_are_of_real_networks() -> None:
    """So no test below passes because its weights count as invented (tests/invented.py)."""
    for kind in KINDS:
        weights, _ = misfit(kind)
        assert len(weights[kind]) > 12
    assert zeros({"x.": layouts.critic(32, 3, 8)})
