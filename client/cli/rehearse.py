"""`rehearse`: a whole plan on the site's own cohort, alone; it spends nothing and sends nothing."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from client.cli.options import StateFolder
from client.cli.state_folder import open_plans
from client.cli.terminal import progress_bar, write_line
from client.rehearsal.course import Outcome
from client.rehearsal.meter import Meter, Phase
from client.rehearsal.practice_plan import Shorter
from client.rehearsal.rehearse import Rehearsal
from client.rehearsal.scratch import keep_pictures, scratch_folder
from client.state.config import load_site
from client.state.folder import State
from client.state.plans import Plans
from client.state.private import close_to_others
from common.errors import ConfigurationError
from common.study.bundle import open_bundle
from common.study.plan import Study

PlanOrBundle = Annotated[
    str,
    typer.Argument(
        metavar="[PLAN]",
        help="a bundle's folder, or name or first letters of the hash of an approved plan; empty: "
        "the only one that is approved",
    ),
]
Rounds = Annotated[int | None, typer.Option(min=1, help="at most so many rounds of each model")]
Steps = Annotated[
    int | None, typer.Option(min=1, help="at most so many steps of each round and phase")
]
Keep = Annotated[
    bool,
    typer.Option("--keep", help="keep the pictures: rehearsal/pictures of the state folder"),
]


def rehearse(
    state: StateFolder,
    plan: PlanOrBundle = "",
    rounds: Rounds = None,
    steps: Steps = None,
    keep: Keep = False,
) -> None:
    """Go through a whole plan on this site's own cohort, alone on this machine.

    Noise is of the plan's size but NOT PRIVATE, and the pictures are never sent: nothing is spent.
    The plan need not be approved, and the daemon may run. --rounds and --steps make it shorter.
    """
    config = load_site(state)
    close_to_others(state)
    plans = open_plans(state)
    study, bundle = find_plan(plans, plan)
    shorter = Shorter(rounds, steps)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    write_line(f"rehearsal of plan {study.name}: alone on this machine, with practice noise")
    meter = Meter(tell_phase)
    with scratch_folder(state) as scratch, progress_bar("at work") as show:
        rehearsal = Rehearsal(
            State(state), config, plans, study, bundle, shorter, meter, show, stop
        )
        outcome = rehearsal.play(scratch)
        for text in outcome_lines(study, outcome, shorter):
            write_line(text)
        write_line(meter.total.line())
        show_sheets(state, outcome, keep=keep)
    write_line("nothing was spent and nothing was sent; what the rehearsal computed is removed")


def find_plan(plans: Plans, name: str) -> tuple[Study, Path]:
    """Return a verified plan and the folder of its bundle.

    Raises ConfigurationError unless one plan is meant.
    """
    if name and Path(name).is_dir():
        return open_bundle(Path(name), plans.signers), Path(name)
    found: list[tuple[Study, Path]] = []
    for plan_hash, study in plans.valid().items():
        if plan_hash.startswith(name) or study.name == name:
            found.append((study, plans.folder(plan_hash)))
    if len(found) != 1:
        raise ConfigurationError(
            f"{len(found)} approved plans match {name or '(any)'!r}, expected one",
            hint="give a bundle's folder, or the name of one plan; `kohort-site status` lists them",
        )
    return found[0]


def tell_phase(phase: Phase) -> None:
    """Print a phase that is over."""
    write_line(f"  {phase.line()}")
    sys.stdout.flush()


def outcome_lines(study: Study, outcome: Outcome, shorter: Shorter) -> Iterator[str]:
    """Yield what would leave, by label; for this screen alone."""
    if study.synthesis is not None:
        most = study.synthesis.max_images_per_site
        yield f"images that would leave: {sum(outcome.images.values())} of at most {most}"
        for label, count in outcome.images.items():
            yield f"  {label}: {count}"
    elif study.models.wgan is not None:
        pairs = study.models.wgan.released_pairs
        yield f"updates alone would leave; the server would draw {pairs:,} pairs like those here"
    else:
        yield "updates alone would leave"
    if not shorter.whole:
        yield "shortened: the study itself trains longer, and its images look otherwise"


def show_sheets(state: Path, outcome: Outcome, *, keep: bool) -> None:
    """Say where the pictures are; without --keep, wait for whoever looks at them on a terminal."""
    sheets = list(outcome.sheets)
    if keep:
        sheets = keep_pictures(state, sheets)
    elif not sys.stdin.isatty():
        write_line("its pictures are removed too; --keep keeps them")
        return
    for sheet in sheets:
        write_line(f"look at {sheet}")
    if sheets and not keep:
        typer.prompt("Enter removes them", default="", show_default=False)
