"""The operator's rehearsal of the canary audit: a lower bound on epsilon for each trained model.

In: a plan.
Out: a `ModelAudit` for each model.
Guarantees: it runs the plan's constants, sampler, lattice and noise source over all steps of all
rounds, without patients. A stored result is used again; an audit that refutes the plan is refused.
Not covered: the sites' own audits, which run inside each site's training.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

from pydantic import ValidationError

from common.config import FrozenModel
from common.errors import PolicyError, RefusedError
from common.privacy.accounting import epsilon_pld
from common.privacy.canaries import Canaries, draw, rehearse
from common.privacy.canary_audit import Claim, audit, fault
from common.privacy.events import round_event
from common.privacy.noise import NoiseSource
from common.storage.files import atomic_write, read_capped
from common.study.plan import Study
from common.wire.messages import canonical

AUDIT_CAP_BYTES = 1 << 20


class ModelAudit(FrozenModel):
    """What the rehearsal of one model found, at `delta`.

    `lower_bound` holds at `confidence`; `ceiling` is its value with perfect guesses.
    `upper_bound` is the accountant's (PLD).
    """

    canaries: int
    steps: int
    guesses: int
    correct: int
    lower_bound: float
    ceiling: float
    upper_bound: float
    delta: float
    confidence: float
    noise_ratio: float


class Rehearsal(FrozenModel):
    """The audits of one plan, as kept on disk."""

    plan: str
    models: dict[str, ModelAudit]


def load_audits(study: Study, path: Path) -> Mapping[str, ModelAudit]:
    """Return the audits of a plan; empty for a plan without canaries.

    They are read from the file at `path`, or made and written there.
    Raises RefusedError for a file of another plan, and PolicyError (E-CANARIES) when an audit
    refutes the plan's claim.
    """
    if not study.privacy.canaries:
        return {}

    # make the audits once
    if not path.is_file():
        models = {name: rehearse_model(study, name) for name in study.models.trained()}
        made = Rehearsal(plan=study.hash(), models=models)
        atomic_write(path, canonical(made.model_dump(mode="json")))

    # read them, and refuse those of another plan
    try:
        found = Rehearsal.model_validate(json.loads(read_capped(path, AUDIT_CAP_BYTES)))
    except (ValueError, ValidationError) as error:
        raise RefusedError(
            f"{path}: not a canary audit of this version", hint="delete it: it is made anew"
        ) from error
    if found.plan != study.hash():
        raise RefusedError(
            f"{path}: the canary audit of another plan", hint="delete it: it is made anew"
        )
    return found.models


def rehearse_model(study: Study, name: str) -> ModelAudit:
    """Return the audit of all private steps of one model, on canaries alone."""
    plan = study.models.trained()[name]
    count = study.privacy.canaries
    delta = study.privacy.delta

    # run every step of every round with fresh coins and noise
    event = replace(round_event(study, name, count), steps=plan.steps)
    noise = NoiseSource()
    canaries = Canaries(draw(noise, count))
    rehearse(canaries, event, plan.clip, plan.patients_per_step, noise)

    # refuse a plan that its own canaries refute
    tally = canaries.tally()
    deviation = plan.noise_multiplier * plan.clip / plan.patients_per_step
    wrong = fault(tally, tally, Claim(event, deviation, delta, 1, count))
    if wrong:
        raise PolicyError(
            f"canary audit of {name}: {wrong}",
            hint="nothing was released: report it",
            code="E-CANARIES",
        )
    found = audit(tally, deviation, delta)
    return ModelAudit(**asdict(found), upper_bound=epsilon_pld([event], delta))
