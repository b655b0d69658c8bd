"""What a plan spends: the mechanism of one training round, and that of the images.

In: a study plan. Out: mechanisms, from public constants alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from common.errors import ConfigurationError
from common.privacy.anchors import NoisyAnchors
from common.privacy.canonical import require
from common.privacy.latent_mechanisms import (
    Grouping,
    Latent,
    LatentGaussian,
    LatentLaplace,
    PrivUnit,
)
from common.privacy.mechanisms import Mechanism, SubsampledGaussian
from common.study.plan import Study
from common.study.synthesis import PrivatizePlan


def round_event(study: Study, model: str, dimension: int) -> SubsampledGaussian:
    """Return what one round of training `model` spends at a site.

    `dimension`: the model's trainable parameters.
    """
    plan = study.models.trained()[model]
    rate = study.sampling_rate(plan)
    return SubsampledGaussian(rate, plan.noise_multiplier, plan.local_steps, dimension, model)


def plan_events(
    study: Study, dimensions: Mapping[str, int], *, earlier: bool = True
) -> tuple[Mechanism, ...]:
    """Return all that one site spends of a patient's epsilon in this plan: updates and images.

    `dimensions`: trained numbers by model. The canaries' coordinates get noise too. `earlier`: with
    the rounds of earlier versions, which are in the starting weights; a site's ledger holds those
    already.
    """
    events: list[Mechanism] = []
    for name, plan in study.models.trained().items():
        event = round_event(study, name, dimensions[name] + study.privacy.canaries)
        rounds = study.counted_rounds(name) if earlier else plan.rounds
        events.append(replace(event, steps=rounds * plan.local_steps))
    images = charged_image_event(study)
    if images is not None:
        events.append(images)
    return tuple(events)


def charged_image_event(study: Study) -> Latent | NoisyAnchors | None:
    """Return what the plan's images spend of each patient's epsilon, beside the updates.

    That is `image_event` where it covers patients; None otherwise.
    """
    event = image_event(study)
    if event is None or not event.covers_patient:
        return None
    return event


def covers_every_image(study: Study) -> bool:
    """Return whether an epsilon per patient covers every image of the plan.

    It does for `anchors`, and for `random` groups that are all privatized. Such a study forms its
    groups from the whole roster, whatever was released before.
    """
    if study.synthesis is None or charged_image_event(study) is None:
        return False
    plan = study.synthesis.privatize
    return study.synthesis.anchors is not None or (plan is not None and plan.share == 1)


def image_event(study: Study) -> Latent | NoisyAnchors | None:
    """Return the mechanism of `synthesis.anchors` or of `synthesis.privatize`, or None.

    Its epsilon is spent where it covers patients and only declared where it does not.
    """
    if study.synthesis is None:
        return None
    if study.synthesis.anchors is not None:
        return anchors_event(study)
    if study.synthesis.privatizes_averages:
        return latent_event(study)
    return None


def anchors_event(study: Study) -> NoisyAnchors | None:
    """Return the mechanism of a plan that groups by anchors; None for any other plan."""
    synthesis = study.synthesis
    if synthesis is None or synthesis.anchors is None:
        return None
    plan = synthesis.anchors
    cells = study.cells_per_stratum * len(study.strata()) * len(study.sides())
    return NoisyAnchors(
        plan.noise_multiplier, plan.components, cells, synthesis.k, plan.threshold_delta
    )


def latent_event(study: Study) -> Latent:
    """Return the mechanism of `synthesis.privatize`; raises ConfigurationError without one.

    With egress `single` each image is of one patient: k = 1, and no group can depend on the data.
    """
    synthesis = study.synthesis
    if synthesis is None or synthesis.privatize is None or study.models.glow is None:
        raise ConfigurationError(
            "privatize: the plan has no synthesis.privatize, or no models.glow"
        )
    dimension = level_dimension(study)
    if synthesis.privatize.egress == "single":
        return latent_mechanism(synthesis.privatize, dimension, 1, "random")
    if synthesis.grouping == "anchors":
        raise ConfigurationError("privatize: not with grouping anchors")
    return latent_mechanism(synthesis.privatize, dimension, synthesis.k, synthesis.grouping)


def latent_mechanism(plan: PrivatizePlan, coordinates: int, k: int, grouping: Grouping) -> Latent:
    """Return the mechanism of a `privatize` section for averages of k.

    `coordinates`: of its levels, before any basis.
    """
    dimension = plan.components or coordinates
    if plan.mechanism == "gaussian":
        return LatentGaussian(dimension, k, grouping, _given(plan.epsilon), _given(plan.delta))
    if plan.mechanism == "privunit":
        require("k", k, k == 1, "1: privunit privatizes one image (egress: single)")
        return PrivUnit(dimension, _given(plan.epsilon))
    return LatentLaplace(
        plan.clip or "l1_ball", _given(plan.radius), dimension, k, grouping, _given(plan.scale)
    )


def level_dimension(study: Study) -> int:
    """Return the latent coordinates of `privatize.levels`: all D, or the top level's."""
    if study.models.glow is None:
        return study.latent_dimension
    levels = study.privatize.levels if study.privatize else "top"
    return study.models.glow.coordinates(study.latent_dimension, levels)


def _given(value: float | None) -> float:
    """A number that the plan's own checks made sure of."""
    if value is None:
        raise ConfigurationError(
            "privatize: a number of the mechanism is missing", hint="validate the plan first"
        )
    return value
