"""Refuses a plan that asks for more than the hospital's policy allows.

In: a study plan, the policy of site.yaml, this site's name. Out: nothing, or `PlanRefused`.
Guarantees: all problems are named at once.
Not covered: whether a plan is signed (common/study), what was spent before (ledger.py).
"""

from __future__ import annotations

from collections.abc import Iterator

from client.state.config import Policy
from common.errors import PolicyError
from common.privacy.anchors import NoisyAnchors
from common.privacy.draws import compose_draws
from common.privacy.events import image_event
from common.privacy.price import at_most
from common.study.families import FAMILIES
from common.study.plan import Study
from common.study.synthesis import Synthesis

TRAINERS = tuple(FAMILIES)  # the models that client/child/job.py can train


class PlanRefused(PolicyError):
    """A plan asks for more than the policy allows; `problems` lists everything at once."""

    default_code = "E-POLICY-PLAN"

    def __init__(self, problems: tuple[str, ...]) -> None:
        hint = "ask the operator for another plan, or let whoever owns site.yaml change its policy"
        super().__init__("\n".join(problems), hint=hint)
        self.problems = problems


def check_plan(study: Study, policy: Policy, site: str) -> None:
    """Raise PlanRefused, with all problems, unless the plan names this site and fits the policy."""
    problems = tuple(_plan_problems(study, policy, site))
    if problems:
        raise PlanRefused(problems)


def _plan_problems(study: Study, policy: Policy, site: str) -> Iterator[str]:
    """What the plan asks and the policy does not give."""
    plan = f"plan {study.name}"
    privacy = study.privacy
    if site not in {planned.name for planned in study.sites}:
        yield f"{plan}: sites: {site} is not among the sites of the plan"
    if privacy.epsilon > policy.max_epsilon:
        limit = f"policy.max_epsilon is {policy.max_epsilon:g}"
        yield f"{plan}: privacy.epsilon is {privacy.epsilon:g}, {limit}"
    if privacy.delta > policy.max_delta:
        limit = f"policy.max_delta is {policy.max_delta:g}"
        yield f"{plan}: privacy.delta is {privacy.delta:g}, {limit}"
    for name, model in study.models.trained().items():
        if name not in TRAINERS:
            yield f"{plan}: models.{name}: this version of kohort-site cannot train it"
        if model.noise_multiplier < policy.min_noise_multiplier:
            limit = f"policy.min_noise_multiplier is {policy.min_noise_multiplier:g}"
            noise = f"models.{name}.noise_multiplier is {model.noise_multiplier:g}"
            yield f"{plan}: {noise}, {limit}"
    if study.synthesis is not None:
        yield from _synthesis_problems(plan, study.synthesis, policy)
        yield from _average_problems(plan, study, policy)


def _synthesis_problems(plan: str, synthesis: Synthesis, policy: Policy) -> Iterator[str]:
    """What the plan's synthesis asks and the policy does not give."""
    if synthesis.k < policy.min_k:
        yield f"{plan}: synthesis.k is {synthesis.k}, policy.min_k is {policy.min_k}"
    if synthesis.grouping not in policy.groupings:
        yield f"{plan}: synthesis.grouping {synthesis.grouping} is not in policy.groupings"
    if synthesis.max_images_per_site > policy.max_images:
        limit = f"policy.max_images is {policy.max_images}"
        yield f"{plan}: synthesis.max_images_per_site is {synthesis.max_images_per_site}, {limit}"


def _average_problems(plan: str, study: Study, policy: Policy) -> Iterator[str]:
    """What noised averages without an epsilon per patient spend and the policy does not give."""
    event = image_event(study)
    if event is None or event.covers_patient or isinstance(event, NoisyAnchors):
        return
    epsilon = compose_draws([event], policy.max_delta)
    # written so that a NaN is refused
    if not epsilon <= policy.max_epsilon_average:
        limit = f"policy.max_epsilon_average is {policy.max_epsilon_average:g}"
        yield f"{plan}: synthesis.privatize spends epsilon {at_most(epsilon)} per average, {limit}"
