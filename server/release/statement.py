"""The privacy statement of a release, as plain data and as Markdown.

In: the plan, the sites' signed headers, the account of epsilon.
Out: plain data, and text.
Guarantees: what is promised comes from the plan's declared claims (common/privacy/claims.py), all
other facts from a field of the plan or a signed header. No statement is built for a plan that no
claim covers, or that spends more than it promises. k and epsilon never become one number.
Not covered: a legal assessment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from common.errors import PolicyError
from common.privacy.boundary import HEAD_COMMITMENT, OPERATOR_LOG
from common.privacy.claims import (
    Claim,
    claims_of,
    describe_groups,
    find_claim,
    groups_are_independent,
    least_contributors,
)
from common.privacy.events import anchors_event, covers_every_image, latent_event
from common.privacy.latent_mechanisms import DATA_INDEPENDENT, Latent
from common.privacy.plan_report import BUDGET_ROUNDING
from common.privacy.price import PlanPrice, at_least, at_most, exactly
from common.study.plan import Study
from common.study.synthesis import Synthesis
from common.wire.messages import Header
from server.release.items import Account
from server.release.limits import limits_of
from server.release.templating import render_with_glossary

AUDIT_METHOD = (
    "one-run canary audit (Steinke, Nasr, Jagielski 2023) in the private steps that the sites of a "
    "rehearsal on public data ran on the plan's own models; canaries are invented patients along "
    "secret directions of the trained tensors, and no real patient takes part"
)
AUDIT_LIMITS = (
    "A low bound proves little. One run shows only a part of what could leak, and even "
    "noise at half its strength may give a bound below the claim. A bound above the claim "
    "would show a fault, at the stated confidence. Whether noise and clip match the plan is "
    "measured separately, along the canaries and on all trained tensors together."
)
AUDIT_SITES = (
    "Where the plan has canaries, each site carries them through its own training too. Its gate "
    "(rule 26) stays closed when the measured noise, the measured clip or the lower bound "
    "contradict the plan, so the updates that left passed this check. No number of a site's own "
    "audit leaves the site."
)
WEIGHTS_CLAIM = (
    "The last messages of all sites in this release name the same global weights. Each site "
    "checked the weights before it computed: tensors that the plan does not train are bit for bit "
    "those of the plan's starting checkpoint, the others are at most the plan's max_update_norm a "
    "round away from it, in L2."
)
CONTINUES = (
    "The starting weights are those of an earlier version of the study (plan {plan}), after "
    "{rounds} closed rounds of its sites; the epsilon of the updates covers these rounds too."
)
LOG_CLAIM = (
    "The operator keeps a log of what the consortium did. A head of it is a SHA-256 over every "
    "entry so far. Each site named below was sent this head, and signed it with its last message "
    "in this release. What stands before the head can no longer be changed, left out or added "
    "unnoticed: on the operator's side `kohort-server log verify --head` compares."
)
NO_LOG = "No site of this release signed a head of the operator's log."
MEAN = "Each round's step is the mean of the sites' updates by their public weights."
TRIMMED_MEAN = (
    "Each round's step is, in each number, the mean of the sites' updates without the smallest and "
    "the largest {share} of them, by the sites' public weights."
)
NORM_WEIGHTED = (
    "Each round's step is the mean of the sites' updates by their public weights; a site whose "
    "update was longer than the median counted less."
)
COMES_AGAIN = (
    "An image that a site released before comes again as it was, made with the weights of that "
    "earlier study."
)
ONE_EPSILON = "the one epsilon above covers these averages and the updates together"
SCOPE = (
    "This statement is of this plan alone. A patient may take part in several plans: each site's "
    "own ledger composes what they spend together, and the site's own policy caps it."
)
NO_LEAST_NUMBER = "How many of them add something to it is not guaranteed."
LARGE_EPSILON = 20.0  # e^20 is 485 million to one
LITTLE_PROTECTED = "An ε as large as this protects little."
NONE_PRIVATIZED = "No image of this release is privatized."
NO_IMAGES = "This plan releases no image."


def privacy_statement(
    study: Study, headers: Mapping[str, Header], account: Account
) -> dict[str, Any]:
    """Return the statement: updates, images, privatized images, and the limits of all three.

    Raises PolicyError: E-CLAIM for a plan that no claim covers, E-PLAN-BUDGET for an account above
    the plan's epsilon.
    """
    claims = claims_of(study)
    _refuse_broken_promise(study, account)
    return {
        "format": "kohort-privacy-statement/1",
        "plan": study.hash(),
        "unit": study.privacy.unit,
        "scope": SCOPE,
        "claims": [asdict(claim) for claim in claims],
        "updates": _updates_statement(study, claims, headers, account),
        "images": _images_statement(study, claims),
        "privatized_images": privatized_statement(study),
        "weights": _weights_statement(study, headers),
        "operator_log": _log_statement(headers),
        "absent": [],
        "human_review": "decided by each site's own policy; the outcome is not sent",
        "given": given_of(claims),
        "limits": limits_of(study),
    }


def _refuse_broken_promise(study: Study, account: Account) -> None:
    """Refuse to state an epsilon that the plan's own account exceeds."""
    price = price_of(study, account)
    if not price.planned <= study.privacy.epsilon * (1 + BUDGET_ROUNDING):
        raise PolicyError(
            f"plan {study.name}: it promises epsilon {exactly(price.promised)} and spends "
            f"{at_most(price.planned)}; no statement can be made of it",
            hint="release nothing of this plan",
            code="E-PLAN-BUDGET",
        )


