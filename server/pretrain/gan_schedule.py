"""The schedule of a generator's pretraining: image size, losses and learning rates over a run."""

from __future__ import annotations

import math
from dataclasses import dataclass

from server.pretrain.gan_plan import PretrainPlan

WARM_UP_STEPS = 100
LEAST_RATE = 0.05
RAMP = 10.0  # a new loss reaches its full weight after 1 / RAMP of the run
TEXTURES = ("texture", "averaged_texture", "spots", "averaged_spots")  # weights that grow together


@dataclass(frozen=True)
class Phase:
    """What one step does."""

    size_px: int  # of the generated images: the plan's size or half of it
    judging: bool  # is there a critic?
    textured: bool  # do textures count?
    weights: dict[str, float]  # of the losses
    generator_rate: float
    encoder_rate: float
    critic_rate: float


def phase_at(share: float, step: int, plan: PretrainPlan) -> Phase:
    """Return the phase of `step` when `share` of the run is done."""
    # textures are compared on averages too, so they wait for the critic
    since = max(plan.textured, plan.alone)
    judging = share >= plan.alone
    size_px = plan.size_px
    if not judging and share < plan.coarse:
        size_px = plan.size_px // 2

    # encoder and generator: warm-up, then half a cosine; the critic's falls in the last 15 %
    warm = min(1.0, (step + 1) / WARM_UP_STEPS)
    rate = warm * max(LEAST_RATE, 0.5 + 0.5 * math.cos(math.pi * share))
    return Phase(
        size_px=size_px,
        judging=judging,
        textured=share >= since,
        weights=_weights(plan, share, since),
        generator_rate=plan.generator_learning_rate * rate,
        encoder_rate=plan.encoder_learning_rate * rate,
        critic_rate=plan.critic_learning_rate * min(1.0, 5 * (1.05 - share)),
    )


def _weights(plan: PretrainPlan, share: float, textured_since: float) -> dict[str, float]:
    """The plan's weights; those of the critic and of the textures grow from 0 when they set in."""
    growth = {"adversarial": min(1.0, RAMP * (share - plan.alone))}
    for name in TEXTURES:
        growth[name] = min(1.0, RAMP * (share - textured_since))
    return {name: weight * growth.get(name, 1.0) for name, weight in plan.weights.items()}
