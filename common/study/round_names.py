"""How both sides name a round, in logs and to people: `train gan round 1 of 2`, or `synthesize`.

Rounds are counted from 1 for people, and from 0 in keys and messages.
"""

from __future__ import annotations

from common.study.plan import Study


def round_name(study: Study, phase: str, model: str, number: int) -> str:
    """Return the name of a round. `number`: counted from 0. A model of no plan leaves the phase."""
    trained = study.models.trained()
    if model not in trained:
        return phase
    return f"{phase} {model} round {number + 1} of {trained[model].rounds}"


def name_of_key(study: Study, key: str) -> str:
    """Return the name of the round of a journal's key: plan's hash, phase, model, number."""
    _, phase, model, number, *_ = key.split("/")
    return round_name(study, phase, model, int(number))
