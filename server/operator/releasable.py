"""The rule that a plan of image and mask pairs must meet before it is signed."""

from __future__ import annotations

from common.errors import PolicyError
from common.study.plan import Study

MOST_RELEASED_PAIRS = 60_000  # three files each: a release holds at most 200,000


def releases_pairs(study: Study) -> bool:
    """Return whether a release holds pairs drawn from the study's generator, and so has no k."""
    return study.synthesis is None and study.models.wgan is not None


def check_releasable(study: Study) -> None:
    """Raise PolicyError (E-PLAN-PAIRS) for a plan whose pairs could not be released as planned."""
    plan = study.models.wgan
    if plan is None or study.synthesis is not None:
        return
    if len(study.strata()) != 1:
        raise PolicyError(
            f"models.wgan draws pairs without a label, the plan has {len(study.strata())}",
            hint="merge intake.labels into one with intake.merge_labels",
            code="E-PLAN-PAIRS",
        )
    if not study.release.min_images <= plan.released_pairs <= MOST_RELEASED_PAIRS:
        raise PolicyError(
            f"models.wgan.released_pairs is {plan.released_pairs}, expected release.min_images "
            f"({study.release.min_images}) to {MOST_RELEASED_PAIRS:,}",
            code="E-PLAN-PAIRS",
        )
