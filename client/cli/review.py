"""`review`: images that wait for a person, and the decision on them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Annotated

import typer

from client.cli.options import StateFolder
from client.cli.prices import open_records, price_lines
from client.cli.terminal import write_line
from client.cli.yields import waiting_lines, yield_lines
from client.egress.decisions import REASONS, Decision
from client.egress.review import Batch, Reviews, open_reviews
from client.state.config import load_site
from client.state.folder import State
from common.errors import ConfigurationError

BatchName = Annotated[
    str,
    typer.Argument(
        metavar="[BATCH | verify]",
        help="first letters of the batch; empty: the one that waits; `verify`: check all records",
    ),
]
Approve = Annotated[bool, typer.Option("--approve", help="let exactly this batch leave")]
Reject = Annotated[bool, typer.Option("--reject", help="keep it here for good")]
LeaveOut = Annotated[
    str,
    typer.Option(
        "--leave-out",
        metavar="N,N,...",
        help="let these images stay, with all of their groups; the rest is proposed anew",
    ),
]
Reviewer = Annotated[str, typer.Option("--reviewer", help="who decides")]
Reason = Annotated[str, typer.Option("--reason", help=f"why: {', '.join(REASONS)}")]
Note = Annotated[str, typer.Option("--note", help="why, in own words; it stays on site")]


def review(
    state: StateFolder,
    batch: BatchName = "",
    approve_batch: Approve = False,
    reject: Reject = False,
    leave_out: LeaveOut = "",
    reviewer: Reviewer = "",
    reason: Reason = "",
    note: Note = "",
) -> None:
    """Show images that wait for a person, or decide on them."""
    config = load_site(state)
    if approve_batch + reject + bool(leave_out) > 1:
        raise ConfigurationError(
            "--approve, --reject or --leave-out, not both", hint="kohort-site review --help"
        )
    reviews = open_reviews(State(state), config)
    name = reviewer or os.environ.get("USER", "")
    if leave_out:
        numbers = _numbers(leave_out)
        left = reviews.leave_out(batch, numbers, reviewer=name, reason=reason, note=note)
        write_line(_batch_line(left, reviews))
    elif approve_batch or reject:
        decided = reviews.decide(
            batch, approve=approve_batch, reviewer=name, reason=reason, note=note
        )
        write_line(_batch_line(decided, reviews))
    elif batch == "verify":
        count, head = reviews.verify()
        write_line(f"{count} records, each as it was written; head {head}")
    else:
        for line in _list_batches(reviews):
            write_line(line)
        if reviews.batches():
            records = open_records(state)
            for line in price_lines(records):
                write_line(line)
            for study in records.plans.valid().values():
                for line in yield_lines(records.state, study):
                    write_line(line)


def _numbers(text: str) -> list[int]:
    """Return the numbers in `3,7`; raises ConfigurationError."""
    words = text.replace(",", " ").split()
    if not all(word.isascii() and word.isdecimal() and len(word) < 7 for word in words):
        raise ConfigurationError(
            f"--leave-out {text}: expected numbers of images", hint="as on the sheet: 3,7"
        )
    return [int(word) for word in words]


def _list_batches(reviews: Reviews) -> Iterator[str]:
    """Yield the lines of all batches, with where to look at them."""
    batches = reviews.batches()
    for found in batches:
        yield _batch_line(found, reviews)
        for decision in found.decided:
            yield from _why(decision)
        for sheet in found.sheets:
            yield f"  look at {sheet}"
        facts = found.facts() if found.state == "waiting" else None
        if facts is not None:
            yield from waiting_lines(facts)
    if not batches:
        yield "no images have been made yet"


def _batch_line(batch: Batch, reviews: Reviews) -> str:
    """Return one batch in one line."""
    line = f"{batch.digest[:16]}  plan {batch.study[:12]}  {batch.state}"
    if batch.state == "waiting" and batch.decided:
        line += f" for another person; {len(batch.decided)} of {reviews.reviewers} approved:"
        return f"{line} {batch.reviewer}"
    if batch.reviewer:
        line += f" by {batch.reviewer}"
    return line


def _why(decision: Decision) -> Iterator[str]:
    """Yield why a person decided so, where they said it."""
    if decision.left_out:
        yield f"  {decision.reviewer}: images {', '.join(map(str, decision.left_out))} stay"
    if decision.reason:
        yield f"  {decision.reviewer}: {REASONS.get(decision.reason, decision.reason)}"
    if decision.note:
        yield f"  {decision.reviewer}: {decision.note}"
