"""`study abandon`, `study extend`: the ways out of a study that waits for a quorum."""

from __future__ import annotations

from typing import Annotated

import typer

from common.errors import ConfigurationError
from server.cli.options import StateFolder
from server.cli.state_folder import find_study, open_record
from server.cli.terminal import write
from server.operator.state import ServerState
from server.rounds import orders
from server.rounds.record import StudyRecord

ACTIONS = ("abandon", "extend")


def study(
    action: Annotated[str, typer.Argument(help="abandon or extend")],
    name: Annotated[str, typer.Argument(help="the study's name, or the start of its hash")],
    state: StateFolder,
    by: Annotated[
        float | None,
        typer.Option(help="extend: seconds from now; default: the plan's round_deadline_s"),
    ] = None,
) -> None:
    """End a study, or give its open round more time. Works while the server runs.

    `study abandon NAME` ends it for good: what was released stays, the sites are told to stop.
    `study extend NAME` sets the open round's deadline anew. The quorum stays the plan's.
    """
    if action not in ACTIONS:
        raise ConfigurationError(
            f"study {action}: expected `abandon NAME` or `extend NAME`",
            hint="kohort-server status shows the studies and what they wait for",
        )
    if action == "abandon" and by is not None:
        raise ConfigurationError("--by: for `study extend` alone", hint="leave it out")
    place = ServerState(state)
    with open_record(place, find_study(place, name)) as record:
        if action == "abandon":
            abandon(record)
        else:
            extend(record, by)


def abandon(record: StudyRecord) -> None:
    """Abandon a study, and say what follows."""
    name = record.study.name
    if not orders.abandon(record):
        write(f"study {name} was abandoned before\n")
        return
    write(f"study {name} is abandoned; what was released of it stays\n")
    write("a running server tells the sites; otherwise start `kohort-server run` once more\n")


def extend(record: StudyRecord, by: float | None) -> None:
    """Extend the open round, and say until when."""
    seconds = record.study.round_deadline_s if by is None else by
    opened = orders.extend(record, seconds)
    write(f"study {record.study.name}: {opened} waits {seconds:g} s from now\n")
    write(f"its quorum stays {record.study.quorum} of {len(record.study.sites)} sites\n")
