"""Which claim which plan may make: all combinations of a plan's options, against written rules."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import ValidationError

from common.errors import PolicyError
from common.privacy.canary_audit import FALSE_ALARM
from common.privacy.claims import (
    AUDITED,
    LINKED,
    ONE_PATIENT,
    PUBLIC_BASIS,
    PUBLIC_FILES,
    Claim,
    claims_of,
)
from common.privacy.events import charged_image_event, covers_every_image, latent_event
from common.study.plan import Study
from server.release.items import Account
from server.release.statement import SCOPE, privacy_statement, statement_markdown
from tests.studies import small_plan, varied, vessels_plan

ACCOUNT = Account({"PLD": 3.2, "RDP": 3.6}, {})
BASIS = {"file": "basis.safetensors", "sha256": "0" * 64}
MECHANISMS: dict[str, dict[str, Any]] = {
    "laplace box": {"mechanism": "laplace", "clip": "box", "radius": 1.0, "scale": 0.5},
    "laplace l1_ball": {"mechanism": "laplace", "radius": 0.4, "scale": 0.25},
    "gaussian": {"mechanism": "gaussian", "epsilon": 4.0, "delta": 1e-6},
    "privunit": {"mechanism": "privunit", "epsilon": 8.0, "components": 16, "basis": BASIS},
}
ANCHORS = {"noise_multiplier": 0.8, "threshold_delta": 1e-6, "components": 8}
MODES = ("similar", "similar-swap", "cells", "random", "anchors")


@dataclass(frozen=True)
class Options:
    """One row of the table."""

    mode: str
    mechanism: str
    share: float
    egress: str
    claim: str | None
    outputs: int
    anchors: bool

    def plan(self) -> dict[str, Any]:
        """The plan that has these options."""
        synthesis = {
            **small_plan()["synthesis"],
            "grouping": self.mode,
            "outputs_per_group": self.outputs,
            "privatize": None,
            "anchors": ANCHORS if self.anchors else None,
        }
        if self.mechanism != "none":
            synthesis["privatize"] = {
                **MECHANISMS[self.mechanism],
                "share": self.share,
                "egress": self.egress,
                "claim": self.claim,
            }
        return small_plan(synthesis=synthesis)


def table() -> Iterator[Options]:
    """All combinations; without a mechanism its own options have one value each."""
    for mode, outputs, anchors in itertools.product(MODES, (1, 3), (False, True)):
        yield Options(mode, "none", 1.0, "averages", None, outputs, anchors)
        for mechanism, share, egress, claim in itertools.product(
            MECHANISMS, (0.5, 1.0), ("averages", "single"), (None, "patient")
        ):
            yield Options(mode, mechanism, share, egress, claim, outputs, anchors)


# --- the rules, written by hand -------------------------------------------------------------------


def is_refused(row: Options) -> bool:
    """No claim covers such a plan."""
    noised = row.mechanism != "none"
    return any(
        (
            row.anchors != (row.mode == "anchors"),  # cells need their section, and nothing else
            row.anchors and noised,  # averages of cells have noise already
            row.mechanism == "privunit" and row.egress == "averages",  # of single images alone
            # epsilon per patient is asked for, and some image has none
            noised and row.claim == "patient" and (row.mode, row.egress) != ("random", "averages"),
            # epsilon per patient is carried by some images, and the others are plain
            noised and row.mode == "random" and row.egress == "averages" and row.share < 1,
        )
    )


def expected_kinds(row: Options) -> dict[str, str]:
    """The kinds of claim that a plan makes, each with its unit."""
    kinds = {"updates": "patient", "k-anonymity": "image"}
    if row.mode == "anchors":
        kinds["averages"] = "linked component of patient ids at one site"
    elif row.mechanism != "none" and row.egress == "single":
        kinds["single images"] = "image"
    elif row.mechanism != "none" and row.mode == "random":
        kinds["averages"] = "patient"
    elif row.mechanism != "none":
        kinds["privatized averages"] = "average"
    return kinds


ADJACENCY = {
    "updates": "zero-out of one patient",
    "k-anonymity": "none",
    "privatized averages": "replace-one patient",
    "single images": "replace-one patient",
}
ROWS = list(table())


# --- the table ------------------------------------------------------------------------------------


def test_the_table_has_every_combination_and_both_outcomes() -> None:
    assert len(ROWS) == len(set(ROWS)) == 5 * 2 * 2 * (1 + 4 * 2 * 2 * 2)
    refused = [row for row in ROWS if is_refused(row)]
    assert 0 < len(refused) < len(ROWS)
    found = {kind for row in ROWS if not is_refused(row) for kind in expected_kinds(row)}
    assert found == {"updates", "averages", *ADJACENCY}


@pytest.mark.parametrize("mode", MODES)
def test_a_plan_claims_what_its_combination_of_options_allows_and_nothing_else(mode: str) -> None:
    for row in ROWS:
        if row.mode != mode:
            continue
        if is_refused(row):
            with pytest.raises(ValidationError):
                Study.model_validate(row.plan())
            continue
        check_claims(row, Study.model_validate(row.plan()))


def check_claims(row: Options, study: Study) -> None:
    """The claims of a valid plan are the expected ones, and the statement says no more."""
    claims = {claim.kind: claim for claim in claims_of(study)}
    assert {kind: claim.unit for kind, claim in claims.items()} == expected_kinds(row), row
    for kind, claim in claims.items():
        assert claim.adjacency == adjacency_of(row, kind), row
        assert claim.covers and claim.mechanism
        check_given(row, claim)
        assert (claim.epsilon, claim.delta) == budget_of(study, kind), row
    # one epsilon for updates and averages, and it is charged
    per_patient = "averages" in claims
    assert per_patient == (charged_image_event(study) is not None), row
    # then a site forms its groups anew, from the whole roster (client/egress/frozen.py)
    assert per_patient == covers_every_image(study), row
    assert ("averages of patients" in claims["updates"].covers) == per_patient, row
    check_statement(row, privacy_statement(study, {}, ACCOUNT))


def budget_of(study: Study, kind: str) -> tuple[float | None, float | None]:
    """The epsilon and delta that a claim must name."""
    if kind == "k-anonymity":
        return None, None
    if kind in ("privatized averages", "single images"):
        mechanism = latent_event(study)
        return mechanism.epsilon_per_image, mechanism.delta
    return study.privacy.epsilon, study.privacy.delta


def adjacency_of(row: Options, kind: str) -> str:
    """The adjacency that a claim must name."""
    if kind == "averages":
        return "add or remove one patient" if row.mode == "anchors" else "zero-out of one patient"
    return ADJACENCY[kind]


def check_given(row: Options, claim: Claim) -> None:
    """Every claim of an epsilon says what it takes as given."""
    assert ONE_PATIENT in claim.given, row
    if claim.kind == "k-anonymity":
        assert claim.epsilon is None and claim.delta is None
        return
    assert claim.epsilon is not None and claim.epsilon > 0
    assert LINKED in claim.given, row
    assert PUBLIC_FILES in claim.given, row
    assert (PUBLIC_BASIS in claim.given) == (row.mechanism == "privunit"), row
    # a gate that may stop an update stands beside every epsilon that updates have
    assert (AUDITED in claim.given) == (claim.kind in ("updates", "averages")), row
    words = " ".join(claim.given)
    counted_in = claim.kind in ("updates", "averages") and "averages" in expected_kinds(row)
    assert ("roster" in words) == (counted_in and row.mode == "random"), row
    assert ("more than 2 ids stops the batch" in words) == (counted_in and row.mode == "anchors"), (
        row
    )
    # the ledger does not compose what holds per average: the claim says what more draws do
    drawn_again = "the draws add up over all plans" in words
    assert drawn_again == (claim.kind == "privatized averages"), row
    assert ("takes the groups as given" in words) == (claim.kind == "privatized averages"), row


def check_statement(row: Options, statement: dict[str, Any]) -> None:
    """What the statement says of the images follows from the same rules."""
    images = statement["images"]
    covered = row.mode == "random" and row.mechanism != "none" and row.egress == "averages"
    assert images["groups_independent_of_the_data"] is covered, row
    # k patients contribute, but where no image may be asked
    assert images["contributors_guaranteed"] == (0 if covered else images["k"]), row
    assert images["claim"].startswith("Each image aggregates") == (not covered), row
    assert images["claim"].endswith("is not guaranteed.") == covered, row
    k_claim = next(c for c in statement["claims"] if c["kind"] == "k-anonymity")
    assert ("aggregates" in k_claim["covers"]) == (not covered), row
    said = "how many of them add something is not guaranteed" in " ".join(statement["given"])
    assert said == covered, row
    assert ("no image decided" in images["groups"]) == covered, row
    by_likeness = row.mode in ("similar", "similar-swap", "cells")
    assert ("no epsilon per patient is claimed" in images["groups"]) == by_likeness, row
    plain_random = row.mode == "random" and not covered
    assert ("no independence of the images" in images["groups"]) == plain_random, row
    assert ("A patient's own images decide" in images["groups"]) == (row.mode == "anchors"), row
    privatized = statement["privatized_images"]
    if row.mechanism == "none" or row.egress == "single":
        assert privatized == "No image of this release is privatized.", row
    else:
        assert privatized["unit"] == ("patient" if covered else "average"), row
        assert ("no ε per patient" in privatized["statement"]) == (not covered), row
    # its words hold every sentence that it takes as given, and its scope
    assert [claim["kind"] for claim in statement["claims"]] == list(expected_kinds(row))
    text = statement_markdown(statement)
    per_patient = "averages" in expected_kinds(row)
    assert ("comes again as it was" in text) == (not per_patient), row
    for sentence in (SCOPE, *statement["given"], *statement["limits"]):
        assert sentence in text, row


# --- plans without images of groups ---------------------------------------------------------------


def test_pairs_have_the_promise_of_the_updates_and_no_k() -> None:
    claims = {claim.kind: claim for claim in claims_of(Study.model_validate(vessels_plan()))}
    assert list(claims) == ["updates", "pairs"]
    updates, pairs = claims["updates"], claims["pairs"]
    assert (pairs.epsilon, pairs.delta) == (updates.epsilon, updates.delta) == (8.0, 1e-5)
    assert pairs.unit == "patient" and pairs.adjacency == updates.adjacency
    assert pairs.given == updates.given == (ONE_PATIENT, LINKED, AUDITED, PUBLIC_FILES)
    assert "averages" not in updates.covers
    statement = privacy_statement(Study.model_validate(vessels_plan()), {}, ACCOUNT)
    assert "comes again" not in statement_markdown(statement)


def test_only_a_plan_with_canaries_says_that_its_audit_may_stop_an_update() -> None:
    """And the frequency that it states is the audit's own."""
    assert "one in 10,000" in AUDITED and FALSE_ALARM == 1 / 10_000
    for plan in (small_plan(), vessels_plan()):
        silent = Study.model_validate(varied(plan, privacy__canaries=0))
        assert all(AUDITED not in claim.given for claim in claims_of(silent))


