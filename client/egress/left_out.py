"""What leaves of a batch of which a person left images out.

In: a plan, a batch, the numbers of images that stay. Out: the rest of the batch.
Guarantees:
  1. only where a plan lets patients' images choose what leaves (the audit drops images there, too):
     an epsilon per patient, or groups of chance, would not survive the choice of a person who
     looks at patients
  2. all images of a group stay, or none does; no other image is made in their place
  3. the rest has the order that it had, and another digest: people decide on it anew
Not covered: what the number of images tells (docs/promises/2-k-anonymous-images.md);
whether the rest gives members away, which was measured of the whole batch (membership.py).
"""

from __future__ import annotations

from collections.abc import Sequence

from client.egress.evidence import SINGLE, Evidence
from client.egress.facts import Facts
from common.errors import PolicyError
from common.privacy.events import covers_every_image
from common.study.plan import Study
from common.wire.tensors import Arrays

# groupings in which patients' images choose what leaves
CHOSEN_BY_IMAGES = ("similar", "similar-swap", "cells")
COVERED = (
    "an epsilon per patient covers these images: if patients' images chose which of them leave, it "
    "would not hold. The batch leaves as it is, or not at all."
)
NOTHING_LEFT = "nothing would be left: reject the batch"
BY_CHANCE = (
    "chance draws the groups of this plan: if patients' images chose which of them leave, chance "
    "would not. The batch leaves as it is, or not at all."
)


def why_whole(study: Study) -> str:
    """Return why no single image of this plan can be left out, as a sentence; "" if one can."""
    if study.synthesis is None or covers_every_image(study):
        return COVERED
    if study.synthesis.grouping not in CHOSEN_BY_IMAGES:
        return BY_CHANCE
    return ""


def keep_rest(study: Study, evidence: Evidence, numbers: Sequence[int]) -> list[int]:
    """Return the places of the images that are left, in their order.

    `numbers`: images that stay on site, from 1. Raises PolicyError (E-REVIEW-SINGLE) where none
    may be left out, where a number names no image, or where nothing is left.
    """
    # (1) only where patients' images choose what leaves
    whole = why_whole(study)
    if whole:
        raise refuse_single(whole)
    count = len(evidence.group_of)
    _check_range(numbers, count)
    # (2) whole groups
    chosen = {number - 1 for number in numbers}
    groups = {evidence.group_of[place] for place in chosen} - {SINGLE}
    rest: list[int] = []
    for place, group in enumerate(evidence.group_of):
        if place not in chosen and group not in groups:
            rest.append(place)
    if not rest:
        raise refuse_single(NOTHING_LEFT)
    return rest


def check_numbers(facts: Facts, numbers: Sequence[int]) -> None:
    """Raise PolicyError (E-REVIEW-SINGLE) unless these images can be left out of the batch."""
    if facts.whole:
        raise refuse_single(facts.whole)
    _check_range(numbers, len(facts.images))
    if len(facts.of_groups(numbers)) == len(facts.images):
        raise refuse_single(NOTHING_LEFT)


def _check_range(numbers: Sequence[int], count: int) -> None:
    """Raise PolicyError (E-REVIEW-SINGLE) unless each number is that of an image."""
    if not numbers or not all(1 <= number <= count for number in numbers):
        raise refuse_single(f"expected numbers of images from 1 to {count}")


def take_rest(
    tensors: Arrays, evidence: Evidence, places: Sequence[int]
) -> tuple[Arrays, Evidence]:
    """Return the tensors and the evidence of the images at these places alone."""
    rest = {name: array[list(places)] for name, array in tensors.items()}
    indices = [evidence.group_of[place] for place in places]
    groups = list(dict.fromkeys(index for index in indices if index != SINGLE))
    number = {index: position for position, index in enumerate(groups)} | {SINGLE: SINGLE}
    kept = Evidence(
        tuple(evidence.groups[index] for index in groups),
        tuple(number[index] for index in indices),
        evidence.audit,
    )
    return rest, kept


def refuse_single(what: str) -> PolicyError:
    """The refusal to leave out single images."""
    return PolicyError(
        f"review: no image was left out: {what}",
        hint="approve the whole batch, or reject it",
        code="E-REVIEW-SINGLE",
    )