def price_of(study: Study, account: Account) -> PlanPrice:
    """Return what the plan costs one patient of a site."""
    planned = account.epsilon.get("PLD", account.epsilon.get("upper bound", 0.0))
    return PlanPrice(planned, study.privacy.epsilon, study.privacy.delta)


def given_of(claims: Sequence[Claim]) -> list[str]:
    """Return what the claims take as given, each sentence once."""
    found = [sentence for claim in claims for sentence in claim.given]
    return list(dict.fromkeys(found))


def _updates_statement(
    study: Study, claims: tuple[Claim, ...], headers: Mapping[str, Header], account: Account
) -> dict[str, Any]:
    """What is promised of the updates, what was computed and audited, the sites' commitments."""
    # each site's commitment to the head over what it had spent
    privacy = study.privacy
    price = price_of(study, account)
    evidence = {}
    for name, header in sorted(headers.items()):
        evidence[name] = {HEAD_COMMITMENT: header.statement.get(HEAD_COMMITMENT)}

    # the promise, and what it rests on
    return {
        "claim": updates_claim(claims),
        "price": price.short(),
        "epsilon_planned": price.planned,
        "epsilon_promised": privacy.epsilon,
        "delta": privacy.delta,
        "epsilon_by_accountant": dict(account.epsilon),
        "accountants": dict(account.versions),
        "models": _models(study),
        "audit": audit_statement(account),
        "evidence": evidence,
        "consortium": _consortium(study),
    }


def updates_claim(claims: tuple[Claim, ...]) -> str:
    """Return the sentence on all that training sends, with averages where they are counted in."""
    claim = find_claim(claims, "updates")
    assert claim is not None
    comma = "," if "," in claim.covers else ""
    return (
        f"{claim.covers[0].upper()}{claim.covers[1:]}{comma} is ({claim.epsilon:g}, "
        f"{claim.delta:g})-differentially private for each of its patients, under zero-out "
        "adjacency, over all steps and rounds of the plan."
    )


def _models(study: Study) -> dict[str, dict[str, Any]]:
    """The constants of each model's private steps."""
    constants = {}
    for name, plan in study.models.trained().items():
        constants[name] = {
            "sampling_rate": round(study.sampling_rate(plan), 6),
            "noise_multiplier": plan.noise_multiplier,
            "clip": plan.clip,
            "steps": study.counted_rounds(name) * plan.local_steps,
        }
    return constants


def _weights_statement(study: Study, headers: Mapping[str, Header]) -> dict[str, Any]:
    """With which global weights the sites computed; collect.py saw that all name the same."""
    named = {str(header.statement["weights"]) for header in headers.values()}
    claim = WEIGHTS_CLAIM
    # groups that are formed anew, and pairs, never come again
    if study.synthesis is not None and not covers_every_image(study):
        claim = f"{claim} {COMES_AGAIN}"
    if study.continues is not None:
        rounds = sum(study.continues.rounds.values())
        claim = f"{claim} {CONTINUES.format(plan=study.continues.plan[:12], rounds=rounds)}"
    return {"sha256": sorted(named), "claim": claim, "aggregation": aggregation_sentence(study)}


