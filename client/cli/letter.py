"""The letter that `approve` shows: what a study plan asks of a hospital's patients, in plain words.

In: the plan, who asks, what it costs, what it takes, what changed. Out: lines.
Guarantees: every number follows from the plan, the policy, the ledger or this machine; each
section is there, also where its answer is "nothing".
Not covered: whether the plan is allowed (client/state/config.py), or what it computes (client/).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from client.ingest.words import side_of
from client.state.config import Data
from client.state.membership import Membership
from client.state.plans import Approval
from common.privacy.claims import Claim, claims_of, describe_groups, found_again
from common.privacy.events import anchors_event, covers_every_image, latent_event
from common.privacy.planned_price import average_price
from common.privacy.price import (
    OF_AVERAGE,
    OF_PATIENT,
    PlanPrice,
    SiteAveragePrice,
    SitePrice,
    at_most,
)
from common.study.changes import changes
from common.study.intake import Intake
from common.study.plan import Study
from common.study.synthesis import PrivatizePlan, Synthesis
from common.study.words import fingerprint_words
from common.wire import signing

MODALITIES = {
    "fundus": "fundus photographs",
    "chest": "chest radiographs",
    "vessels": "MR series with a mask of the vessels",
}
# keys of the plan's intake that the letter says in words; any other is shown as it stands
TOLD = frozenset(
    "dicom_modalities size_px channels labels ordinal_labels merge_labels stratify_laterality "
    "window volumes body_parts views presentation".split()
)
NOISE = {
    "laplace": "Laplace noise",
    "gaussian": "Gaussian noise",
    "privunit": "the noise of a random direction",
}
NOT_LEAVING = (
    "No image of a patient as it is, no name, no id, no date and no file name.",
    "No number of patients, and no quality or loss of the training.",
    "No text of an error: where something is refused, one of a fixed list of codes.",
    "No image that nobody here has looked at (policy.review of site.yaml).",
)


@dataclass(frozen=True)
class Before:
    """A plan of the same name that was approved here, and its approval."""

    study: Study
    approval: Approval


@dataclass(frozen=True)
class Ask:
    """What is asked of this hospital, and by whom. `data`: its images, labels and own words."""

    study: Study
    membership: Membership
    data: Data
    review: bool


@dataclass(frozen=True)
class Prices:
    """What the plan costs one patient, and one average, beside what was spent here."""

    plan: PlanPrice
    site: SitePrice
    average: SiteAveragePrice


def who_asks(ask: Ask) -> Iterator[str]:
    """Yield who asks, with whom, and for which study."""
    study = ask.study
    sites = ", ".join(site.name for site in study.sites)
    key = signing.fingerprint(ask.membership.operator)
    yield f"plan {study.name}: {study.title}"
    yield f"  fingerprint  {fingerprint_words(study.hash())}   (compare it with the operator)"
    yield ""
    yield "Who asks"
    yield f"  the operator at {ask.membership.server_url}, whose key is {key}"
    yield f"  hospitals that may take part: {sites}"
    yield f"  a round is complete once {study.quorum} of them have answered"


def about_whom(ask: Ask) -> Iterator[str]:
    """Yield which patients and which of their images take part."""
    intake = ask.study.intake
    yield ""
    yield "About whom"
    yield f"  every patient with {MODALITIES[ask.study.modality]} below {ask.data.folder}"
    yield f"  with one of the labels: {', '.join(intake.labels)}"
    yield from label_lines(intake, ask.data)
    for old, new in sorted(intake.merge_labels.items()):
        yield f"  released as {new}: {old}"
    if intake.ordinal_labels:
        yield "  in order of severity: a patient counts with the highest label, and its images"
    if intake.stratify_laterality:
        yield "  left and right are kept apart: one side of each patient takes part"
    yield f"  DICOM files of {' or '.join(intake.dicom_modalities)}; others are refused"
    for line in content_lines(intake):
        yield f"    {line}"
    yield from picture_lines(intake)
    yield "  whoever withdrew takes no part (kohort-site withdraw)"


def label_lines(intake: Intake, data: Data) -> Iterator[str]:
    """Yield where labels come from, and what this hospital's own words in that file mean.

    A word that neither this plan nor any side has is said to be of no use here.
    """
    if data.labels_csv is None:
        if len(intake.labels) == 1:
            yield "  without a labels file every image has it"
        else:
            yield "  WARNING: ingest needs a labels file; data.labels_csv of site.yaml names none"
        return
    yield f"  by {data.labels_csv}"
    for column, ours in data.columns.items():
        yield f"    its column {column} is {ours}"
    for word, meant in data.values.items():
        known = meant in intake.labels or side_of(meant)
        yield f"    its word {word} is {meant}" + ("" if known else ", which this plan has not")


def picture_lines(intake: Intake) -> Iterator[str]:
    """Yield how images look in the cohort, and every other rule that is not the usual one."""
    colour = "colour" if intake.channels == 3 else "grey"
    yield f"  as {colour} pictures of {intake.size_px} x {intake.size_px} pixels"
    if intake.window is not None:
        low, high = intake.window
        yield f"  with intensities from {low:g} to {high:g}"
    if intake.volumes is not None:
        yield f"  as {intake.volumes.patches_per_patient} patches of each patient's volumes"
    for name, field in type(intake).model_fields.items():
        value = getattr(intake, name)
        if name not in TOLD and value != field.get_default(call_default_factory=True):
            yield f"  intake.{name}: {value}"


def content_lines(intake: Intake) -> Iterator[str]:
    """Yield what a DICOM header may name, where the plan wants something."""
    rules = (
        ("body part", intake.taken_body_parts),
        ("view", intake.taken_views),
        ("made", intake.taken_presentation),
    )
    for name, taken in rules:
        if taken:
            yield f"{name} {' or '.join(taken)}"


def what_leaves(ask: Ask) -> Iterator[str]:
    """Yield everything that leaves this hospital, and what does not."""
    study = ask.study
    yield ""
    yield "What leaves this hospital"
    for name, model in study.models.trained().items():
        rounds = f"{model.rounds} messages" if model.rounds > 1 else "1 message"
        yield (
            f"  {name}: {rounds} of {model.local_steps} training steps, each a sum over about "
            f"{model.patients_per_step} patients drawn by chance"
        )
        yield (
            f"    each patient's part is limited to the length {model.clip:g}, and noise of "
            f"{model.noise_multiplier:g} times that is added to the sum"
        )
    if study.synthesis is None:
        yield "  no image"
    else:
        yield from _images(study, study.synthesis)
    yield (
        "  with each message: this hospital's name, the plan's hash, the round, digests and a "
        "signature"
    )
    yield ""
    yield "What does not leave"
    for sentence in NOT_LEAVING[: None if ask.review else -1]:
        yield f"  {sentence}"


def _images(study: Study, synthesis: Synthesis) -> Iterator[str]:
    """Yield what leaves as images."""
    yield (
        f"  images: at most {synthesis.max_images_per_site:,}, each the average of at least "
        f"{synthesis.k} distinct patients of one label ({synthesis.grouping} groups)"
    )
    yield f"    {describe_groups(synthesis)}"
    cells = synthesis.coarse_cells
    if cells:
        yield (
            "    What the generator cannot show of a group is added as its members' mean in "
            f"{cells} x {cells} coarse cells."
        )
    yield "    How many images a label has can be counted in them, and follows from the patients."
    noise = anchors_event(study)
    if noise is not None:
        yield f"    every average has noise, and the epsilon below covers it: {noise.statement()}"
    if synthesis.privatize is not None:
        yield from _privatized(study, synthesis.privatize)


def _privatized(study: Study, plan: PrivatizePlan) -> Iterator[str]:
    """Yield which images get noise, how, and what that is worth."""
    event = latent_event(study)
    noise = NOISE[plan.mechanism]
    if plan.egress == "single":
        yield (
            f"  by hand alone (kohort-site privatize --export): images of one patient each, "
            f"with {noise}; epsilon {at_most(event.epsilon_per_image)} of one image"
        )
        return
    yield (
        f"  of these images, privatized: {plan.share:.0%} of the groups. An average is described "
        f"by {event.dimension:,} numbers. They are limited, get {noise}, and become a picture "
        "again."
    )
    if event.covers_patient:
        yield "    The epsilon of one patient below covers this noise, too."
        return
    yield (
        "    This noise protects one average, not one patient: no epsilon of a patient is claimed, "
        "because the images choose the groups. What protects a patient is k."
    )


def what_to_expect(images: Iterable[str]) -> Iterator[str]:
    """Yield how many images this hospital's own people will give."""
    found = list(images)
    if found:
        yield ""
        yield "What to expect here"
        yield from found


