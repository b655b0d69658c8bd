"""The closing message: the sites of the last round learn that the study is done.

It carries their receipts and `done`. A site answers with its last accepted reply once more; any
other answer puts it in quarantine.
"""

from __future__ import annotations

import logging
import time
from typing import NamedTuple

from common.errors import RefusedError
from common.privacy import boundary
from common.wire import tensors
from server.operator.sites import Site
from server.rounds.exchange import Exchange, Grid, Reply
from server.rounds.faults import CODE, OURS, code_of
from server.rounds.intake import Instruction, check_repeated, signer_of
from server.rounds.study_run import StudyRun

log = logging.getLogger("kohort.server")


class Closing(NamedTuple):
    """The closing instruction, its payload, and the last round, which it refers to."""

    instruction: Instruction
    payload: bytes
    last_round: tuple[str, str, int]


def send_closing(run: StudyRun, grid: Grid) -> None:
    """Send the closing message; return when all have answered, or after `goodbye_s`."""
    # The sites whose reply counted in the last round.
    closing = closing_of(run)
    entry = run.record.closing_entry(*closing.last_round)
    assert entry is not None
    key = f"{run.record.place(*closing.last_round)}/0"
    sites = {}
    for name, site in run.active_sites().items():
        if name in entry.data["accepted"]:
            sites[name] = site
    # Ask all of them, and wait a bounded time.
    exchange = Exchange(run, grid, closing.payload)
    waiting = set(sites)
    deadline = time.monotonic() + run.limits.goodbye_s
    try:
        for site in sites.values():
            exchange.ask(site, closing.instruction, {"done": True})
        while waiting and time.monotonic() < deadline:
            reply = exchange.next()
            if reply is not None and reply.broken is not None:
                waiting.discard(reply.site)
                _quarantine(run, reply.site, code_of(reply.broken))
            elif reply is not None and reply.record is not None:
                waiting.discard(reply.site)
                _check(run, reply, sites[reply.site], key)
    finally:
        exchange.close()


def closing_of(run: StudyRun) -> Closing:
    """Return the closing message of a study: about its images, or about its last model."""
    if run.study.synthesis:
        number = boundary.LAST_SYNTHESIS_ROUND
        instruction = Instruction(run.study, "synthesize", "", number)
        return Closing(instruction, run.synthesis_weights(), ("synthesize", "", 0))
    model, plan = list(run.study.models.trained().items())[-1]
    number = plan.rounds - 1
    instruction = Instruction(run.study, "train", model, number)
    payload = tensors.dumps(run.record.weights(model, number))
    return Closing(instruction, payload, ("train", model, number))


def _check(run: StudyRun, reply: Reply, site: Site, key: str) -> None:
    """The answer must be the accepted reply."""
    digest = run.record.accepted_digest(key, site.name) or ""
    try:
        sealed = reply.sealed_message()
        check_repeated(sealed, site.name, signer_of(sealed, site), digest)
    except RefusedError as error:
        _quarantine(run, site.name, error.code)
    except OURS:
        raise
    except Exception:
        _quarantine(run, site.name, CODE)


def _quarantine(run: StudyRun, site: str, code: str) -> None:
    """Put a site in quarantine whose last answer is not the accepted one."""
    run.registry.quarantine(site, code)
    log.warning("%s: in quarantine, %s", site, code)
