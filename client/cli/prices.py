"""What plans cost the patients of this site, in the lines of `ledger`, `review` and `status`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from client.cli.state_folder import open_plans
from client.state.config import load_site
from client.state.folder import State
from client.state.ledger import LedgerReport
from client.state.price import average_price_here, price_of_plan, site_report, spent_of_plan
from client.state.records import Records
from common.errors import KohortError
from common.privacy.price import OF_AVERAGE, OF_PATIENT, at_most
from common.study.plan import Study


def open_records(state: Path) -> Records:
    """Return the site's records; nothing is created."""
    return Records(State(state), load_site(state), open_plans(state))


def plan_words(records: Records, report: LedgerReport, study: Study) -> str:
    """Return what a plan costs one patient and what of it is spent here, in a few words."""
    spent = spent_of_plan(records, report, study)
    price = price_of_plan(records, study)
    text = f"{price.short()}, spent so far {at_most(spent)} (delta {price.delta:g})"
    if spent > price.planned * (1 + 1e-9):
        text += "; more than planned: a round was computed again after a crash"
    return text


def price_lines(records: Records) -> Iterator[str]:
    """Yield what each plan costs one patient, and what all of them have spent: a line each.

    Where the ledger cannot be read, the one line says so.
    """
    try:
        report = site_report(records)
    except KohortError as error:
        yield f"{OF_PATIENT}: unknown, the ledger cannot be read ({error.code})"
        return
    for study in records.plans.valid().values():
        yield f"{OF_PATIENT}, plan {study.name}: {plan_words(records, report, study)}"
    yield f"{OF_PATIENT}, all plans: {report.price.short()}"
    average = average_price_here(records.state, records.config.policy)
    if average.spent:
        yield f"{OF_AVERAGE}: {average.short()}"


def price_facts(records: Records) -> dict[str, Any] | None:
    """Return what `price_lines` says as numbers that are not rounded; None without a ledger."""
    try:
        report = site_report(records)
    except KohortError:
        return None
    plans = {}
    for study in records.plans.valid().values():
        price = asdict(price_of_plan(records, study))
        plans[study.hash()] = price | {"spent": spent_of_plan(records, report, study)}
    site = report.price
    return {
        "plans": plans,
        "spent": site.spent,
        "left": site.left,
        "cap": site.cap,
        "delta": site.delta,
        "lost": site.lost,
    }
