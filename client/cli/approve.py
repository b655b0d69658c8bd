"""`approve`: a signed plan, shown to a person as a letter, and allowed or not."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from client.cli.letter import (
    Ask,
    Before,
    Prices,
    about_whom,
    at_what_price,
    what_changed,
    what_it_takes,
    what_leaves,
    what_to_expect,
    who_asks,
)
from client.cli.options import StateFolder
from client.cli.state_folder import open_plans
from client.cli.terminal import write_line
from client.cli.yields import yield_lines
from client.state.config import load_site
from client.state.folder import State
from client.state.machine import check_memory, memory_lines, read_room
from client.state.membership import read_membership
from client.state.plan_check import check_plan
from client.state.plans import Plans, log_refusal
from client.state.price import (
    average_price_here,
    epsilon_after,
    price_after,
    refuse_over_cap,
    site_report,
)
from client.state.records import Records
from common.errors import ConfigurationError, PolicyError
from common.privacy.events import plan_events
from common.privacy.plan_report import feasibility, refuse_infeasible, refuse_over_budget
from common.study.bundle import open_bundle
from common.study.fit import check_checkpoints
from common.study.plan import Study
from common.study.shapes import parameter_counts
from common.study.versions import check_next
from common.study.words import fingerprint_words

MOST_NAME = 200  # characters of who approves

Bundle = Annotated[Path, typer.Argument(help="the operator's plan bundle")]
Yes = Annotated[bool, typer.Option("--yes", help="do not ask; --by says who approves")]
By = Annotated[
    str, typer.Option("--by", metavar="NAME", help="who approves; it is recorded with the time")
]
Words = Annotated[
    str,
    typer.Option(
        "--words", help="the six words that the operator read to you; with others it is refused"
    ),
]


def approve(
    state: StateFolder, bundle: Bundle, yes: Yes = False, by: By = "", words: Words = ""
) -> None:
    """Show a signed plan as a letter and, if a person says yes, allow it to run here."""
    name = check_name(by)
    if yes and not name:
        raise ConfigurationError(
            "--yes: who approves is recorded, and no name was given",
            hint='add --by "NAME"; the name stays on site',
        )
    config = load_site(state)
    plans = open_plans(state)
    place = State(state)

    # Verify, and show what is asked.
    study = open_bundle(bundle, plans.signers)
    membership = read_membership(place.membership)
    ask = Ask(study, membership, config.data, config.policy.review == "required")
    show(who_asks(ask))
    show(about_whom(ask))
    show(what_leaves(ask))
    show(what_to_expect(yield_lines(place, study)))

    # A refusal is noted in the log, with its code.
    with log_refusal(place, study.hash()):
        # Refuse what the policy forbids, what cannot be computed, what breaks its own promise and
        # what cannot learn.
        check_words(study, words)
        check_plan(study, config.policy, config.site)
        check_earlier(study, plans)
        check_checkpoints(study, bundle / "checkpoints")
        counts = parameter_counts(study, bundle / "checkpoints")
        events = plan_events(study, counts)
        refuse_over_budget(study, events)
        refuse_infeasible(study, counts)

        # Show the price, and refuse what does not fit beside what was spent.
        report = feasibility(study, counts, prv=False)
        spent = site_report(Records(place, config, plans))
        # the ledger holds what an earlier version spent
        own = plan_events(study, counts, earlier=False)
        after = epsilon_after(spent, study.hash(), own)
        average = average_price_here(place, config.policy)
        show(at_what_price(study, Prices(report.price, price_after(spent, after), average)))
        refuse_over_cap(study, after, config.policy.max_epsilon)

        # Refuse what this machine cannot hold.
        room = read_room(config.limits, config.compute)
        show(what_it_takes(report.sentence, memory_lines(study, room)))
        check_memory(study, room)
        show(what_changed(study, last_approved(plans, study)))

        # Ask, and keep.
        write_line("")
        if not name:
            name = check_name(typer.prompt("Who approves? Your name"))
        if not yes and not typer.confirm(f"{name}: allow this plan to run here?"):
            raise PolicyError("not approved", hint="nothing was changed")
    plans.approve(bundle, name, datetime.now(UTC))
    write_line(f"approved: {study.hash()[:12]} by {name}")


def show(lines: Iterator[str]) -> None:
    """Write a section of the letter."""
    for line in lines:
        write_line(line)


def check_name(name: str) -> str:
    """Return a person's name as it is recorded; raises ConfigurationError for what is none."""
    found = " ".join(name.split())
    if len(found) > MOST_NAME or not found.isprintable():
        raise ConfigurationError(
            f"--by: expected a name of at most {MOST_NAME} printable characters",
            hint='for example --by "Dr. Example"',
        )
    return found


def check_earlier(study: Study, plans: Plans) -> None:
    """Refuse a next version whose constants are not those of the version that this site knows."""
    if study.continues is not None and plans.is_approved(study.continues.plan):
        check_next(plans.open(study.continues.plan), study)


def check_words(study: Study, words: str) -> None:
    """Raise PolicyError (E-PLAN-WORDS) where the words that were read aloud are another plan's."""
    if words and words.lower().split() != fingerprint_words(study.hash()).split():
        raise PolicyError(
            "the six words are not this plan's: it is not the plan that the operator read to you",
            hint="ask the operator which plan it is, and for its bundle",
            code="E-PLAN-WORDS",
        )


def last_approved(plans: Plans, study: Study) -> Before | None:
    """Return the plan of this name that was approved here last, with its approval."""
    known = plans.last_named(study.name)
    approval = None if known is None else plans.approval(known.hash())
    if known is None or approval is None:
        return None
    return Before(known, approval)