def at_what_price(study: Study, prices: Prices) -> Iterator[str]:
    """Yield the table of epsilon, and what it means."""
    claims = claims_of(study)
    factor = at_most(math.exp(min(prices.plan.planned, 50.0)))
    yield ""
    yield "At what price"
    yield (
        "  Epsilon bounds what anybody can learn of one patient: a result is at most "
        f"{factor} times as likely with the patient as without."
    )
    yield (
        "  Smaller is better. Delta says by how much a result may be likelier than that: "
        f"at most 1 in {1 / prices.plan.delta:,.0f}."
    )
    yield f"  It holds for {claims[0].covers}.{_what_k_protects(study)}"
    yield f"  {OF_PATIENT}"
    yield from prices.plan.lines()
    yield from prices.site.lines()
    average = average_price(study)
    if average is not None:
        yield f"  {OF_AVERAGE}"
        yield from average.lines()
        yield from prices.average.lines()
    yield ""
    yield "What a release of this plan will claim"
    for claim in claims:
        yield f"  {claim_words(claim)}"
    again = study.synthesis and found_again(study.synthesis)
    if again:
        yield f"  not covered: {again}"


def _what_k_protects(study: Study) -> str:
    """What protects patients in images that epsilon does not cover."""
    if study.synthesis is None or covers_every_image(study):
        return ""
    return " The images are outside of it: there k protects patients, and no epsilon does."


def claim_words(claim: Claim) -> str:
    """Return one claim of the plan, as a person reads it before allowing the plan."""
    if claim.epsilon is None:
        return f"{claim.kind}, no epsilon: {claim.covers}"
    return (
        f"{claim.kind}: epsilon {at_most(claim.epsilon)} for one {claim.unit} "
        f"({claim.adjacency}): {claim.covers}"
    )


def what_it_takes(verdict: str, machine: Iterable[str]) -> Iterator[str]:
    """Yield what this hospital computes, and whether that can teach the models anything."""
    yield ""
    yield "What this hospital computes"
    yield f"  verdict      {verdict}"
    yield from machine


def what_changed(study: Study, before: Before | None) -> Iterator[str]:
    """Yield what differs from the last plan of this name that was approved here."""
    yield ""
    if before is None:
        yield "What changed: no plan of this name was approved here before"
        return
    yield f"What changed since {before.study.hash()[:12]}, approved {before.approval.words()}"
    found = changes(before.study, study)
    for line in found or ("nothing: it is the same plan",):
        yield f"  {line}"
