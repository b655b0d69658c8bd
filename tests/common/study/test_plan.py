"""The plan: validation, hash, presets."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from common.study.plan import Study, load_study
from common.study.words import fingerprint_words
from tests.studies import SMALL, small_plan, small_study, vessels_plan

FLOW_ALONE = {
    "models__gan": None,
    "models__encoder": None,
    "synthesis__grouping": "random",
    "synthesis__privatize__share": 1.0,
}
PRESETS = sorted((Path(__file__).parents[3] / "deploy" / "studies").glob("*.yaml"))


@pytest.mark.parametrize("path", PRESETS, ids=lambda p: p.stem)
def test_every_preset_is_valid(path: Path) -> None:
    assert load_study(path).name


@pytest.mark.parametrize(
    ("changes", "message"),
    {
        "a quorum that can never be met": ({"quorum": 4}, "can never be met"),
        "a quorum of one": ({"quorum": 1}, "greater than or equal to 2"),
        "a generator that would never take a step": (
            {"models__gan__critic_steps": 3},
            "models.gan.critic_steps: more than local_steps",
        ),
        "two sites of one name": ({"sites": [{"name": "a"}, {"name": "a"}]}, "stands twice"),
        "more drawn than planned": (
            {"models__gan__patients_per_step": 500},
            "more than privacy.planned_patients",
        ),
        "delta too large for the patients": ({"privacy__delta": 0.01}, "at most 1/"),
        "negative epsilon": ({"privacy__epsilon": -1}, "greater than 0"),
        "infinite epsilon": ({"privacy__epsilon": float("inf")}, "finite"),
        "k of one": ({"synthesis__k": 1}, "greater than or equal to 2"),
        "noise below any use": (
            {"models__gan__noise_multiplier": 0.0},
            "greater than or equal to 0.3",
        ),
        "privatization without a flow": ({"models__glow": None}, "needs models.glow"),
        "similar groups without a generator": (
            {**FLOW_ALONE, "synthesis__grouping": "similar"},
            "needs models.gan",
        ),
        "plain averages without a generator": (
            {**FLOW_ALONE, "synthesis__privatize__share": 0.5},
            "needs models.gan",
        ),
        "averages without a flow or a generator": (
            {**FLOW_ALONE, "synthesis__privatize": None},
            "needs models.gan",
        ),
        "a generator that nothing can invert": (
            {"models__encoder": None},
            "needs models.gan and models.encoder",
        ),
        "a merge of an unknown label": ({"intake__merge_labels": {"x": "y"}}, "not among labels"),
        "a path out of the folder": (
            {"models__gan__start": {"file": "../../x.safetensors", "sha256": "0" * 64}},
            "should match pattern",
        ),
        "an unknown mechanism": ({"synthesis__privatize__mechanism": "magic"}, "laplace"),
    }.values(),
    ids=lambda value: str(value)[:40],
)
def test_impossible_plans_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        small_study(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    {
        "wgan without a bound on its weights": (
            {"models__wgan__loss": "wgan"},
            "weight_clip: the loss wgan needs one",
        ),
        "a bound of zero": ({"models__wgan__weight_clip": 0.0}, "greater than 0"),
        "a critic that group norm cannot divide": (
            {"models__wgan__width": 10},
            "multiples of 4 and 8",
        ),
        "a generator that group norm cannot divide": (
            {"models__wgan__generator_width": 12},
            "multiples of 4 and 8",
        ),
        "an average that never moves": ({"models__wgan__average_decay": 1.0}, "less than 1"),
        "an unknown loss": ({"models__wgan__loss": "lsgan"}, "hinge"),
        "pairs without volumes": ({"intake__volumes": None}, "models.wgan: needs intake.volumes"),
        "volumes in colour": ({"intake__channels": 3}, "for one channel and models.wgan alone"),
        "volumes beside another model": (
            {"models__gan": SMALL["models"]["gan"]},
            "for one channel and models.wgan alone",
        ),
        "pairs of 512 px": ({"intake__size_px": 512}, "32, 64, 96, 128 or 256 px"),
        "the paper's architecture at 32 px": (
            {"models__wgan__architecture": "kossen2022"},
            "64, 96, 128 or 256 px",
        ),
        "one patch a patient": (
            {"intake__volumes": {"patches_per_patient": 1}},
            "greater than or equal to 2",
        ),
    }.values(),
    ids=lambda value: str(value)[:40],
)
def test_impossible_plans_of_pairs_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Study.model_validate(vessels_plan(**changes))


def test_random_groups_that_are_all_privatized_need_no_generator() -> None:
    study = small_study(**FLOW_ALONE)
    assert study.synthesis is not None and not study.synthesis.needs_generator
    assert list(study.models.trained()) == ["glow"]
    other = small_study().synthesis
    assert other is not None and other.needs_generator


def test_volumes_add_a_plane_for_the_mask_and_a_bound_makes_the_loss_wgan_valid() -> None:
    study = Study.model_validate(
        vessels_plan(models__wgan__loss="wgan", models__wgan__weight_clip=0.01)
    )
    assert study.intake.planes == 2 and small_study().intake.planes == 3
    assert list(study.models.trained()) == ["wgan"]


# of `small_plan`, as the version before the first key of LATER computed it
FIRST_HASH = "e118332b6a0dfeda2b353a5236e6e18bcede02e15c3cd06298b611e3545a4281"


def test_a_plan_that_was_signed_before_a_key_came_keeps_its_hash() -> None:
    """A state folder and a study under way stay what they are after an upgrade."""
    assert small_study().hash() == FIRST_HASH
    spelled = small_study(aggregation={"rule": "mean", "trim": 0.0})
    assert spelled.hash() == FIRST_HASH
    assert small_study(aggregation={"rule": "norm_weighted"}).hash() != FIRST_HASH
    assert small_study(models__glow__doublings=0).hash() == FIRST_HASH
    assert small_study(models__glow__doublings=1).hash() != FIRST_HASH


@pytest.mark.parametrize("key", ["body_parts", "views", "presentation"])
def test_an_intake_key_that_came_later_counts_in_the_hash_only_where_it_is_stated(key: str) -> None:
    assert small_study(**{f"intake__{key}": None}).hash() == FIRST_HASH
    assert small_study(**{f"intake__{key}": []}).hash() != FIRST_HASH
    # and so does the name of a cohort
    assert key not in small_study().intake.hashed_fields()
    assert small_study(**{f"intake__{key}": []}).intake.hashed_fields()[key] == []


def test_a_plan_of_volumes_that_was_signed_before_it_could_take_a_part_keeps_its_hash() -> None:
    plain = vessels_plan()
    before = Study.model_validate(plain)
    assert "take" not in before.intake.model_dump(mode="json")["volumes"]
    spelled = vessels_plan(intake__volumes__take={"echo": "first"})
    assert Study.model_validate(spelled).hash() == before.hash()
    other = vessels_plan(intake__volumes__take={"echo": "last"})
    assert Study.model_validate(other).hash() != before.hash()
    assert Study.model_validate_json(Study.model_validate(other).model_dump_json()).hash() != (
        before.hash()
    )


def test_the_hash_covers_every_field_and_ignores_spelling() -> None:
    base = small_study().hash()
    assert small_study().hash() == base
    assert Study.model_validate(json.loads(json.dumps(small_plan(), sort_keys=True))).hash() == base
    seen = {base}
    for changes in (
        {"privacy__epsilon": 7.9},
        {"synthesis__k": 6},
        {"sites": small_plan()["sites"][:2]},
        {"title": "x"},
        {"models__gan__clip": 0.9},
        {"release__version": "1.0.1"},
        {"synthesis__privatize__scale": 0.4},
    ):
        seen.add(small_study(**changes).hash())
    assert len(seen) == 8


def test_strata_weights_and_words() -> None:
    study = small_study(
        intake__merge_labels={"severe": "mild-moderate"},
        sites=[{"name": "a", "weight": 3}, {"name": "b"}],
    )
    assert study.strata() == ("none", "mild-moderate")
    assert study.weight_of("a") == 0.75
    assert len(fingerprint_words(study.hash()).split()) == 6
    assert fingerprint_words("0" * 64) != fingerprint_words("f" * 64)


def test_windows_that_do_not_divide_the_image_are_refused_before_anything_is_trained() -> None:
    with pytest.raises(ValidationError, match=r"synthesis\.windows: 3 does not divide 32 px"):
        small_study(synthesis={**small_plan()["synthesis"], "windows": 3})


def test_a_grid_of_residuals_counts_in_the_hash_only_where_there_is_one() -> None:
    assert small_study(synthesis__coarse_cells=0).hash() == FIRST_HASH
    assert small_study(synthesis__coarse_cells=8).hash() != FIRST_HASH


def test_averages_that_carry_epsilon_have_no_grid_of_residuals() -> None:
    with pytest.raises(ValidationError, match=r"coarse_cells: 4 with grouping anchors"):
        small_study(synthesis__grouping="anchors", synthesis__coarse_cells=4)
    everything = small_plan()["synthesis"]["privatize"] | {"share": 1.0}
    with pytest.raises(ValidationError, match=r"coarse_cells: 4 with privatize.share 1"):
        small_study(synthesis__privatize=everything, synthesis__coarse_cells=4)
    with pytest.raises(ValidationError, match=r"coarse_cells: 64 for \d+ px; expected at most"):
        small_study(synthesis__coarse_cells=64)
