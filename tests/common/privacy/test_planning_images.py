"""A plan whose images spend the same patients' epsilon as its updates (`random` groups)."""

from __future__ import annotations

import dataclasses

import pytest

from common.errors import PolicyError
from common.privacy.accounting import epsilon_pld
from common.privacy.events import charged_image_event, plan_events
from common.privacy.mechanisms import SubsampledGaussian
from common.privacy.plan_report import feasibility, refuse_over_budget
from common.study.plan import Study
from server.evaluate.canary_rehearsal import ModelAudit
from server.release.items import Account
from server.release.statement import privacy_statement
from tests.studies import small_study

pytestmark = pytest.mark.filterwarnings("ignore")  # third-party accountants
COUNTS = {"glow": 512}
GAUSSIAN = {"share": 1.0, "mechanism": "gaussian", "epsilon": 4.0, "delta": 1e-5}


def study(grouping: str = "random", epsilon: float = 8.0) -> Study:
    """A plan of a flow alone for `random` groups; the generator comes back where it is needed."""
    changes: dict[str, object] = (
        {"models__gan": None, "models__encoder": None} if grouping == "random" else {}
    )
    return small_study(
        **changes,
        synthesis__grouping=grouping,
        synthesis__privatize=GAUSSIAN,
        privacy__epsilon=epsilon,
        models__glow__noise_multiplier=2.0,
    )


def test_one_epsilon_covers_the_updates_and_the_images_of_random_groups() -> None:
    report = feasibility(study(), COUNTS, prv=False)
    images = charged_image_event(study())
    assert images is not None
    training = dataclasses.replace(report.models[0].event)
    together = epsilon_pld([training, images], 1e-5)
    assert report.spent.pld == pytest.approx(together, rel=1e-3)
    assert together > max(4.0, epsilon_pld([training], 1e-5)) + 0.02
    assert images.statement() in report.to_text()
    assert "would use the budget exactly" not in report.to_text()


def test_an_accountant_is_printed_only_beside_what_it_covers() -> None:
    report = feasibility(study(), COUNTS)
    alone, together = (line for line in report.to_text().splitlines() if "by accountant" in line)
    assert alone.startswith("    by accountant, updates alone:") and ", PRV " in alone
    assert together.startswith("    by accountant, updates and images together:")
    assert "RDP" in together and "PRV" not in together
    assert report.spent.prv is None
    assert report.updates.prv == pytest.approx(report.updates.pld, abs=0.03)
    assert report.updates.pld < report.spent.pld


def test_a_figure_that_no_accountant_gives_is_not_printed() -> None:
    section = {"share": 1.0, "radius": 0.8, "scale": 0.25}  # Laplace of epsilon 983
    plan = small_study(
        models__gan=None,
        models__encoder=None,
        synthesis__grouping="random",
        synthesis__privatize=section,
    )
    report = feasibility(plan, COUNTS, prv=False)
    assert report.verdict == "over budget"
    (together,) = (line for line in report.to_text().splitlines() if "images together" in line)
    assert "at most 98" in together and "an upper bound: too large for PLD" in together
    assert "sampler without a bound" in together
    assert "e+" not in report.to_text() and "PLD 98" not in report.to_text()
    assert report.spent.sampler_delta == 1.0
    assert report.spent.is_upper_bound and not report.updates.is_upper_bound
    assert list(report.spent.by_accountant()) == ["upper bound"]
    assert list(report.updates.by_accountant()) == ["PLD", "RDP"]


def test_images_that_do_not_fit_beside_the_updates_put_a_plan_over_budget() -> None:
    fits, over = (feasibility(study(epsilon=e), COUNTS, prv=False) for e in (8.0, 4.01))
    assert (fits.verdict, over.verdict) == ("feasible", "over budget")
    assert not over.accepted
    assert over.fixes[0].startswith("more noise on the images")


def test_images_of_similar_groups_spend_nothing_of_a_patients_epsilon() -> None:
    plan = study("similar")
    assert charged_image_event(plan) is None
    report = feasibility(plan, {**COUNTS, "gan": 512}, prv=False)
    assert report.spent.pld == pytest.approx(
        epsilon_pld([m.event for m in report.models], 1e-5), rel=1e-3
    )


def test_the_statement_of_random_groups_says_one_epsilon_and_what_it_takes_as_given() -> None:
    account = Account({"PLD": 4.5}, {}, dict[str, ModelAudit]())
    found = privacy_statement(study(), {}, account)
    assert found["updates"]["claim"].startswith(
        "What each site sent through training, and as averages of patients, is (8, 1e-05)"
    )
    assert (
        "Together with the model's training: at most ε=8, δ=1e-05 per patient, under zero-out."
        in found["privatized_images"]["statement"]
    )
    assert found["images"]["groups_independent_of_the_data"] is True
    assert found["images"]["mechanism"] == "every average is privatized"
    assert any("takes the roster of a site as given" in line for line in found["given"])
    similar = privacy_statement(study("similar"), {}, account)
    assert not any("roster" in line for line in [*similar["given"], *similar["limits"]])
    assert "no ε per patient" in similar["privatized_images"]["statement"]


def test_a_plans_events_cover_the_canaries_coordinates_and_every_step() -> None:
    study = small_study(privacy__canaries=100)
    gan, glow, *_ = plan_events(study, {"gan": 1000, "glow": 50})
    assert isinstance(gan, SubsampledGaussian) and isinstance(glow, SubsampledGaussian)
    assert (gan.dimension, gan.steps) == (1100, 4)
    assert (glow.dimension, glow.steps) == (150, 2)


def test_a_plan_whose_numbers_are_too_many_for_the_sampler_is_over_budget() -> None:
    """Epsilon fits, and the sampler's missing tail takes more than one percent of delta."""
    study = small_study()
    refuse_over_budget(study, plan_events(study, {"gan": 1000, "glow": 50}))
    events = plan_events(study, {"gan": 10**13, "glow": 50})
    assert epsilon_pld(events, study.privacy.delta) < study.privacy.epsilon
    with pytest.raises(PolicyError) as refused:
        refuse_over_budget(study, events)
    assert refused.value.code == "E-PLAN-BUDGET"
