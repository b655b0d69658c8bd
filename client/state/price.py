"""What plans cost the patients of this site: spent so far, left, and after one more plan.

In: the ledger's report, a plan and what it spends. Out: prices (common/privacy/price.py), or a
refusal of a plan that does not fit under the site's cap.
Guarantees: nothing is written, and no ledger is begun; a plan that was begun is counted once.
Not covered: what one round may spend (ledger.py decides when it is reserved).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from client.state.artefacts import epsilon_of
from client.state.config import Policy
from client.state.folder import State
from client.state.group_store import GroupStore
from client.state.ledger import LedgerReport
from client.state.records import FILTER_ORDER, Records, epsilon_lost
from common.errors import PolicyError
from common.privacy.accounting import epsilon_rdp, spend
from common.privacy.events import plan_events
from common.privacy.mechanisms import Mechanism
from common.privacy.planned_price import plan_price
from common.privacy.price import PlanPrice, SiteAveragePrice, SitePrice, at_most, exactly
from common.study.plan import Study
from common.study.shapes import parameter_counts


@dataclass(frozen=True)
class After:
    """Epsilon of one patient once a plan is complete.

    `epsilon`: by PLD, with what was lost. `admitted`: what the cap is compared with: for a later
    plan, or after a loss, also by Rényi DP at one order, because what it computes may depend on
    what was released before.
    """

    epsilon: float
    admitted: float


def epsilon_after(report: LedgerReport, plan_hash: str, events: Sequence[Mechanism]) -> After:
    """Return what is spent once a plan is complete; `events`: all that the plan spends.

    A plan that was computed again in part, after a crash, has spent more than that.
    """
    others: list[Mechanism] = []
    for known, mechanisms in report.by_plan.items():
        if known != plan_hash:
            others += mechanisms
    history = (*others, *events)
    delta = report.spent.delta
    epsilon = spend(history, delta).pld + report.lost
    admitted = epsilon
    if others or report.lost:
        renyi = epsilon_rdp(history, delta, order=FILTER_ORDER) + report.lost
        admitted = max(epsilon, renyi)
    return After(max(epsilon, report.price.spent), admitted)


def refuse_over_cap(study: Study, after: After, cap: float) -> None:
    """Raise PolicyError (E-POLICY-CAP) for a plan that would pass the site's cap; a NaN does."""
    if not after.admitted <= cap:
        raise PolicyError(
            f"plan {study.name}: all its rounds would bring epsilon per patient to "
            f"{at_most(after.admitted)}, policy.max_epsilon is {exactly(cap)}; nothing was spent",
            hint="ask the operator for a plan with fewer steps or more noise",
            code="E-POLICY-CAP",
        )


def site_report(records: Records) -> LedgerReport:
    """Return what was spent here; of a site without a ledger, that nothing was, or what was lost.

    It imports no torch.
    """
    if records.state.ledger.is_file():
        return records.ledger().report(prv=False)
    policy = records.config.policy
    return LedgerReport(
        cohort="",
        head="",
        cap_epsilon=policy.max_epsilon,
        spent=spend((), policy.max_delta),
        mechanisms=(),
        declared=(),
        reserved=0,
        committed=0,
        lost=epsilon_lost(records.state),
    )


def price_after(report: LedgerReport, after: After) -> SitePrice:
    """Return the site's price with what is spent once a plan is complete."""
    return replace(report.price, after=after.epsilon)


def price_of_plan(records: Records, study: Study) -> PlanPrice:
    """Return what an approved plan costs one patient, from its constants and its checkpoints."""
    counts = parameter_counts(study, records.plans.checkpoints(study))
    return plan_price(study, spend(plan_events(study, counts), study.privacy.delta))


def spent_of_plan(records: Records, report: LedgerReport, study: Study) -> float:
    """Return what a plan has spent of one patient here so far, at the plan's own delta.

    As what is planned, it counts the rounds of the earlier versions that the plan goes on from.
    """
    spent: list[Mechanism] = []
    plan: Study | None = study
    while plan is not None:
        spent += report.by_plan.get(plan.hash(), ())
        plan = _earlier(records, plan)
    return spend(spent, study.privacy.delta).pld


def _earlier(records: Records, study: Study) -> Study | None:
    """The version that a plan goes on from, where it was approved here."""
    if study.continues is None or not records.plans.is_approved(study.continues.plan):
        return None
    return records.plans.open(study.continues.plan)


def average_price_here(place: State, policy: Policy) -> SiteAveragePrice:
    """Return the most that all noised draws of one group's average have spent here."""
    spent = 0.0
    if place.groups.is_file():
        with GroupStore(place.groups) as store:
            spent = max((epsilon_of(e, policy.max_delta) for e in store.events()), default=0.0)
    return SiteAveragePrice(spent, policy.max_epsilon_average)
