"""`ledger`: what was spent."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from client.cli.options import AsJson, StateFolder
from client.cli.prices import plan_words
from client.cli.state_folder import open_plans
from client.cli.terminal import write_line
from client.state.config import load_site
from client.state.folder import State
from client.state.ledger import LedgerReport
from client.state.price import average_price_here
from client.state.records import Records
from common.errors import ConfigurationError
from common.privacy.price import OF_AVERAGE

LedgerAction = Annotated[str, typer.Argument(metavar="[verify]", help="`verify`, or nothing")]


def ledger(state: StateFolder, what: LedgerAction = "", as_json: AsJson = False) -> None:
    """Show what was spent: every mechanism, epsilon by each accountant, the cap.

    `verify` checks the chain of all entries.
    """
    config = load_site(state)
    place = State(state)
    if what not in ("", "verify"):
        raise ConfigurationError(
            f"ledger {what}: unknown; expected `verify` or nothing",
            hint="kohort-site ledger --help",
        )
    # Opening the ledger would make an empty one.
    if not place.ledger.is_file():
        raise ConfigurationError(
            "nothing was spent yet: there is no ledger", hint="it begins with the first round"
        )
    records = Records(place, config, open_plans(state))
    book = records.ledger()
    if what == "verify":
        book.verify()
        if as_json:
            write_line(json.dumps({"verified": True, "head": book.head}))
        else:
            write_line(f"the chain is whole; head {book.head}")
        return
    report = book.report()
    average = average_price_here(place, config.policy)
    if as_json:
        averages = {"epsilon": average.spent, "cap": average.cap}
        write_line(json.dumps(_ledger_facts(report) | {"averages": averages}))
        return
    write_line(report.to_text())
    if average.spent:
        write_line(f"  {OF_AVERAGE}")
        for line in average.lines():
            write_line(line)
    for study in records.plans.valid().values():
        write_line(f"  plan {study.name}: {plan_words(records, report, study)}")


def _ledger_facts(report: LedgerReport) -> dict[str, Any]:
    """Return the report as one JSON object."""
    spent = report.spent
    return {
        "head": report.head,
        "mechanisms": [mechanism.describe() for mechanism in report.mechanisms],
        "declared": [mechanism.describe() for mechanism in report.declared],
        "epsilon": {"pld": spent.pld, "rdp": spent.rdp, "prv": spent.prv},
        "epsilon_is_upper_bound": spent.is_upper_bound,
        "delta": spent.delta,
        "cap_epsilon": report.cap_epsilon,
        "remaining": report.remaining,
    }