def test_no_statement_on_mr_patches_speaks_of_photographs() -> None:
    statement = privacy_statement(Study.model_validate(vessels_plan()), {}, ACCOUNT)
    assert "photograph" not in statement_markdown(statement)


def test_a_plan_that_releases_no_image_claims_none() -> None:
    study = Study.model_validate(small_plan(synthesis=None))
    assert [claim.kind for claim in claims_of(study)] == ["updates"]
    statement = privacy_statement(study, {}, ACCOUNT)
    assert statement["images"]["claim"] == "This plan releases no image."
    assert statement["images"]["k"] is None


# --- the second lock ------------------------------------------------------------------------------

GAUSSIAN = {**MECHANISMS["gaussian"], "share": 1.0}
UNCOVERED: dict[str, dict[str, object]] = {
    "random groups, a part privatized": {"share": 0.5},
    "a claim per patient beside plain averages": {"egress": "single", "claim": "patient"},
}


@pytest.mark.parametrize("case", UNCOVERED)
def test_no_statement_is_built_for_a_plan_that_no_claim_covers(case: str) -> None:
    plan = varied(small_plan(), synthesis__grouping="random", synthesis__privatize=GAUSSIAN)
    study = Study.model_validate(plan)
    claims_of(study)
    # a plan that was never validated, as an older version might have signed it
    assert study.synthesis is not None and study.privatize is not None
    section = study.privatize.model_copy(update=UNCOVERED[case])
    synthesis = study.synthesis.model_copy(update={"privatize": section})
    forged = study.model_copy(update={"synthesis": synthesis})
    for build in (claims_of, lambda plan: privacy_statement(plan, {}, ACCOUNT)):
        with pytest.raises(PolicyError) as refused:
            build(forged)
        assert refused.value.code == "E-CLAIM"