def _log_statement(headers: Mapping[str, Header]) -> dict[str, Any]:
    """Which head of the operator's log each site signed, by head: from the signed headers alone."""
    heads: dict[str, list[str]] = {}
    for site, header in sorted(headers.items()):
        head = header.statement.get(OPERATOR_LOG)
        # a site of a version without the log names none
        if head is not None:
            heads.setdefault(str(head), []).append(site)
    return {"claim": LOG_CLAIM if heads else NO_LOG, "heads": heads}


def aggregation_sentence(study: Study) -> str:
    """Return how the sites' updates of a round became one step of the global weights."""
    plan = study.aggregation
    if plan.rule == "trimmed_mean":
        return TRIMMED_MEAN.format(share=f"{plan.trim:.0%}")
    return {"mean": MEAN, "norm_weighted": NORM_WEIGHTED}[plan.rule]


def _consortium(study: Study) -> dict[str, Any]:
    """The promise to a patient of one site, and to a patient of all of them: the sum."""
    privacy = study.privacy
    sites = len(study.sites)
    return {
        "patient_of_one_site": {"epsilon": privacy.epsilon, "delta": privacy.delta},
        "patient_of_every_site": {
            "epsilon": privacy.epsilon * sites,
            "delta": privacy.delta * sites,
            "sites": sites,
        },
    }


# --- images ---------------------------------------------------------------------------------


def _images_statement(study: Study, claims: tuple[Claim, ...]) -> dict[str, Any]:
    """What is promised of the released images, or of pairs of image and mask."""
    if study.synthesis is not None:
        return _averages_statement(study, study.synthesis)
    return _pairs_statement(claims)


def _averages_statement(study: Study, synthesis: Synthesis) -> dict[str, Any]:
    """What is promised of averages, and with `anchors` the mechanism behind their epsilon."""
    anchors = anchors_event(study)
    return {
        "claim": _claim_of_averages(synthesis),
        "k": synthesis.k,
        "contributors_guaranteed": least_contributors(synthesis),
        "grouping": synthesis.grouping,
        "groups": describe_groups(synthesis),
        "groups_independent_of_the_data": groups_are_independent(synthesis),
        "evidence": "every site's gate checks each image's group; its signed header is in "
        "statements/",
        "mechanism": anchors.describe() if anchors else _noise_of(synthesis),
    }


def _claim_of_averages(synthesis: Synthesis) -> str:
    """The sentence on k, which says where members of a group may add nothing."""
    patients = f"at least {synthesis.k} distinct patients of one site, as identified there."
    if least_contributors(synthesis) < synthesis.k:
        return f"Each image is the average of a group of {patients} {NO_LEAST_NUMBER}"
    return f"Each image aggregates {patients}"


def _noise_of(synthesis: Synthesis) -> str:
    """What the averages of a plan without anchors carry."""
    if synthesis.privatize is None or not synthesis.privatizes_averages:
        return "none"
    if synthesis.privatize.share < 1:
        return f"none, except on the privatized {synthesis.privatize.share:.0%} of the groups"
    return "every average is privatized"


def _pairs_statement(claims: tuple[Claim, ...]) -> dict[str, Any]:
    """What is promised of pairs from the trained generator: the promise of the updates, no k."""
    claim = find_claim(claims, "pairs")
    if claim is None:
        return {"claim": NO_IMAGES, "k": None, "grouping": None, "evidence": "none"}
    return {
        "claim": "Every pair of image and mask was drawn from a generator that learned of the "
        "sites' patients through noised updates alone. Drawing is post-processing, so the pairs "
        f"have the same ({claim.epsilon:g}, {claim.delta:g})-differential privacy for each patient "
        "of a site. k-anonymity is not claimed.",
        "k": None,
        "grouping": None,
        "evidence": "each site's signed header of its update in the last round is in statements/",
    }


