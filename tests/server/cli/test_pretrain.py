"""`kohort-server pretrain`: a checkpoint that a plan can start from."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from common.errors import ConfigurationError
from common.study.plan import load_study
from common.wire.tensors import read, write
from server.cli.pretrain import Task, flow_options, flow_size, gan_options, pair_layout
from server.operator import plan as plans
from tests.server.cli.reports import Kohort

TASK = Task(
    (), Path(), 1.0, 32, 1, (("a",), ("b",), ("c",)), None, False, None, 0, "cpu", None, None
)


def test_width_and_latent_are_those_that_were_asked_for_or_the_defaults() -> None:
    asked = dataclasses.replace(TASK, width=16, latent=64)
    sizes = gan_options(asked)
    assert (sizes.size_px, sizes.channels, sizes.width, sizes.latent) == (32, 1, 16, 64)
    assert (sizes.encoder_width, flow_options(asked).width) == (16, 16)
    pairs = pair_layout(asked)
    assert (pairs.width, pairs.generator_width, pairs.latent) == (16, 16, 64)
    assert (gan_options(TASK).width, gan_options(TASK).latent) == (24, 128)
    assert (flow_options(TASK).width, pair_layout(TASK).width) == (40, 24)


def test_a_plan_says_the_sizes_of_its_checkpoints() -> None:
    path = Path(__file__).parents[3] / "deploy" / "studies" / "fundus.yaml"
    study = load_study(path)
    task = dataclasses.replace(TASK, study=path)
    sizes = gan_options(task)
    gan = study.models.gan
    assert gan is not None
    assert study.models.encoder is not None
    expected = (study.intake.size_px, study.intake.channels)
    assert (sizes.size_px, sizes.channels) == flow_size(task) == expected
    assert (sizes.width, sizes.latent) == (gan.width, gan.latent)
    assert sizes.encoder_width == study.models.encoder.width


def test_a_chest_is_shown_as_other_films_and_never_flipped() -> None:
    studies = Path(__file__).parents[3] / "deploy" / "studies"
    chest = flow_options(dataclasses.replace(TASK, study=studies / "chest.yaml"))
    fundus = flow_options(dataclasses.replace(TASK, study=studies / "fundus.yaml"))
    assert (chest.films, chest.flips) == (True, "none")
    assert (fundus.films, fundus.flips) == (False, "both")


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


def test_several_sources_need_an_origin_each_and_are_for_the_generator_alone() -> None:
    two = dataclasses.replace(TASK, sources=(Path("a"), Path("b")))
    with pytest.raises(ConfigurationError, match="--source given 1 times for 2 sources"):
        two.provenances()
    names = ("x", "y")
    both = dataclasses.replace(two, origins=(names, names, names))
    assert [one.source for one in both.provenances()] == ["x", "y"]
    with pytest.raises(ConfigurationError, match="2 sources given, expected one"):
        both.public_images()
    with pytest.raises(ConfigurationError, match="source, licence, attribution: missing"):
        dataclasses.replace(TASK, origins=((), (), ())).provenances()


def test_other_cameras_are_shown_where_asked_and_a_start_has_settled() -> None:
    assert not gan_options(TASK).cameras
    assert gan_options(dataclasses.replace(TASK, cameras=True)).cameras
    assert gan_options(TASK).coarse > 0
    assert gan_options(dataclasses.replace(TASK, start=Path("x"))).coarse == 0


def test_plan_says_which_public_sources_a_checkpoint_knows(tmp_path: Path, kohort: Kohort) -> None:
    from tests.federation import pairs_plan

    path = pairs_plan(tmp_path / "plan")
    file = tmp_path / "plan" / "wgan.safetensors"
    known = {"source 1": "clinic one (5 photographs)", "source 2": "two\x1b[2J\nlines"}
    write(file, read(file, max_bytes=1 << 24), known)
    assert kohort("pin", path)[0] == 0
    code, output, errors = kohort("plan", path)
    assert code == 0, errors
    assert "wgan.safetensors knows clinic one (5 photographs); two?[2J?lines\n" in output
