"""What a plan's sections must fulfil together: one sentence a problem, all of them at once.

In: sections whose fields are valid one by one. Out: problems as `section.key: what is wrong`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from common.models.sizes import MASK_FIRST, PAIR_SIZES_PX, list_sizes
from common.study.intake import Intake
from common.study.sections import Aggregation, Continues, Privacy, SitePlan, trimmed_sites
from common.study.synthesis import PRIVUNIT_LARGEST_DIMENSION, PrivatizePlan, Synthesis
from common.study.training import GlowPlan, Models


def site_problems(sites: tuple[SitePlan, ...], quorum: int) -> Iterator[str]:
    """Yield what is wrong with the sites' names or with the quorum."""
    names = {site.name for site in sites}
    if len(names) != len(sites):
        yield "sites: a name stands twice"
    if quorum > len(sites):
        yield f"quorum: {quorum} of {len(sites)} sites can never be met"


def continues_problems(plan: Continues | None, models: Models) -> Iterator[str]:
    """Yield what is wrong with the account of an earlier version."""
    if plan is None:
        return
    if set(plan.rounds) != set(models.trained()):
        yield f"continues.rounds: expected one number for each of {', '.join(models.trained())}"
    elif not any(plan.rounds.values()):
        yield "continues.rounds: no round is closed, so nothing goes on; leave continues out"


def aggregation_problems(plan: Aggregation, quorum: int) -> Iterator[str]:
    """Yield what is wrong with the rule of aggregation, or too few answers for it."""
    if plan.rule != "trimmed_mean":
        if plan.trim:
            yield f"aggregation.trim: for trimmed_mean alone, got rule {plan.rule}; leave it out"
        return
    if trimmed_sites(plan.trim, quorum) < 1:
        fewest = max(3, quorum)
        yield (
            f"aggregation.trim: {plan.trim:g} of the {quorum} answers of a quorum leaves no site "
            f"out; set a quorum of at least 3 and a trim of at least 1/quorum, such as quorum "
            f"{fewest} and trim {math.ceil(1000 / fewest) / 1000:g}"
        )


def model_problems(models: Models, intake: Intake, privacy: Privacy) -> Iterator[str]:
    """Yield what does not fit between the trained models, the images and the patients."""
    if not models.trained():
        yield "models: at least one of gan, glow, wgan must be trained"
    for name, model in models.trained().items():
        if model.patients_per_step > privacy.planned_patients:
            yield f"models.{name}.patients_per_step: more than privacy.planned_patients"
    yield from _game_problems(models)
    yield from _pair_problems(models, intake)
    glow = models.glow
    if glow and intake.size_px % 2 ** (glow.levels + glow.doublings):
        most = _halvings(intake.size_px)
        together = f"{glow.levels + glow.doublings} times"
        yield (
            f"models.glow.levels: {intake.size_px} px cannot be halved {together}; "
            f"at most {most} levels, less the doublings"
        )


def _game_problems(models: Models) -> Iterator[str]:
    """Problems of a generator with its critic."""
    for name, plan in (("gan", models.gan), ("wgan", models.wgan)):
        if plan and plan.critic_steps > plan.local_steps:
            yield (
                f"models.{name}.critic_steps: more than local_steps, "
                "so the generator would never take a step"
            )


def _pair_problems(models: Models, intake: Intake) -> Iterator[str]:
    """Problems of models.wgan with the volumes that its patches come from."""
    if models.wgan and intake.volumes is None:
        yield "models.wgan: needs intake.volumes, where its image + mask patches come from"
    if intake.volumes and (intake.channels != 1 or models.gan or models.glow):
        yield "intake.volumes: for one channel and models.wgan alone"
    if models.wgan and intake.size_px not in PAIR_SIZES_PX[models.wgan.architecture]:
        kind = models.wgan.architecture
        yield (
            f"intake.size_px: models.wgan has no architecture {kind} for {intake.size_px} px; "
            f"{kind} is built for {list_sizes(PAIR_SIZES_PX[kind])}"
        )
    if models.wgan and models.wgan.architecture == MASK_FIRST and models.wgan.start is None:
        yield (
            "models.wgan.start: mask-first needs a start; private training moves its masks, "
            "and how their images look comes from the start alone; name the file, pretrain it with "
            "`kohort-server pretrain --model wgan --study PLAN`, and `kohort-server pin PLAN`"
        )


def _halvings(size_px: int) -> int:
    """How often a side can be halved."""
    return (size_px & -size_px).bit_length() - 1


def privacy_problems(privacy: Privacy) -> Iterator[str]:
    """Yield what is wrong with delta."""
    if privacy.delta > privacy.largest_delta:
        yield "privacy.delta: at most 1/(10 x planned_patients)"


