"""What a release's promises do not cover, and what its counts tell."""

from __future__ import annotations

from common.privacy.claims import found_again
from common.study.plan import Study
from common.study.synthesis import Synthesis

NOT_UNLEARNED = (
    "Nothing is unlearned: a withdrawal of consent changes only what a site computes afterwards. "
    "What the site sent before stays in models and releases, also in later ones."
)
KEPT_APART = (
    "k-anonymity is not differential privacy. The two stand side by side and are never combined "
    "into one number."
)
TWO_HOSPITALS = (
    "Each hospital knows its own identities only. One person treated at two hospitals counts once "
    "at each."
)
PUBLIC_LABELS = (
    "A group's label is public. Whoever knows that a person is in a group of one label learns "
    "that label."
)
SUBTRACTED = (
    "Somebody who knows the images of k - 1 members of a group can subtract them from the "
    "group's average, where it carries no noise."
)
SEVERAL_OUTPUTS = (
    "Each group gives up to {count} images. They show the same patients and are not independent. "
    "Tests, error bars and cross-validation that count them as separate patients overstate their "
    "certainty."
)
MOVED_OUT = (
    "Averages vary less than single images. So each is moved away from the generator's centre "
    "along {count} principal directions, by public factors of at most the square root of k. An "
    "image therefore exaggerates the way in which its group differs."
)
PAIR_LIMITS = (
    "Differential privacy bounds how much one patient's data can change all that the sites sent. "
    "Epsilon says how much that is, and it is not 0.",
    "The promise holds for one patient at one site. A person treated at several sites is covered "
    "by the sum of their promises.",
    "The generator draws masks together with images. Nobody outlined or checked them.",
    "Pairs resemble what many patients share. What is rare is missing or wrong.",
    NOT_UNLEARNED,
)

# --- what the number of images tells --------------------------------------------------------------

COUNT_OF_PAIRS = "The number of pairs is a constant of the plan and tells nothing of a patient."
COUNT_OF_CELLS = (
    "The number and the share of images of each label follow from the noisy sums and counts, and "
    "epsilon covers them as it covers the images."
)
COUNT_OF_ROSTER = (
    "The number and the share of images of each label show roughly how many patients of the sites "
    "have that label: k or more for each image. They follow from the rosters, which epsilon "
    "takes as given."
)
COUNT_OF_GROUPS = (
    "The number and the share of images of each label are computed from the sites' patients, and "
    "no epsilon covers them. They show roughly how many patients have that label: k or more for "
    "each group."
)
COUNT_OF_SEVERAL = "A group gives up to {count} images."


def count_sentence(study: Study) -> str:
    """Return what the number of released pictures tells of the sites' patients."""
    synthesis = study.synthesis
    if synthesis is None:
        return COUNT_OF_PAIRS
    if synthesis.grouping == "anchors":
        return COUNT_OF_CELLS
    if synthesis.grouping == "random" and synthesis.privatizes_averages:
        return COUNT_OF_ROSTER
    if synthesis.outputs_per_group > 1 and not synthesis.privatizes_all:
        several = COUNT_OF_SEVERAL.format(count=synthesis.outputs_per_group)
        return f"{COUNT_OF_GROUPS} {several}"
    return COUNT_OF_GROUPS


def limits_of(study: Study) -> list[str]:
    """Return what the promises of this plan do not cover, a sentence or two each."""
    if study.synthesis is None:
        return [*PAIR_LIMITS, count_sentence(study)]
    return [*_group_limits(study.synthesis), count_sentence(study), NOT_UNLEARNED]


def _group_limits(synthesis: Synthesis) -> list[str]:
    """The limits of averages, and of what the plan does to them."""
    limits = [KEPT_APART, TWO_HOSPITALS, PUBLIC_LABELS]
    anchors = synthesis.grouping == "anchors"
    if not anchors and not synthesis.privatizes_all:
        limits.append(SUBTRACTED)
    again = found_again(synthesis)
    if again is not None:
        limits.append(again)
    if synthesis.privatizes_all:
        return limits
    if synthesis.outputs_per_group > 1:
        limits.append(SEVERAL_OUTPUTS.format(count=synthesis.outputs_per_group))
    if synthesis.spread_directions:
        limits.append(MOVED_OUT.format(count=synthesis.spread_directions))
    return limits
