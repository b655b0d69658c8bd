"""What a release's promises do not cover."""

from __future__ import annotations

from common.privacy.mechanisms import charged_image_event
from common.study.plan import Study
from common.study.synthesis import Synthesis

COUNT_LIMIT = "The number of images shows that at least k times as many patients took part."
LIMITS = (
    "k-anonymity is not differential privacy: the two are reported side by side and never as one number.",
    "Identities are those that each hospital knows: one person treated at two hospitals counts once at each.",
    "A group's label is public: whoever knows that a person is in a group of one label learns that label.",
    "Somebody who knows the photographs of k - 1 members of a group can subtract them from an average.",
    COUNT_LIMIT,
    "Nothing is unlearned after release: withdrawal of consent stops future releases only.",
)
SEVERAL_OUTPUTS = (
    "Each group gives up to {count} images: they show the same patients and are not independent. Tests, error bars and "
    "cross-validation that count them as separate patients are too sure of themselves."
)
MOVED_OUT = (
    "Averages vary less than single images, so each is moved away from the generator's middle along {count} principal directions by "
    "public factors of at most the square root of k. An image shows the way in which its group differs larger than it is."
)
RANDOM_LIMITS = (
    "Epsilon per patient takes as given who is on a site's roster and with which label; a change of the roster is not covered.",
    "A batch that the site's audit or a person stops does not come: that alone may say something about its patients' images.",
)
PAIR_LIMITS = (
    "Differential privacy bounds what can be learned about one patient from all that the sites sent; epsilon is how much, and not 0.",
    "The promise counts one patient at one site: a person treated at several sites is covered by the sum of their promises.",
    "Masks are drawn by the generator together with the images: nobody outlined or checked them.",
    "The starting checkpoint comes from public data, which the promise does not cover.",
    "Pairs resemble what many patients share; what is rare is missing or wrong.",
    "Nothing is unlearned after release: withdrawal of consent stops future releases only.",
)


def limits_of(study: Study) -> list[str]:
    """Return what the promises of this plan do not cover, a sentence or two each."""
    if study.synthesis is None:
        return list(PAIR_LIMITS)
    limits = _group_limits(study.synthesis)
    if study.synthesis.grouping == "random" and charged_image_event(study):
        limits += RANDOM_LIMITS
    return limits


def _group_limits(synthesis: Synthesis) -> list[str]:
    """The limits of averages, and of what the plan does to them."""
    outputs = synthesis.outputs_per_group
    limits = list(LIMITS)
    if outputs > 1:
        limits.remove(COUNT_LIMIT)  # k times the images would be too many patients
        limits.append(SEVERAL_OUTPUTS.format(count=outputs))
    if synthesis.spread_directions:
        limits.append(MOVED_OUT.format(count=synthesis.spread_directions))
    return limits