@pytest.mark.parametrize("grouping", ["similar", "anchors"])
def test_a_claim_per_patient_for_other_groups_has_no_statement(grouping: str) -> None:
    study = Study.model_validate(small_plan(synthesis__privatize=GAUSSIAN))
    assert study.synthesis is not None and study.privatize is not None
    section = study.privatize.model_copy(update={"claim": "patient"})
    changes = {"privatize": section, "grouping": grouping}
    synthesis = study.synthesis.model_copy(update=changes)
    with pytest.raises(PolicyError) as refused:
        claims_of(study.model_copy(update={"synthesis": synthesis}))
    assert refused.value.code == "E-CLAIM"


@pytest.mark.parametrize("spent", [8.01, float("nan"), float("inf")])
def test_no_statement_promises_less_than_the_plan_spends(spent: float) -> None:
    study = Study.model_validate(small_plan())
    account = dataclasses.replace(ACCOUNT, epsilon={"PLD": spent, "RDP": spent})
    with pytest.raises(PolicyError) as refused:
        privacy_statement(study, {}, account)
    assert refused.value.code == "E-PLAN-BUDGET"
    bound = dataclasses.replace(ACCOUNT, epsilon={"upper bound": spent})
    with pytest.raises(PolicyError):
        privacy_statement(study, {}, bound)


def test_each_models_own_constants_stand_in_the_statement() -> None:
    """Two models that differ in every constant: none is stated with the other's."""
    changes = {
        "models__glow__noise_multiplier": 2.5,
        "models__glow__clip": 0.5,
        "models__glow__patients_per_step": 8,
        "models__glow__local_steps": 7,
    }
    study = Study.model_validate(small_plan(**changes))
    models = privacy_statement(study, {}, ACCOUNT)["updates"]["models"]
    assert models == {
        "gan": {"sampling_rate": 0.16, "noise_multiplier": 4.0, "clip": 1.0, "steps": 4},
        "glow": {"sampling_rate": 0.08, "noise_multiplier": 2.5, "clip": 0.5, "steps": 7},
    }