def synthesis_problems(
    synthesis: Synthesis, models: Models, intake: Intake, privacy: Privacy
) -> Iterator[str]:
    """Yield what does not fit between the synthesis and the other sections."""
    if synthesis.needs_generator and not (models.gan and models.encoder):
        yield (
            "synthesis: needs models.gan and models.encoder "
            "(only `random` groups, all of them privatized, need neither)"
        )
    if intake.size_px % synthesis.windows:
        yield f"synthesis.windows: {synthesis.windows} does not divide {intake.size_px} px"
    if synthesis.k > privacy.planned_patients:
        yield (
            f"synthesis.k: {synthesis.k} is more than privacy.planned_patients "
            f"{privacy.planned_patients}"
        )
    yield from _metric_problems(synthesis)
    yield from _coarse_problems(synthesis, intake)
    yield from _anchors_problems(synthesis, privacy)
    if synthesis.privatize and models.glow is None:
        yield "synthesis.privatize: needs models.glow"
    if synthesis.privatize and models.glow:
        yield from _dimension_problems(synthesis.privatize, models.glow, intake)
        yield from _claim_problems(synthesis.privatize, synthesis.grouping, privacy)
        yield from _share_problems(synthesis.privatize, synthesis.grouping)


def _coarse_problems(synthesis: Synthesis, intake: Intake) -> Iterator[str]:
    """Problems of the grid of residuals: cells too small, or averages that must not have one."""
    cells = synthesis.coarse_cells
    if cells > intake.size_px // 4:
        yield (
            f"synthesis.coarse_cells: {cells} for {intake.size_px} px; expected at most "
            f"{intake.size_px // 4}: a smaller cell shows what single members look like; "
            f"set coarse_cells: {min(8, intake.size_px // 4)}, or leave it out"
        )
    if cells and synthesis.grouping == "anchors":
        yield (
            f"synthesis.coarse_cells: {cells} with grouping anchors; expected 0: "
            "its averages carry epsilon, and a residual would carry no noise; "
            "leave coarse_cells out"
        )
    elif cells and synthesis.privatizes_all:
        yield (
            f"synthesis.coarse_cells: {cells} with privatize.share 1; expected 0: "
            "every average is privatized, and a residual would carry no noise; "
            "leave coarse_cells out"
        )


def _dimension_problems(plan: PrivatizePlan, glow: GlowPlan, intake: Intake) -> Iterator[str]:
    """Problems of `privatize` with the number of latent coordinates."""
    coordinates = glow.coordinates(intake.value_count, plan.levels)
    if plan.components and plan.components > coordinates:
        yield (
            f"synthesis.privatize.components: {plan.components} of {coordinates} coordinates "
            f"({plan.levels})"
        )
    dimension = plan.components or coordinates
    if plan.mechanism == "privunit" and dimension > PRIVUNIT_LARGEST_DIMENSION:
        yield (
            f"synthesis.privatize.mechanism: privunit takes at most {PRIVUNIT_LARGEST_DIMENSION} "
            f"coordinates, got {dimension}; set components and basis"
        )


def _share_problems(plan: PrivatizePlan, grouping: str) -> Iterator[str]:
    """Images that leave without noise beside images that carry epsilon per patient."""
    if grouping == "random" and plan.egress == "averages" and plan.share < 1:
        yield (
            "synthesis.privatize.share: expected 1 with grouping random, "
            f"got {plan.share:g}: epsilon per patient needs noise on every image, "
            "and the other groups' averages carry none; "
            "set share: 1, take another grouping, or leave privatize out"
        )
    if plan.claim == "patient" and plan.egress == "single":
        yield (
            "synthesis.privatize.claim: expected egress averages for epsilon per patient, "
            "got single: the averages that the plan sends carry no noise; leave claim out"
        )


def _claim_problems(plan: PrivatizePlan, grouping: str, privacy: Privacy) -> Iterator[str]:
    """Problems of what `privatize` claims with the groups and the patients."""
    if plan.claim == "patient" and plan.egress == "averages" and grouping != "random":
        yield (
            "synthesis.privatize.claim: expected grouping random for epsilon per patient, got "
            f"{grouping}: "
            "the images choose those groups, so its epsilon is per average; "
            "change synthesis.grouping or leave claim out"
        )
    if plan.delta and plan.delta > privacy.largest_delta:
        yield (f"synthesis.privatize.delta: at most 1/(10 x planned_patients), got {plan.delta:g}")


def _metric_problems(synthesis: Synthesis) -> Iterator[str]:
    """Problems of `synthesis.group_by` with the other keys."""
    if synthesis.group_by == "codes":
        return
    if synthesis.grouping in ("random", "anchors"):
        yield (
            f"synthesis.group_by: grouping {synthesis.grouping} takes codes alone, "
            f"got {synthesis.group_by}"
        )
    if synthesis.spread_directions:
        yield (
            "synthesis.spread_directions: not with group_by colour, "
            "whose groups keep the spread of colour"
        )


def _anchors_problems(synthesis: Synthesis, privacy: Privacy) -> Iterator[str]:
    """Problems of `synthesis.anchors` with the grouping and with delta."""
    plan = synthesis.anchors
    if (synthesis.grouping == "anchors") != (plan is not None):
        yield (
            "synthesis.anchors: expected with grouping anchors and with no other, "
            f"got grouping {synthesis.grouping}"
        )
    if plan is None:
        return
    if synthesis.privatize:
        yield "synthesis.privatize: not with grouping anchors, whose averages are private already"
    if synthesis.spread_directions:
        yield "synthesis.spread_directions: not with grouping anchors, whose noise it would enlarge"
    if plan.threshold_delta > privacy.delta / 2:
        yield (
            f"synthesis.anchors.threshold_delta: at most half of privacy.delta {privacy.delta:g}, "
            f"got {plan.threshold_delta:g}"
        )
