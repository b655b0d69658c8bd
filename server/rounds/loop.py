"""The round loop of a study, from its first round to its closing message.

A round:
  (1) start from the weights of the last closed round; check again the replies that are on disk
  (2) send every active site of the plan the same payload, under its own signed header
  (3) ask a site again when a message is lost, when it answers with a code, when it is silent
  (4) store a reply that passes the intake; put the site of any other reply in quarantine
  (5) close when all awaited sites have answered, or at the deadline; below the quorum the study
      pauses until enough have answered, or the operator orders otherwise (orders.py)
  (6) aggregate by the plan's rule in the order of sites, write the weights, journal the round,
      drop the updates
Guarantees: `kill -9` anywhere loses no accepted reply; a closed round stays as it is; log and
journal hold site names and codes alone.
Not covered: starting this process again (server/flower/coordinator.py).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from common.privacy.global_weights import Known, check_move, check_untrained
from common.storage.files import file_digest
from common.study.families import FAMILIES
from common.study.plan import Study
from common.study.round_names import round_name
from common.wire import tensors
from common.wire.messages import digest_of
from server.rounds.aggregate import aggregate
from server.rounds.closing import send_closing
from server.rounds.exchange import Grid
from server.rounds.gathering import Gathering
from server.rounds.intake import Instruction
from server.rounds.orders import Abandoned
from server.rounds.stopping import send_stop
from server.rounds.study_run import StudyRun

log = logging.getLogger("kohort.server")


def run_study(run: StudyRun, grid: Grid) -> None:
    """Train each model in the plan's order, collect the images, close the study.

    Continues where the journal ends.
    """
    try:
        run_rounds(run, grid)
    except Abandoned:
        if not run.record.ended():
            send_stop(run, grid)
            run.record.journal.append(run.study.hash(), "stopped")
        log.info("study %s: abandoned", run.study.name)
        return
    if not run.record.complete():
        send_closing(run, grid)
        run.log.note("study-complete", once=True, plan=run.study.hash())
        run.record.journal.append(run.study.hash(), "complete")
    log.info("study %s: complete", run.study.name)


def run_rounds(run: StudyRun, grid: Grid) -> None:
    """Run every round that is not closed; raises Abandoned as soon as the operator says so."""
    if run.record.abandoned():
        raise Abandoned
    for model, plan in run.study.models.trained().items():
        for number in range(plan.rounds):
            if run.record.closing_entry("train", model, number) is None:
                train_round(run, grid, model, number)
    if run.study.synthesis and run.record.closing_entry("synthesize", "", 0) is None:
        image_round(run, grid)


def train_round(run: StudyRun, grid: Grid, model: str, number: int) -> None:
    """Run one round of one model."""
    # (1) to (5) start from the last weights, gather the sites' updates
    weights = run.record.weights(model, number)
    shapes = {name: array.shape for name, array in weights.items()}
    payload = tensors.dumps(weights)
    digest = digest_of(payload)
    instruction = Instruction(run.study, "train", model, number, shapes=shapes, weights=digest)
    gathering = Gathering(run, grid, instruction, payload)
    gathering.gather()
    # (6) average, write, journal
    sites = gathering.complete
    scratch = run.record.round_folder(model, number) / "scratch"
    new: tensors.Arrays = {}
    new |= aggregate(run.study, model, weights, sites, gathering.read, scratch)
    _check_grown(run.study, model, number, weights, new)
    path = run.record.write_weights(model, number + 1, new)
    outcome = gathering.outcome() | {"weights": file_digest(path)}
    note_closed(run, "train", model, number, sites)
    run.record.close_round("train", model, number, outcome)
    _log_closed(run, "train", model, number, sites)


def note_closed(
    run: StudyRun, phase: str, model: str, number: int, accepted: Iterable[str]
) -> None:
    """Note in the log that a round closes, with the sites that it was closed with."""
    place = run.record.place(phase, model, number)
    names = ", ".join(sorted(accepted))
    run.log.note("round-closed", once=True, round=place, accepted=names)


def _check_grown(
    study: Study, model: str, number: int, weights: tensors.Arrays, new: tensors.Arrays
) -> None:
    """Check that every site will take the new weights (rules 15 and 16)."""
    plan = study.models.trained()[model]
    known = Known(number, weights)
    check_untrained(new, known, number + 1, FAMILIES[model], plan)
    check_move(new, known, number + 1, plan)


def image_round(run: StudyRun, grid: Grid) -> None:
    """Ask every site for its synthetic images."""
    payload = run.synthesis_weights()
    instruction = Instruction(run.study, "synthesize", "", 0, weights=digest_of(payload))
    gathering = Gathering(run, grid, instruction, payload)
    gathering.gather()
    note_closed(run, "synthesize", "", 0, gathering.complete)
    run.record.close_round("synthesize", "", 0, gathering.outcome())
    _log_closed(run, "synthesize", "", 0, gathering.complete)


def _log_closed(run: StudyRun, phase: str, model: str, number: int, sites: Iterable[str]) -> None:
    """Log with whose answers a round was closed."""
    name = round_name(run.study, phase, model, number)
    log.info("%s: %s: closed with %s", run.study.name, name, ", ".join(sorted(sites)))
