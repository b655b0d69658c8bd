"""How large an honest update of one round is, and the `max_update_norm` that follows from it.

In: a model's section of the plan, its shapes, and for pairs how far the shipped moving average
lies from its generator.
Out: an `UpdateNorm`.
Guarantees: public constants and the public checkpoint alone; imports no torch.
Not covered: an update that is larger than a trainer expects: the trainer scales it down
(client/learn/round_parts.py: within), so no honest update is refused by rule 9.

How an update arises. A private gradient is signal plus noise of deviation s = sigma·C/B in each of
d numbers; the signal's norm is at most C. Adam and RMSprop divide each number by its own root mean
square. So a step moves a number by the learning rate in the noise's direction, whatever s is. Over
n steps, in units of the learning rate:
  noise alone   sqrt(sum over s of c_s^2), c_s the weight of step s's gradient in the sum of moves
                (Adam), or sqrt(sum over t of 1/(1 - rho^t)) (RMSprop, which corrects no start)
  one direction n (Adam), or sum over t of 1/sqrt(1 - rho^t) (RMSprop)
With x = (C/(s·sqrt(d)))^2 = 1/r^2 the squared norm is at most d·(x·direction^2 + noise^2)/(1 + x),
which is concave in how the signal spreads over the numbers.
A generator's gradients carry no noise of their own: they wander, or go in one direction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from common.privacy.mechanisms import SubsampledGaussian
from common.study.families import Family, Shapes
from common.study.training import RMSPROP_DECAY, GanPlan, TrainedModel, WganPlan

MULTIPLE = 3.0  # of the norm that noise alone gives: the cap that `plan` writes
MOST = 10.0  # times that norm: above, the report warns
DIGITS = 3  # of the cap that `plan` writes
AVERAGE = "average."  # the prefix of a generator's moving average
GENERATOR = "generator."


@dataclass(frozen=True)
class UpdateNorm:
    """The L2 norm of one site's update of one round, over all its tensors.

    `noise`: expected where the private gradients are noise alone. `honest`: expected at most, with
    the largest signal in one direction throughout. `start`: what every site's first update has on
    top, because a moving average closes the gap that the starting checkpoint leaves.
    """

    noise: float
    honest: float
    start: float = 0.0

    @property
    def cap(self) -> float:
        """The `max_update_norm` to set: MULTIPLE times the noise's norm, and no less than honest.

        With `start` on top; rounded up to DIGITS digits.
        """
        exact = max(MULTIPLE * self.noise + self.start, self.honest)
        unit = 10.0 ** (math.floor(math.log10(exact)) - DIGITS + 1)
        return float(f"{math.ceil(exact / unit - 1e-11) * unit:.{DIGITS}g}")

    def times(self, cap: float) -> float:
        """Return how many times the noise's norm a cap is, beside `start`."""
        return (cap - self.start) / self.noise


@dataclass(frozen=True)
class _Moves:
    """How far one number moves over a round's steps, in learning rates."""

    noise: float
    direction: float


def update_norm(
    plan: TrainedModel, event: SubsampledGaussian, family: Family, shapes: Shapes, gap: float = 0.0
) -> UpdateNorm:
    """Return the norm of a round's update.

    `event`: the model's private steps. `shapes`: all its tensors, by global name. `gap`: the L2
    distance between a generator and its moving average in the starting checkpoint.
    """
    private = _private_norm(plan, event)
    if not isinstance(plan, GanPlan | WganPlan):
        return private
    generator = _generator_norm(plan, family, shapes)
    noise = math.hypot(private.noise, generator.noise)
    honest = math.hypot(private.honest, generator.honest)
    if not isinstance(plan, WganPlan):
        return UpdateNorm(noise, honest)
    average = _average_norm(plan, generator, gap)
    return UpdateNorm(
        math.hypot(noise, average.noise), math.hypot(honest, average.honest), average.start
    )


def _private_norm(plan: TrainedModel, event: SubsampledGaussian) -> UpdateNorm:
    """The norm of the tensors that private gradients change."""
    moves = _moves(plan, plan.local_steps)
    size = plan.learning_rate * math.sqrt(event.dimension)
    noise_ratio = event.noise_multiplier * math.sqrt(event.dimension) / plan.patients_per_step
    x = 1 / noise_ratio**2
    honest = math.sqrt((x * moves.direction**2 + moves.noise**2) / (1 + x))
    return UpdateNorm(size * moves.noise, size * honest)


def _generator_norm(plan: GanPlan | WganPlan, family: Family, shapes: Shapes) -> UpdateNorm:
    """The norm of the generator's tensors that move, without their moving average."""
    moves = _moves(plan, plan.local_steps // plan.critic_steps)
    dimension = 0
    for name, shape in shapes.items():
        own = name.startswith(family.post_processed) and not name.startswith(AVERAGE)
        if own and (isinstance(plan, GanPlan) or plan.moves(name.removeprefix(GENERATOR))):
            dimension += math.prod(shape)
    size = plan.generator_learning_rate * math.sqrt(dimension)
    return UpdateNorm(size * moves.noise, size * moves.direction)


def _average_norm(plan: WganPlan, generator: UpdateNorm, gap: float) -> UpdateNorm:
    """The norm of the moving average: it follows the generator and closes its gap to it.

    Over many rounds the gap is at most that of the checkpoint, or what the generator keeps open.
    """
    closed = 1 - plan.average_decay ** (plan.local_steps // plan.critic_steps)
    honest = max(closed * gap, generator.honest) + closed * generator.honest
    return UpdateNorm(generator.noise, honest, closed * gap)


def _moves(plan: TrainedModel, steps: int) -> _Moves:
    """The moves of one number over so many steps of the plan's optimiser."""
    if isinstance(plan, WganPlan) and plan.optimizer == "rmsprop":
        corrections = [1 / (1 - RMSPROP_DECAY**step) for step in range(1, steps + 1)]
        return _Moves(math.sqrt(sum(corrections)), sum(map(math.sqrt, corrections)))
    first = plan.betas[0]
    squares = 0.0
    weight = 0.0
    for step in range(steps, 0, -1):
        weight = (1 - first) / (1 - first**step) + first * weight
        squares += weight * weight
    return _Moves(math.sqrt(squares), float(steps))
