"""`status`: how far the studies are, how the sites stand, what to mend."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated

import typer

from common.alerts import Alert, exit_code, monitor_line
from common.errors import KohortError
from server.cli.options import AsJson, StateFolder
from server.cli.terminal import write
from server.operator.state import ServerState
from server.rounds.standing import Missing, SiteStanding, Standing, StudyStanding, read_standing

Monitor = Annotated[
    bool,
    typer.Option(
        "--monitor", help="one line for a monitoring system; ends with 0 ok, 1 warning, 2 critical"
    ),
]


def status(state: StateFolder, as_json: AsJson = False, monitor: Monitor = False) -> None:
    """Show how far the studies are and how the sites stand. Works while the server runs."""
    if monitor:
        watch(ServerState(state))
    found = read_standing(ServerState(state))
    if as_json:
        write(json.dumps(found.to_dict()) + "\n")
        return
    for line in status_lines(found):
        write(line + "\n")


def watch(place: ServerState) -> None:
    """Print one line for a monitoring system, and end with 0, 1 or 2."""
    healthy = ""
    try:
        found = read_standing(place)
        healthy, alerts = _healthy(found), found.alerts()
    except KohortError as error:
        alerts = (Alert("error", error.code, str(error), error.hint),)
    write(monitor_line(healthy, alerts) + "\n")
    raise typer.Exit(exit_code(alerts))


def status_lines(found: Standing) -> Iterator[str]:
    """Yield what a person reads."""
    yield f"server {found.server_words()}"
    for study in found.studies:
        yield from _study_lines(study)
    for study_hash, advice in found.unreadable.items():
        yield f"{study_hash[:12]:<24} cannot be read: {advice.code}: {advice.means}"
    for site in found.sites:
        yield from _site_lines(site)
    for row in found.foreign_runs:
        yield f"foreign run refused at {row.get('time')}: E-APP-UNPINNED"
    for name in found.renewals:
        yield f"{name:<24} waits for its certificate: kohort-server renewals"
    for one in found.ending:
        yield f"{one.severity}: {one.line}"


def _study_lines(study: StudyStanding) -> Iterator[str]:
    """One study: its rounds, why it waits, who is missing."""
    progress = study.progress
    yield f"{study.name:<24} {progress.done} of {progress.total} rounds: {study.words()}"
    if progress.code:
        yield (
            f"  paused since {progress.since} ({progress.code}): it goes on when enough hospitals "
            "have answered"
        )
        yield (
            f"  more time: kohort-server study extend {study.name}; "
            f"end it: kohort-server study abandon {study.name}"
        )
    for one in study.missing:
        yield f"{'':<24} {_missing_words(one)}"


def _missing_words(one: Missing) -> str:
    """How long a site has been missing."""
    if one.rounds == 1:
        return f"no answer of {one.site} in the round that was closed last"
    since = f", since {one.since}" if one.since else ""
    return f"no answer of {one.site} in the {one.rounds} rounds that were closed last{since}"


def _site_lines(site: SiteStanding) -> Iterator[str]:
    """One site: its state, when it was heard, what it answers."""
    yield f"{site.name:<24} {site.words()}"
    if site.declared is not None:
        yield f"  {site.declared.words()}"


def _healthy(found: Standing) -> str:
    """What the line says where there is nothing to mend."""
    connected = sum(site.connected for site in found.sites)
    studies = ", ".join(f"{study.name}: {study.words()}" for study in found.studies)
    sites = f"{connected} of {len(found.sites)} sites connected"
    return f"{found.server_words()}; {sites}; {studies or 'no study has begun'}"
