"""The operator's rehearsal of the canary audit: a lower bound on epsilon to print beside the accountant's upper bound.

In: a plan. Out: for each trained model a `ModelAudit`. Guaranteed: the plan's own constants, sampler, lattice and noise source
(common/privacy/canaries.py), all steps of all rounds, and no patient: no number here comes from a site; what was found is kept
in the study's folder, so a release that is built again says the same; an audit that refutes the plan is refused.
Not: the sites' own audits. Each runs inside the site's training, and its gate stays closed if it fails.
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
from common.privacy.canaries import Canaries, Claim, audit, draw, fault, rehearse
from common.privacy.events import round_event
from common.privacy.noise import NoiseSource
from common.storage.files import atomic_write, read_capped
from common.study.plan import Study
from common.wire.messages import canonical

AUDIT_CAP_BYTES = 1 << 20


class ModelAudit(FrozenModel):
    """What the rehearsal of one model found: lower bound (at `confidence`) and its ceiling, upper bound (PLD), at `delta`."""

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


def rehearsed(study: Study, path: Path) -> Mapping[str, ModelAudit]:
    """The audits of a plan: those in the file at `path`, or new ones, which are then kept there. Empty without canaries.

    Raises RefusedError for a file of another plan, PolicyError (E-CANARIES) when the audit refutes the plan's claim.
    """
    if not study.privacy.canaries:
        return {}
    if not path.is_file():
        models = {name: rehearse_model(study, name) for name in study.models.trained()}
        atomic_write(
            path, canonical(Rehearsal(plan=study.hash(), models=models).model_dump(mode="json"))
        )
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
    """All private steps of one model on the canaries alone, with fresh coins and noise."""
    plan, count, delta = study.models.trained()[name], study.privacy.canaries, study.privacy.delta
    event = replace(round_event(study, name, count), steps=plan.steps)
    noise = NoiseSource()
    canaries = Canaries(draw(noise, count))
    rehearse(canaries, event, plan.clip, plan.patients_per_step, noise)
    tally, deviation = canaries.tally(), plan.noise_multiplier * plan.clip / plan.patients_per_step
    wrong = fault(tally, tally, Claim(event, deviation, delta, 1, count))
    if wrong:
        raise PolicyError(
            f"canary audit of {name}: {wrong}",
            hint="nothing was released: report it",
            code="E-CANARIES",
        )
    return ModelAudit(
        **asdict(audit(tally, deviation, delta)), upper_bound=epsilon_pld([event], delta)
    )
