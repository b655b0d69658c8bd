"""What a plan costs, from its public constants: of one patient, and of one average with noise.

In: a plan and what it spends. Out: prices (price.py).
"""

from __future__ import annotations

from common.privacy.accounting import Spent
from common.privacy.anchors import NoisyAnchors
from common.privacy.events import image_event
from common.privacy.price import AveragePrice, PlanPrice
from common.study.plan import Study


def plan_price(study: Study, spent: Spent) -> PlanPrice:
    """Return what a plan costs one patient; `spent`: all its mechanisms at the plan's delta."""
    return PlanPrice(spent.pld, study.privacy.epsilon, study.privacy.delta)


def average_price(study: Study) -> AveragePrice | None:
    """Return what one average with noise costs; None where noise covers patients, or for none."""
    event = image_event(study)
    if event is None or event.covers_patient or isinstance(event, NoisyAnchors):
        return None
    return AveragePrice(
        event.epsilon_per_image, event.epsilon_per_coordinate, event.dimension, event.delta
    )
