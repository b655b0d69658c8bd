"""The last message of an abandoned study: the sites learn that it is over.

It refers to the newest round that a site has answered, so a site has its answer stored and computes
nothing. A site that has answered none is asked about the first round, and computes nothing either.
"""

from __future__ import annotations

import time

from common.privacy import boundary
from common.wire import tensors
from server.rounds.exchange import Exchange, Grid
from server.rounds.intake import Instruction
from server.rounds.study_run import StudyRun


def send_stop(run: StudyRun, grid: Grid) -> None:
    """Tell every active site; return when all have answered, or after `goodbye_s`."""
    sites = run.active_sites()
    waiting = set(sites)
    deadline = time.monotonic() + run.limits.goodbye_s
    exchange = Exchange(run, grid, tensors.dumps({}))
    try:
        for site in sites.values():
            exchange.ask(site, stop_instruction(run, site.name), {"done": True})
        while waiting and time.monotonic() < deadline:
            reply = exchange.next()
            # what it answers counts for nothing: an answer or a code of its own shows that it heard
            if reply is not None and not reply.lost:
                waiting.discard(reply.site)
                exchange.drop(reply.site)
    finally:
        exchange.close()


def stop_instruction(run: StudyRun, site: str) -> Instruction:
    """Return the instruction that ends the study for one site."""
    answered = run.record.newest_answer(site)
    if answered is None:
        model = next(iter(run.study.models.trained()))
        return Instruction(run.study, "train", model, 0)
    phase, model, number = answered
    if phase == "train":
        return Instruction(run.study, "train", model, number)
    return Instruction(run.study, "synthesize", "", boundary.LAST_SYNTHESIS_ROUND)
