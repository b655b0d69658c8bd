"""`status`: what is true of this site now."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import typer

from client.cli.options import AsJson, Monitor, StateFolder
from client.cli.prices import open_records, price_facts, price_lines
from client.cli.terminal import write_line
from client.daemon.standing import PlanStanding, SiteStanding, site_standing
from common.alerts import Alert, exit_code, monitor_line
from common.errors import KohortError
from common.storage.heartbeat import spell_time


def status(state: StateFolder, as_json: AsJson = False, monitor: Monitor = False) -> None:
    """Show the daemon, the plans, the connection and what to mend; the daemon need not run."""
    if monitor:
        watch(state)
    found = site_standing(state)
    if as_json:
        facts = found.to_dict() | {"epsilon": price_facts(open_records(state))}
        write_line(json.dumps(facts))
        return
    for line in status_lines(found, tuple(price_lines(open_records(state)))):
        write_line(line)


def watch(state: Path) -> None:
    """Print one line for a monitoring system, and end with 0, 1 or 2."""
    healthy = ""
    try:
        found = site_standing(state, counts=False)
        healthy, alerts = f"{found.site}: {found.daemon.words()}", found.alerts()
    except KohortError as error:
        alerts = (Alert("error", error.code, str(error), error.hint),)
    write_line(monitor_line(healthy, alerts))
    raise typer.Exit(exit_code(alerts))


def status_lines(found: SiteStanding, prices: Sequence[str] = ()) -> Iterator[str]:
    """Yield what a person reads. `prices`: what the plans cost the patients of this site."""
    yield f"site {found.site}"
    yield f"daemon {found.daemon.words()}"
    if found.contact is not None:
        yield f"last contact with the server: {spell_time(found.contact)}"
    for device in found.devices:
        yield f"device {device}"
    for plan in found.plans:
        yield from _plan_lines(plan, found)
    yield from prices
    if found.expiry:
        first = found.expiry[0]
        yield f"certificate of {first.whose} ends first, on {first.ends:%Y-%m-%d}"
    if found.last_error is not None:
        error = found.last_error
        yield f"last error, of {spell_time(error.time)}: {error.advice.line}"
    for one in found.connection:
        if one.state.severity == "info":
            yield f"info: {one.state.code}: {one.state.text}"
    for alert in found.alerts():
        yield alert.line


def _plan_lines(plan: PlanStanding, found: SiteStanding) -> Iterator[str]:
    """One plan: rounds, images, cohort, what is at work."""
    yield f"plan {plan.name} ({plan.hash[:12]})"
    if plan.approval is not None:
        yield f"  approved {plan.approval.words()}"
    for model, (done, total) in plan.rounds.items():
        yield f"  {model:<8} {done}/{total} rounds answered"
    yield f"  images   {plan.images}"
    if plan.cohort is not None:
        yield f"  cohort   {plan.cohort.words()}"
    for one in plan.work:
        yield f"  {one.line(found.time.timestamp(), counts=True)}"
