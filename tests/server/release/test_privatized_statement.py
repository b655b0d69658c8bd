"""What a release says of privatized images, and which groups make its claim hold."""

from typing import Any

import pytest

from server.release.statement import NONE_PRIVATIZED, privatized_statement
from tests.studies import small_study

GAUSSIAN = {"share": 1.0, "mechanism": "gaussian", "epsilon": 4.0, "delta": 1e-6}
FIELDS = (
    "mechanism",
    "clip",
    "radius",
    "lattice_step",
    "sensitivity",
    "norm",
    "epsilon_per_coordinate",
    "epsilon_per_image",
    "delta",
    "adjacency",
    "k",
    "grouping",
    "dimension",
    "dimension_of",
    "model_epsilon",
    "model_delta",
    "expected_cosine",
    "claim",
    "groups_that_cover_patients",
    "unit",
)


@pytest.mark.parametrize(
    "section", [GAUSSIAN, {"share": 1.0, "radius": 0.4, "scale": 0.25}], ids=["gaussian", "laplace"]
)
@pytest.mark.parametrize("grouping", ["similar", "random"])
def test_the_statement_says_everything_and_claims_no_more_than_its_groups_allow(
    section: dict[str, Any], grouping: str
) -> None:
    said = privatized_statement(
        small_study(synthesis__privatize=section, synthesis__grouping=grouping)
    )
    assert isinstance(said, dict)
    assert not [name for name in FIELDS if name not in said]
    assert "d=768 of 3,072, k=5" in said["statement"]
    assert said["claim"] in said["statement"]
    assert ("no ε per patient" in said["statement"]) == (grouping == "similar")
    assert ("protects little" in said["statement"]) == (section is not GAUSSIAN)
    assert said["unit"] == ("patient" if grouping == "random" else "average")
    assert said["groups_that_cover_patients"] == ["random"]


def test_single_images_are_not_in_a_release() -> None:
    assert (
        privatized_statement(small_study(synthesis__privatize=GAUSSIAN | {"egress": "single"}))
        == NONE_PRIVATIZED
    )
