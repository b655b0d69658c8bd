"""What a study plan claims: declared values, from which every sentence of a statement is made.

In: a plan. Out: its `Claim`s; PolicyError (E-CLAIM) for a combination that no claim covers.
Guarantees:
  - images claim epsilon per patient only where every image that the plan sends is covered
  - independence of the data is claimed only of groups that chance draws, all of them privatized
  - each claim names unit, adjacency, what it covers and what it takes as given
Not covered: whether the constants keep the epsilon (plan_report.py), whether the mechanisms ran as
described (client/), what several plans spend together (client/state/ledger.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from common.errors import PolicyError
from common.privacy.anchors import ADD_OR_REMOVE, MOST_LINKED, UNIT, NoisyAnchors
from common.privacy.events import charged_image_event, image_event, latent_event
from common.privacy.mechanisms import ZERO_OUT
from common.privacy.statements import REPLACE_ONE
from common.study.plan import Study
from common.study.synthesis import Synthesis

Kind = Literal[
    "updates", "k-anonymity", "averages", "privatized averages", "pairs", "single images"
]
PATIENT = "patient"
NONE = "none"

# --- what a claim takes as given ------------------------------------------------------------------

ONE_PATIENT = (
    "Who is one patient is taken as given. Ids that share an identical or nearly identical "
    "image, or that the site's own list joins, count as one patient of a site. Two different "
    "images of one person under two ids count as two patients."
)
LINKED = (
    "Where the images of one patient join m other patients into one, taking that patient out "
    "changes m + 1 patients at once. "
    "Epsilon holds for a change of one."
)
LINKED_IN_CELLS = (
    f"A patient of more than {MOST_LINKED} ids stops the batch of averages. So m is at most "
    f"{MOST_LINKED - 1} in a batch that is sent."
)
AUDITED = (
    "An update whose measured noise, clip or lower bound the site's gate finds at fault is not "
    "sent. Chance alone stops at most one in 10,000 trainings of a model at a site. Epsilon and "
    "delta do not count whether an update was stopped."
)
PUBLIC_FILES = (
    "The starting checkpoints are taken as public. The data from which they were made are outside "
    "of every promise here; the model cards beside them name these data."
)
PUBLIC_BASIS = (
    "The basis of the latents is taken as public, and the images from which it was made are "
    "outside of every promise here."
)
PUBLIC_CODES = (
    "The basis of the codes is taken as public, and the photographs from which it was made are "
    "outside of every promise here."
)
ROSTER = (
    "Epsilon per patient takes the roster of a site as given: who is on it and with which label. "
    "A change of the roster is not covered."
)
STOPPED = (
    "A batch that the site's audit or a reviewer stops is not sent. Its absence alone may say "
    "something about its patients' images."
)
CHOSEN_GROUPS = (
    "Epsilon per average takes the groups as given. The images choose them, and what that choice "
    "tells is not covered."
)
FURTHER_DRAWS = (
    "Epsilon per average is that of one draw of noise. Another plan may draw noise for the same "
    "group again: the draws add up over all plans, and each site's own policy caps their sum."
)
MAY_ADD_NOTHING = (
    "A patient whose image the flow cannot encode counts in k and adds nothing to the average. To "
    "leave such a patient out would let an image decide who is in a group. So k patients stand "
    "behind each average, and how many of them add something is not guaranteed."
)
ONE_IMAGE_EACH = "Epsilon per image is one per patient only where each patient has one image."

# --- who is in a group ----------------------------------------------------------------------------

BY_CHANCE = "Groups were drawn by chance from a site's roster: no image decided who is in a group."
BY_CHANCE_PLAIN = (
    "Groups are drawn by chance. No epsilon and no independence of the images is claimed: a group "
    "that images formed in an earlier study of a site may come again."
)
BY_LIKENESS = (
    "Groups were chosen by the likeness of the images: no epsilon per patient is claimed for "
    "images."
)
FOUND_AGAIN = (
    "Averages of {what} are not safe from re-identification: somebody with another image of a "
    "member finds that member's average far more often than by chance."
)
SAFER_K = 10  # of averages without noise (docs/measurements/quality_fundus.md)
BY_CELLS = (
    "Groups were drawn by chance among patients of alike images: no epsilon per patient is claimed "
    "for images."
)
BY_ANCHORS = (
    "Cells lie around samples of the trained generator. A patient's own images decide the "
    "patient's cell, and the noise on sums and counts covers that choice."
)


@dataclass(frozen=True)
class Claim:
    """One promise: (epsilon, delta) for a `unit` under `adjacency`, of what it `covers`.

    `epsilon` is None where none is claimed (k-anonymity). `given`: what the promise takes as given,
    a sentence or two each. `mechanism`: the noise behind it, in one line, or "none".
    """

    kind: Kind
    epsilon: float | None
    delta: float | None
    unit: str
    adjacency: str
    covers: str
    given: tuple[str, ...]
    mechanism: str


def claims_of(study: Study) -> tuple[Claim, ...]:
    """Return all that a plan claims, the updates first.

    Raises PolicyError (E-CLAIM) where images without noise stand beside a claim per patient.
    """
    if study.synthesis is not None:
        refuse_uncovered(study.name, study.synthesis)
        return (_updates(study), _k_anonymity(study.synthesis), *_noised_images(study))
    if study.models.wgan is not None:
        return (_updates(study), _pairs(study))
    return (_updates(study),)


def _noised_images(study: Study) -> Iterator[Claim]:
    """Yield the one claim on noise of images that the plan makes, where it makes one."""
    if charged_image_event(study) is not None:
        yield _averages(study)
    elif image_event(study) is not None:
        yield _privatized_averages(study)
    elif study.privatize is not None:
        yield _single_images(study)


def find_claim(claims: tuple[Claim, ...], kind: Kind) -> Claim | None:
    """Return the claim of a kind, or None."""
    return next((claim for claim in claims if claim.kind == kind), None)


def groups_are_independent(synthesis: Synthesis) -> bool:
    """Return whether a statement may say that no patient's data decided who is in a group.

    Plain `random` groups may not: groups that images formed earlier may come again.
    """
    return synthesis.grouping == "random" and synthesis.privatizes_averages


def least_contributors(synthesis: Synthesis) -> int:
    """Return how many patients are guaranteed to add something to each average.

    Everywhere k, by a look at the images. Where epsilon per patient covers every image of `random`
    groups, no such look is allowed.
    """
    if groups_are_independent(synthesis):
        return 0
    return synthesis.k


def describe_groups(synthesis: Synthesis) -> str:
    """Return the sentence on who is in a group, and what is claimed of that."""
    if groups_are_independent(synthesis):
        return BY_CHANCE
    by_grouping = {"random": BY_CHANCE_PLAIN, "cells": BY_CELLS, "anchors": BY_ANCHORS}
    return by_grouping.get(synthesis.grouping, BY_LIKENESS)


def found_again(synthesis: Synthesis) -> str | None:
    """Return the sentence on re-identification, None where averages are noisy or safer than that.

    Averages without noise are at risk where likeness chooses who is averaged, and where there are
    fewer than `SAFER_K` of them.
    """
    if synthesis.anchors is not None or synthesis.privatizes_all:
        return None
    risks = []
    if synthesis.grouping.startswith("similar"):
        risks.append("patients who were chosen for their likeness")
    if synthesis.k < SAFER_K:
        risks.append(f"fewer than {SAFER_K} patients")
    if not risks:
        return None
    return FOUND_AGAIN.format(what=", and of ".join(risks))


def refuse_uncovered(plan: str, synthesis: Synthesis) -> None:
    """Raise PolicyError (E-CLAIM) unless every image is covered where one claims per patient.

    A valid plan is never refused (common/study/rules.py): this is the second lock.
    """
    section = synthesis.privatize
    if section is None:
        return
    partly = synthesis.grouping == "random" and section.egress == "averages" and section.share < 1
    anchored = synthesis.grouping == "anchors" or synthesis.anchors is not None
    asked = section.claim == PATIENT
    covered = synthesis.grouping == "random" and section.egress == "averages"
    if partly or anchored or (asked and not covered):
        raise PolicyError(
            f"plan {plan}: images without noise stand beside images that claim epsilon per patient",
            hint="privatize every average of random groups (synthesis.privatize.share: 1), "
            "or claim no epsilon per patient",
            code="E-CLAIM",
        )


# --- one function a kind --------------------------------------------------------------------------


def _updates(study: Study) -> Claim:
    """Of all that training sends, and of the averages where the plan counts them in."""
    covers = "what each site sent through training"
    given = [ONE_PATIENT, LINKED, *_given_of_updates(study)]
    mechanism = "subsampled gaussian"
    images = charged_image_event(study)
    if images is not None:
        covers = "what each site sent through training, and as averages of patients"
        given[2:2] = _given_of_averages(images)
        mechanism = f"{mechanism}; {images.statement()}"
    return Claim(
        "updates",
        study.privacy.epsilon,
        study.privacy.delta,
        PATIENT,
        ZERO_OUT,
        covers,
        tuple(given),
        mechanism,
    )


def _k_anonymity(synthesis: Synthesis) -> Claim:
    """Of every average that is sent, whatever noise it has."""
    patients = f"at least {synthesis.k} distinct patients of one site"
    covers = f"every image: it aggregates {patients}"
    given: tuple[str, ...] = (ONE_PATIENT,)
    if least_contributors(synthesis) < synthesis.k:
        covers = f"every image: its group has {patients}"
        given = (ONE_PATIENT, MAY_ADD_NOTHING)
    return Claim("k-anonymity", None, None, "image", NONE, covers, given, NONE)


def _averages(study: Study) -> Claim:
    """Epsilon per patient, which all averages share with the updates.

    Under zero-out: replace-one would cost the updates about twice as much.
    """
    images = charged_image_event(study)
    assert images is not None
    anchors = isinstance(images, NoisyAnchors)
    return Claim(
        "averages",
        study.privacy.epsilon,
        study.privacy.delta,
        UNIT if anchors else PATIENT,
        ADD_OR_REMOVE if anchors else ZERO_OUT,
        "all averages of the plan, together with the updates",
        (ONE_PATIENT, LINKED, *_given_of_averages(images), *_given_of_updates(study)),
        images.statement(),
    )


def _given_of_averages(images: object) -> tuple[str, ...]:
    """What epsilon per patient of averages takes as given."""
    if isinstance(images, NoisyAnchors):
        return (LINKED_IN_CELLS, STOPPED)
    return (ROSTER, STOPPED)


def _privatized_averages(study: Study) -> Claim:
    """Epsilon per average, of groups that the images chose."""
    assert study.privatize is not None
    mechanism = latent_event(study)
    covers = f"each privatized average by itself: {study.privatize.share:.0%} of the groups"
    return Claim(
        "privatized averages",
        mechanism.epsilon_per_image,
        mechanism.delta,
        "average",
        REPLACE_ONE,
        covers,
        (CHOSEN_GROUPS, FURTHER_DRAWS, ONE_PATIENT, LINKED, *_public_files(study)),
        mechanism.statement(study.latent_dimension),
    )


def _single_images(study: Study) -> Claim:
    """Epsilon per image of one patient; none is in a batch or a release."""
    mechanism = latent_event(study)
    return Claim(
        "single images",
        mechanism.epsilon_per_image,
        mechanism.delta,
        "image",
        REPLACE_ONE,
        "images of one patient each that a site may hand over itself; none is in a release",
        (ONE_IMAGE_EACH, ONE_PATIENT, LINKED, *_public_files(study)),
        mechanism.statement(study.latent_dimension),
    )


def _pairs(study: Study) -> Claim:
    """The promise of the updates, which drawing from the generator keeps."""
    return Claim(
        "pairs",
        study.privacy.epsilon,
        study.privacy.delta,
        PATIENT,
        ZERO_OUT,
        "every pair of image and mask: post-processing of the updates",
        (ONE_PATIENT, LINKED, *_given_of_updates(study)),
        "that of the updates",
    )


def _given_of_updates(study: Study) -> tuple[str, ...]:
    """What an epsilon that holds for updates takes as given: public files, and the site's audit."""
    if study.privacy.canaries:
        return (AUDITED, *_public_files(study))
    return _public_files(study)


def _public_files(study: Study) -> tuple[str, ...]:
    """The plan's public files, whose own data nothing here protects.

    Every signed plan has starting checkpoints.
    """
    files = [PUBLIC_FILES]
    if study.privatize is not None and study.privatize.basis is not None:
        files.append(PUBLIC_BASIS)
    anchors = study.synthesis.anchors if study.synthesis else None
    if anchors is not None and anchors.basis is not None:
        files.append(PUBLIC_CODES)
    return tuple(files)
