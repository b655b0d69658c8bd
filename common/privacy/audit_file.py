"""The file that a rehearsal's site hands over: what its canaries measured, as counts and ratios.

In: the tallies of all rounds of a plan. Out: an `AuditFile`, as JSON.
Guarantees: coins, places and scores are not in it; a file with unknown keys is refused.
Not covered: whether the site's images were public. Whoever exports and reads it answers for that.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from common.config import FrozenModel
from common.privacy.canary_audit import count_correct, guess_count
from common.privacy.noise_meter import mean_length, noise_ratio, release_ratio
from common.privacy.tally import Tally
from common.study.fields import Identifier
from common.study.plan import Study

MOST = 10**12


class ModelCounts(FrozenModel):
    """What the canaries inside one model, and its trained tensors, showed over all steps.

    `draws`: of noise along left-out canaries. Ratios are of variances, over the plan's; `length`
    is of a clipped canary, over the clip norm.
    """

    canaries: int = Field(ge=0, le=MOST)
    steps: int = Field(ge=1, le=MOST)
    guesses: int = Field(ge=0, le=MOST)
    correct: int = Field(ge=0, le=MOST)
    draws: int = Field(ge=0, le=MOST)
    noise_ratio: float = Field(ge=0, allow_inf_nan=False)
    release_ratio: float = Field(ge=0, allow_inf_nan=False)
    length: float = Field(allow_inf_nan=False)


class AuditFile(FrozenModel):
    """What one site of a rehearsal measured; `plan` is `plan_digest` of its study."""

    format: Literal["kohort-audit/1"]
    plan: str = Field(pattern="^[0-9a-f]{64}$")
    site: Identifier
    models: dict[str, ModelCounts]


def counts_of(tally: Tally, study: Study, model: str) -> ModelCounts:
    """Return what a tally of `model` shows."""
    plan = study.models.trained()[model]
    length = plan.clip / plan.patients_per_step
    deviation = plan.noise_multiplier * length
    ratio, draws = noise_ratio(tally.inside, tally.steps, deviation)
    return ModelCounts(
        canaries=len(tally.inside),
        steps=tally.steps,
        guesses=guess_count(len(tally.inside)),
        correct=count_correct(tally.inside),
        draws=draws,
        noise_ratio=ratio,
        release_ratio=release_ratio(tally, deviation),
        length=mean_length(tally.inside) / length,
    )
