"""The plan's `privatize` section: every wrong combination names key, expected and got."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from common.errors import ConfigurationError
from common.privacy.boundary import public_statement
from common.privacy.events import latent_event
from common.privacy.latent_mechanisms import LatentGaussian, LatentLaplace, PrivUnit
from common.study.plan import Study, load_study
from common.study.synthesis import PrivatizePlan
from tests.studies import small_plan, small_study

LAPLACE = {"share": 0.5, "radius": 0.4, "scale": 0.25}
GAUSSIAN = {"share": 0.5, "mechanism": "gaussian", "epsilon": 8.0, "delta": 1e-6}
BASIS = {"file": "basis.safetensors", "sha256": "0" * 64}
UNIT = {
    "share": 0.5,
    "mechanism": "privunit",
    "epsilon": 8.0,
    "egress": "single",
    "components": 32,
    "basis": BASIS,
}

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "laplace without its scale": (
        {"share": 0.5, "radius": 0.4},
        "scale: mechanism laplace needs it, got none",
    ),
    "laplace without its radius": (
        {"share": 0.5, "scale": 0.4},
        "radius: mechanism laplace needs it, got none",
    ),
    "laplace with an epsilon": (
        LAPLACE | {"epsilon": 8.0},
        "epsilon: mechanism laplace takes none, got 8.0; its noise is",
    ),
    "laplace with a delta": (LAPLACE | {"delta": 1e-6}, "delta: mechanism laplace takes none"),
    "gaussian without epsilon": (
        GAUSSIAN | {"epsilon": None},
        "epsilon: mechanism gaussian needs it",
    ),
    "gaussian without delta": (GAUSSIAN | {"delta": None}, "delta: mechanism gaussian needs it"),
    "gaussian with a scale": (
        GAUSSIAN | {"scale": 1.0},
        "scale: mechanism gaussian takes none, got 1.0",
    ),
    "gaussian with a box": (
        GAUSSIAN | {"clip": "box"},
        "clip: mechanism gaussian takes none, got 'box'; it clips to the l2",
    ),
    "an epsilon of zero": (GAUSSIAN | {"epsilon": 0}, "greater than 0"),
    "a negative epsilon": (GAUSSIAN | {"epsilon": -1.0}, "greater than 0"),
    "an infinite epsilon": (GAUSSIAN | {"epsilon": float("inf")}, "finite number"),
    "an epsilon per coordinate": (
        {"share": 0.5, "mechanism": "gaussian", "epsilon_per_coordinate": 12.0, "delta": 1e-6},
        "epsilon_per_coordinate: expected `epsilon` per image (per average), got 12.0 per "
        "coordinate",
    ),
    "a delta too large for the patients": (
        GAUSSIAN | {"delta": 5e-3},
        "synthesis.privatize.delta: at most 1/",
    ),
    "privunit for averages": (
        UNIT | {"egress": "averages"},
        "mechanism: privunit privatizes single images (k = 1)",
    ),
    "privunit of too many coordinates": (
        UNIT | {"components": 65},
        "synthesis.privatize.mechanism: privunit takes at most 64 coordinates, got 65",
    ),
    "privunit of a whole level": (
        UNIT | {"components": None, "basis": None},
        "privunit takes at most 64 coordinates, got 768",
    ),
    "privunit that would draw for ever": (
        UNIT | {"epsilon": 20.0},
        "epsilon: privunit draws by rejection, at most 16",
    ),
    "privunit with a delta": (UNIT | {"delta": 1e-6}, "delta: mechanism privunit takes none"),
    "components without a basis": (
        GAUSSIAN | {"components": 32},
        "components, basis: expected both or neither",
    ),
    "a basis without components": (
        GAUSSIAN | {"basis": BASIS},
        "components, basis: expected both or neither",
    ),
    "more components than coordinates": (
        GAUSSIAN | {"components": 769, "basis": BASIS},
        "synthesis.privatize.components: 769 of 768 coordinates (top)",
    ),
    "similar groups with a claim per patient": (
        GAUSSIAN | {"claim": "patient"},
        "synthesis.privatize.claim: expected grouping random for epsilon per patient, got",
    ),
    "single images with a claim per patient beside plain averages": (
        GAUSSIAN | {"claim": "patient", "egress": "single"},
        "synthesis.privatize.claim: expected egress averages for epsilon per patient, got single",
    ),
    "a mechanism nobody knows": (
        GAUSSIAN | {"mechanism": "exponential"},
        "'laplace', 'gaussian' or 'privunit'",
    ),
    "an egress nobody knows": (GAUSSIAN | {"egress": "latents"}, "'averages' or 'single'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_combination_says_what_is_wrong(case: str) -> None:
    section, message = WRONG[case]
    with pytest.raises(ValidationError) as refused:
        Study.model_validate(small_plan(synthesis__privatize=section))
    assert message in str(refused.value)


def test_k_larger_than_the_cohort_is_refused() -> None:
    with pytest.raises(
        ValidationError, match=r"synthesis.k: 101 is more than privacy.planned_patients 100"
    ):
        small_study(synthesis__k=101)


def test_the_error_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(
        json.dumps(small_plan(synthesis__privatize=GAUSSIAN | {"epsilon": 0}), indent=1)
    )
    with pytest.raises(
        ConfigurationError,
        match=r"study.yaml:\d+: synthesis.privatize.epsilon: .*greater than 0.*got 0",
    ):
        load_study(path)


def test_each_section_gives_its_mechanism() -> None:
    top = 768  # of 32 px, 3 channels, 3 levels
    assert latent_event(small_study(synthesis__privatize=LAPLACE)) == LatentLaplace(
        "l1_ball", 0.4, top, 5, "similar", 0.25
    )
    assert latent_event(small_study(synthesis__privatize=GAUSSIAN)) == LatentGaussian(
        top, 5, "similar", 8.0, 1e-6
    )
    assert latent_event(small_study(synthesis__privatize=UNIT)) == PrivUnit(32, 8.0)
    single = latent_event(small_study(synthesis__privatize=GAUSSIAN | {"egress": "single"}))
    assert (single.k, single.grouping) == (1, "random"), (
        "one image is in no group, however the plan groups"
    )
    assert (single.k, single.covers_patient) == (1, True), (
        "one image of one patient: no groups that data could choose"
    )
    reduced = latent_event(
        small_study(
            synthesis__privatize=GAUSSIAN | {"components": 20, "basis": BASIS, "levels": "all"}
        )
    )
    assert reduced.dimension == 20


def test_a_claim_per_patient_holds_with_random_groups() -> None:
    study = small_study(
        synthesis__privatize=GAUSSIAN | {"claim": "patient", "share": 1.0},
        synthesis__grouping="random",
    )
    assert latent_event(study).covers_patient


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
@pytest.mark.parametrize("section", [LAPLACE, GAUSSIAN], ids=["laplace", "gaussian"])
def test_random_groups_of_which_a_part_is_privatized_are_refused_with_the_fix(
    section: dict[str, Any], share: float
) -> None:
    with pytest.raises(ValidationError) as refused:
        small_study(synthesis__grouping="random", synthesis__privatize=section | {"share": share})
    assert f"privatize.share: expected 1 with grouping random, got {share:g}" in str(refused.value)
    assert "set share: 1, take another grouping, or leave privatize out" in str(refused.value)


def test_random_groups_whose_averages_are_plain_may_have_single_images_of_any_share() -> None:
    study = small_study(
        synthesis__grouping="random", synthesis__privatize=GAUSSIAN | {"egress": "single"}
    )
    assert study.synthesis is not None
    assert not study.synthesis.privatizes_averages


def test_the_plans_own_text_comes_back_the_same() -> None:
    for section in (LAPLACE, GAUSSIAN, UNIT):
        plan = PrivatizePlan.model_validate(section)
        assert PrivatizePlan.model_validate(json.loads(plan.model_dump_json())) == plan


def test_the_basis_is_pinned_like_a_checkpoint_and_the_statement_says_every_number() -> None:
    study = small_study(synthesis__privatize=UNIT)
    assert [checkpoint.name for checkpoint in study.checkpoints()] == ["basis.safetensors"]
    said = public_statement(study, "images")
    assert said["privatize_epsilon"] == 8.0
    assert said["privatize_components"] == 32
    assert said["privatize_egress"] == "single"
    assert "privatize_scale" not in said
