"""`study abandon`, `extend`, `next`: the ways out of a study that waits, and its next version."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from common.errors import ConfigurationError
from common.study.bundle import PLAN_FILE
from common.study.changes import changes
from server.cli.options import StateFolder
from server.cli.output import check_folder
from server.cli.state_folder import find_study, open_record
from server.cli.terminal import write
from server.operator.log import OperatorLog
from server.operator.state import ServerState
from server.rounds import orders
from server.rounds.record import StudyRecord
from server.rounds.versions import draft_next

ACTIONS = ("abandon", "extend", "next")


def study(
    action: Annotated[str, typer.Argument(help="abandon, extend or next")],
    name: Annotated[str, typer.Argument(help="the study's name, or the start of its hash")],
    state: StateFolder,
    by: Annotated[
        float | None,
        typer.Option(help="extend: seconds from now; default: the plan's round_deadline_s"),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="next: a new folder for the draft")] = None,
    add_site: Annotated[
        list[str] | None, typer.Option("--add-site", help="next: a hospital that joins; repeat it")
    ] = None,
) -> None:
    """End a study, give its open round more time, or draft its next version.

    `study abandon NAME` ends it for good: what was released stays, the sites are told to stop.
    `study extend NAME` sets the open round's deadline anew. The quorum stays the plan's.
    `study next NAME --out FOLDER` drafts a plan that goes on from an abandoned study's weights, for
    more hospitals or others. Sign it with `sign --next-of`.
    """
    if action not in ACTIONS:
        raise ConfigurationError(
            f"study {action}: expected `abandon NAME`, `extend NAME` or `next NAME`",
            hint="kohort-server status shows the studies and what they wait for",
        )
    if action != "next" and (out is not None or add_site):
        raise ConfigurationError("--out, --add-site: for `study next` alone", hint="leave them out")
    if action != "extend" and by is not None:
        raise ConfigurationError("--by: for `study extend` alone", hint="leave it out")
    place = ServerState(state)
    with open_record(place, find_study(place, name)) as record, place.open_log() as log:
        if action == "abandon":
            abandon(record, log)
        elif action == "extend":
            extend(record, by, log)
        else:
            draft(record, out, add_site or [])


def abandon(record: StudyRecord, log: OperatorLog) -> None:
    """Abandon a study, and say what follows."""
    name = record.study.name
    if not record.complete():
        log.note("study-abandoned", once=True, plan=record.study.hash())
    if not orders.abandon(record):
        write(f"study {name} was abandoned before\n")
        return
    write(f"study {name} is abandoned; what was released of it stays\n")
    write("a running server tells the sites; otherwise start `kohort-server run` once more\n")


def draft(record: StudyRecord, out: Path | None, sites: Sequence[str]) -> None:
    """Draft the next version, and say what changed and what comes next."""
    if out is None:
        raise ConfigurationError("study next: --out is missing", hint="name a new folder")
    check_folder("--out", out)
    new = draft_next(record, out, sites)
    write(f"{out / PLAN_FILE}: plan {new.name}, a draft; edit sites, quorum and release\n")
    for line in changes(record.study, new):
        write(f"  {line}\n")
    bundle = record.root / "bundle"
    write(f"next: kohort-server sign {out / PLAN_FILE} --next-of {bundle} --out BUNDLE\n")


def extend(record: StudyRecord, by: float | None, log: OperatorLog) -> None:
    """Extend the open round, and say until when."""
    seconds = record.study.round_deadline_s if by is None else by
    opened = orders.extend(record, seconds)
    log.note("study-extended", plan=record.study.hash(), seconds=seconds)
    write(f"study {record.study.name}: {opened} waits {seconds:g} s from now\n")
    write(f"its quorum stays {record.study.quorum} of {len(record.study.sites)} sites\n")
