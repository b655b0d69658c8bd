"""What a release's promises do not cover."""

from __future__ import annotations

from common.privacy.events import charged_image_event
from common.study.plan import Study
from common.study.synthesis import Synthesis

COUNT_LIMIT = "The number of images shows that at least k times as many patients took part."
NOT_UNLEARNED = (
    "Nothing is unlearned after release: withdrawal of consent affects future releases only."
)
LIMITS = (
    "k-anonymity is not differential privacy. The two stand side by side and are never combined "
    "into one number.",
    "Each hospital knows its own identities only. One person treated at two hospitals counts once "
    "at each.",
    "A group's label is public. Whoever knows that a person is in a group of one label learns "
    "that label.",
    "Somebody who knows the photographs of k - 1 members of a group can subtract them from the "
    "group's average.",
    COUNT_LIMIT,
    NOT_UNLEARNED,
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
RANDOM_LIMITS = (
    "Epsilon per patient takes the roster of a site as given: who is on it and with which label. "
    "A change of the roster is not covered.",
    "A batch that the site's audit or a reviewer stops is not sent. Its absence alone may say "
    "something about its patients' images.",
)
PAIR_LIMITS = (
    "Differential privacy bounds what can be learned about one patient from all that the sites "
    "sent. Epsilon says how much that is, and it is not 0.",
    "The promise holds for one patient at one site. A person treated at several sites is covered "
    "by the sum of their promises.",
    "The generator draws masks together with images. Nobody outlined or checked them.",
    "The starting checkpoint comes from public data, which the promise does not cover.",
    "Pairs resemble what many patients share. What is rare is missing or wrong.",
    NOT_UNLEARNED,
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