def privatized_statement(study: Study) -> dict[str, Any] | str:
    """Return the mechanism of privatized images, or that the release holds none.

    It names the groups for which the mechanism's claim holds, and the model's own epsilon.
    """
    mechanism = _latent_mechanism(study)
    if mechanism is None or study.synthesis is None:
        return NONE_PRIVATIZED

    # the model's epsilon: beside the mechanism's own, or covering both
    privacy = study.privacy
    limit = f"ε={privacy.epsilon:g}, δ={privacy.delta:g} per patient"
    model = f"The model's training has {limit}, under zero-out."
    if mechanism.covers_patient:
        model = f"Together with the model's training: at most {limit}, under zero-out."
    if mechanism.epsilon_per_image >= LARGE_EPSILON:
        model = f"{LITTLE_PROTECTED} {model}"

    # the facts of the mechanism, and one sentence on both
    whole = study.latent_dimension
    facts = mechanism.describe()
    return {
        **facts,
        "dimension_of": whole,
        "model_epsilon": privacy.epsilon,
        "model_delta": privacy.delta,
        "groups_that_cover_patients": list(DATA_INDEPENDENT),
        "statement": f"{mechanism.statement(whole)}. {model} Claimed: {facts['claim']}.",
    }


def _latent_mechanism(study: Study) -> Latent | None:
    """The mechanism of the plan's privatized averages."""
    if study.synthesis is None or not study.synthesis.privatizes_averages:
        return None
    return latent_event(study)


# --- the canary audit -----------------------------------------------------------------------


def audit_statement(account: Account) -> dict[str, Any] | str:
    """Return each model's lower and upper bound with what they prove, or "not evaluated"."""
    if not account.canaries:
        return "not evaluated"
    models = {name: found.model_dump(mode="json") for name, found in account.canaries.items()}
    return {"method": AUDIT_METHOD, "models": models, "sites": AUDIT_SITES, "limits": AUDIT_LIMITS}


def audit_lines(statement: Mapping[str, Any]) -> list[str]:
    """Return one line for each model: lower bound, upper bound, and the measured noise."""
    audit = statement["updates"]["audit"]
    if isinstance(audit, str):
        return [f"Canary audit: {audit}."]
    return [_audit_line(name, found) for name, found in audit["models"].items()]


def _audit_line(name: str, found: Mapping[str, Any]) -> str:
    """Both bounds of one model, and what they rest on."""
    bounds = f"{at_least(found['lower_bound'])} ≤ ε ≤ {at_most(found['upper_bound'])}"
    return (
        f"{name}: {bounds} (delta {found['delta']:g}). Lower bound: {found['correct']} of "
        f"{found['guesses']} guesses about {found['canaries']} canaries at {found['sites']} sites "
        f"of a rehearsal were right over {found['steps']:,} private steps, at "
        f"{found['confidence']:.0%} confidence. Perfect guesses would give "
        f"{found['ceiling']:.2f}. Upper bound: PLD. Noise measured: {found['noise_ratio']:.3f} "
        f"times the plan's variance; on all trained tensors, with the signal, "
        f"{found['release_ratio']:.3f} times."
    )


# --- Markdown -------------------------------------------------------------------------------


def statement_markdown(statement: Mapping[str, Any]) -> str:
    """Return the statement as Markdown."""
    return render_with_glossary(
        "privacy_statement.md.j2",
        statement=statement,
        accounts=_accounts(statement),
        audit_lines=audit_lines(statement),
        claims=[_claim_row(claim) for claim in statement["claims"]],
        one_epsilon=ONE_EPSILON,
    )


def _claim_row(claim: Mapping[str, Any]) -> dict[str, str]:
    """One claim as a row of the table of claims."""
    epsilon = "none"
    if claim["epsilon"] is not None:
        epsilon = at_most(claim["epsilon"])
    delta = "none" if claim["delta"] is None else f"{claim['delta']:g}"
    words = {name: claim[name] for name in ("kind", "unit", "adjacency", "covers")}
    return {**words, "epsilon": epsilon, "delta": delta}


def _accounts(statement: Mapping[str, Any]) -> str:
    """Epsilon by accountant, on one line."""
    accounts = statement["updates"]["epsilon_by_accountant"]
    return ", ".join(f"{name} {at_most(value)}" for name, value in accounts.items())
