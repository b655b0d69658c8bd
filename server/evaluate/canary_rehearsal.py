"""The canary audit of a rehearsal: a lower bound on epsilon for each trained model.

In: a plan, the files that the sites of a rehearsal of this plan wrote (`kohort-site audit --out`).
Out: a `ModelAudit` for each model.
Guarantees: what is printed was measured in the private steps that the rehearsal's sites ran on the
plan's own models. A file of another plan is refused, and so is an audit that refutes the plan.
Not covered: proof that the sites' images were public. The operator answers for that.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from common.config import FrozenModel
from common.errors import PolicyError, RefusedError, damage_named
from common.privacy.accounting import epsilon_pld
from common.privacy.audit_file import AuditFile, ModelCounts
from common.privacy.canary_audit import (
    CONFIDENCE,
    FALSE_ALARM,
    epsilon_at_least,
    guess_count,
)
from common.privacy.events import round_event
from common.privacy.price import at_least, at_most
from common.storage.files import read_capped
from common.study.plan import Study
from common.study.rehearsed import plan_digest

AUDIT_CAP_BYTES = 1 << 20


class ModelAudit(FrozenModel):
    """What the rehearsal of one model found at `sites` sites together, at `delta`.

    `lower_bound` holds at `confidence`; `ceiling` is its value with perfect guesses.
    `upper_bound` is the accountant's (PLD). `noise_ratio`: of the noise along canaries that were
    left out. `release_ratio`: of all trained numbers that were released.
    """

    sites: int
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
    release_ratio: float


def load_audits(study: Study, paths: Sequence[Path]) -> Mapping[str, ModelAudit]:
    """Return the audits of a plan from its rehearsal's files; empty without any file.

    Raises RefusedError for a file of another plan or shape and for a site that comes twice, and
    PolicyError (E-CANARIES) when an audit refutes the plan's claim.
    """
    files = [_read(path, study) for path in paths]
    sites = [file.site for file in files]
    if len(set(sites)) < len(sites):
        raise RefusedError(
            f"--audit: {', '.join(sites)}: expected each site once, got one twice",
            hint="give one file of each site of the rehearsal",
        )
    if not files:
        return {}
    found = {}
    for name in study.models.trained():
        found[name] = pool_audits(study, name, [file.models[name] for file in files])
    return found


def _read(path: Path, study: Study) -> AuditFile:
    """The file at `path`, of this plan and of all its steps."""
    text = read_capped(path, AUDIT_CAP_BYTES)
    damage = RefusedError(
        f"{path}: not a canary audit of this version",
        hint="`kohort-site audit --out FILE` writes it at each site of a rehearsal",
    )
    with damage_named(damage):
        found = AuditFile.model_validate(json.loads(text))
    if found.plan != plan_digest(study):
        raise RefusedError(
            f"{path}: the canary audit of another plan",
            hint="rehearse this plan: models, privacy, synthesis and intake must be equal to "
            "the last digit",
        )
    for name, plan in study.models.trained().items():
        counts = found.models.get(name)
        if counts is None or not _is_whole(counts, plan.steps):
            raise RefusedError(
                f"{path}: models.{name}: expected what was measured over all {plan.steps} steps",
                hint="let the rehearsal end, then export again",
            )
    return found


def _is_whole(counts: ModelCounts, steps: int) -> bool:
    """Whether the counts are of all steps, and of guesses that were fixed beforehand."""
    guesses = guess_count(counts.canaries)
    return (counts.steps, counts.guesses) == (steps, guesses) and counts.correct <= guesses


def pool_audits(study: Study, name: str, files: Sequence[ModelCounts]) -> ModelAudit:
    """Return the audit of one model at all sites of a rehearsal together.

    Their canaries and noise are independent, so their guesses count together: theorem 5.2 holds
    for the product of the sites' mechanisms.
    """
    delta = study.privacy.delta
    plan = study.models.trained()[name]
    event = replace(round_event(study, name, 1), steps=plan.steps)
    upper = epsilon_pld([event], delta)
    canaries = sum(counts.canaries for counts in files)
    guesses = sum(counts.guesses for counts in files)
    correct = sum(counts.correct for counts in files)
    draws = [max(1, counts.draws) for counts in files]

    # refuse a plan that its own canaries refute
    small = min(delta, FALSE_ALARM / (4 * max(1, canaries)))
    proven = epsilon_at_least(canaries, guesses, correct, small, 1.0 - FALSE_ALARM)
    if proven > upper:
        raise PolicyError(
            f"canary audit of {name}: epsilon is at least {at_least(proven)}, "
            f"the accountant says at most {at_most(upper)}",
            hint="nothing was released: report it",
            code="E-CANARIES",
        )
    return ModelAudit(
        sites=len(files),
        canaries=canaries,
        steps=plan.steps,
        guesses=guesses,
        correct=correct,
        lower_bound=epsilon_at_least(canaries, guesses, correct, delta),
        ceiling=epsilon_at_least(canaries, guesses, guesses, delta),
        upper_bound=upper,
        delta=delta,
        confidence=CONFIDENCE,
        noise_ratio=_mean([counts.noise_ratio for counts in files], draws),
        release_ratio=_mean([counts.release_ratio for counts in files], [1] * len(files)),
    )


def _mean(values: Sequence[float], weights: Sequence[int]) -> float:
    """The weighted mean."""
    total = sum(value * weight for value, weight in zip(values, weights, strict=True))
    return total / sum(weights)
