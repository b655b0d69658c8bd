"""What is trained first on published averages, and how the figures are shown."""

import numpy as np
import pytest
import torch

from benchmarks import warm_start
from benchmarks.average_people import ROOT
from client.learn import train_gan
from common.arrays import Images, Weights
from common.study.plan import Study, load_study

COUNT = 4


@pytest.fixture(scope="module")
def study() -> Study:
    """The plan of private averages, with small networks."""
    plan = load_study(ROOT / "deploy" / "studies" / "fundus-anchors.yaml")
    gan = train_gan.plan_of(plan).model_copy(update={"width": 8, "latent": 16, "start": None})
    intake = plan.intake.model_copy(update={"size_px": 32})
    models = plan.models.model_copy(update={"gan": gan})
    return plan.model_copy(update={"models": models, "intake": intake})


@pytest.fixture(scope="module")
def weights(study: Study) -> Weights:
    torch.manual_seed(0)
    parameters = train_gan.parameters_by_name(*train_gan.build(study))
    return {name: p.detach().numpy().copy() for name, p in parameters.items()}


def averages() -> Images:
    return np.random.default_rng(0).integers(0, 256, (COUNT, 32, 32, 3)).astype(np.uint8)


def test_a_first_training_moves_both_networks_and_leaves_what_it_was_given(
    study: Study, weights: Weights
) -> None:
    before = {name: array.copy() for name, array in weights.items()}
    one = warm_start.warm(weights, study, averages(), 1, 0)
    three = warm_start.warm(weights, study, averages(), 3, 0)
    assert all(np.array_equal(weights[name], before[name]) for name in before)
    for prefix in ("generator.", "critic."):
        assert any((one[n] != weights[n]).any() for n in one if n.startswith(prefix))
    assert warm_start.moved_by(weights, weights) == 0
    assert 0 < warm_start.moved_by(one, weights) < warm_start.moved_by(three, weights)


def test_private_training_starts_where_it_is_told_and_knows_one_image_a_person(
    study: Study, weights: Weights
) -> None:
    people = np.random.default_rng(1).integers(0, 256, (700, 32, 32, 3)).astype(np.uint8)
    cohort = warm_start.cohort_of(people)
    assert cohort.patient_count == 700
    gan = train_gan.plan_of(study).model_copy(update={"rounds": 1, "local_steps": 1})
    short = study.model_copy(update={"models": study.models.model_copy(update={"gan": gan})})
    after = warm_start.trained(weights, short, cohort, 0)
    moved = {n.split(".")[0] for n in after if (after[n] != weights[n]).any()}
    assert moved == {"generator", "critic"}
    # of the critic what the plan trains alone
    assert all(
        n.startswith("critic.score.")
        for n in after
        if n.startswith("critic.") and (after[n] != weights[n]).any()
    )


def test_a_row_shows_the_mean_of_its_draws_and_each() -> None:
    draws = [
        {"frechet": 10.0, "kernel": 1.0, "moved": 0.1},
        {"frechet": 12.0, "kernel": 2.0, "moved": 0.3},
    ]
    (table,) = warm_start.tables([{"row": "start", "draws": draws}])
    assert table.rows == (("start", "11.0", "10.0, 12.0", "1.50", "0.2000"),)
    assert len(table.rows[0]) == len(table.columns) == len(warm_start.COLUMNS)
