"""`check`: everything that would stop a run, found before it starts or while it runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from client.cli.options import AsJson, Monitor, StateFolder
from client.cli.state_folder import open_plans
from client.cli.terminal import progress_bar, write_line
from client.cli.yields import yield_lines
from client.daemon.standing import site_standing
from client.ingest.refresh import Intakes
from client.rehearsal.domain import can_look, look_at_pictures
from client.rehearsal.scratch import scratch_folder
from client.state.config import load_site
from client.state.folder import State
from client.state.private import close_to_others
from common.alerts import Alert, exit_code, monitor_line
from common.errors import ConfigurationError, KohortError
from common.study.plan import Study

Offline = Annotated[bool, typer.Option("--offline", help="do not call the server")]
Pictures = Annotated[
    bool,
    typer.Option(
        "--pictures",
        help="also look at some of the cohort's pictures with each plan's checkpoints: do they "
        "know pictures like these? It takes minutes",
    ),
]


def check(
    state: StateFolder,
    offline: Offline = False,
    pictures: Pictures = False,
    as_json: AsJson = False,
    monitor: Monitor = False,
) -> None:
    """Look for everything that would stop a run, before it starts. Ends with 2 if there is any.

    Beside a daemon that runs and is healthy it says so and ends with 0.
    """
    # Flower, which calls the server, takes half a second: commands that do not call load none
    from client.cli.inspection.site import inspect_site

    if monitor:
        watch(state, offline)
        return
    faults: list[Alert] = []
    if pictures:
        faults += look_at_all_pictures(state, quiet=as_json)
    looks = []
    for look in inspect_site(state, offline=offline):
        faults += look.faults
        looks.append({"look": look.name, "faults": [fault.to_dict() for fault in look.faults]})
        if not as_json:
            outcome = f"{len(look.faults)} to repair" if look.faults else "ok"
            write_line(f"{look.name}: {outcome}")
            for note in look.notes:
                write_line(f"  {note}")
            if look.name == "plans":
                show_expected(state)
    if as_json:
        write_line(json.dumps({"format": "kohort-site-check/1", "looks": looks}))
    if faults:
        raise ConfigurationError(
            f"{len(faults)} problems",
            problems=[check_line(fault) for fault in faults],
            hint="repair them and check again",
        )


def look_at_all_pictures(state: Path, *, quiet: bool) -> Iterator[Alert]:
    """Look at pictures with the checkpoints of each approved plan; `inspect_site` says the rest.

    Yields what a child refused, or why it could not start. What is wrong with the site itself, the
    looks name.
    """
    place = State(state)
    try:
        plans = open_plans(state)
        config = load_site(state)
        studies = plans.valid()
        close_to_others(state)
    except KohortError:
        return
    for study in studies.values():
        if not can_look(study) or not place.cohort(study.intake).is_dir():
            continue
        if not quiet:
            write_line(f"looking at pictures with the checkpoints of plan {study.name}")
        try:
            with scratch_folder(state) as scratch, progress_bar("pictures") as show:
                look_at_pictures(place, config, plans, study, scratch, show)
        except KohortError as error:
            yield Alert("error", error.code, str(error), error.hint)


def show_expected(state: Path) -> None:
    """Write which images each approved plan will give here; what is broken is a fault already."""
    try:
        studies = open_plans(state).valid()
    except KohortError:
        return
    for study in studies.values():
        for line in yield_lines(State(state), study):
            write_line(line)
        for line in change_lines(state, study):
            write_line(line)


def change_lines(state: Path, study: Study) -> Iterator[str]:
    """Yield what changed in the data folder since the plan's cohort was built, if anything.

    What cannot be read is a fault already.
    """
    place = State(state)
    if not place.cohort(study.intake).is_dir():
        return
    try:
        changes = Intakes(place, load_site(state)).changes(study.intake)
    except KohortError:
        return
    if changes:
        yield f"  plan {study.name}: files since the last ingest: {changes.words()}"
        yield "  kohort-site ingest --refresh takes them in"


def check_line(fault: Alert) -> str:
    """Return a fault as `check` prints it: code, cause, fix."""
    fix = f" ({fault.fix})" if fault.fix else ""
    return f"{fault.code}: {fault.text}{fix}"


def watch(state: StateFolder, offline: bool) -> None:
    """Print one line for a monitoring system, and end with 0, 1 or 2."""
    from client.cli.inspection.site import inspect_site

    healthy = "no daemon runs here"
    alerts: dict[Alert, None] = {}
    try:
        load_site(state)
        for look in inspect_site(state, offline=offline, brief=True):
            alerts |= dict.fromkeys(look.faults)
        standing = site_standing(state, counts=False)
        healthy = f"{standing.site}: {standing.daemon.words()}"
        alerts |= dict.fromkeys(standing.alerts())
    except KohortError as error:
        alerts[Alert("error", error.code, str(error), error.hint)] = None
    write_line(monitor_line(healthy, tuple(alerts)))
    raise typer.Exit(exit_code(tuple(alerts)))
