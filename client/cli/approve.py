"""`approve`: a signed plan, shown to a person and allowed or not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from client.cli.options import StateFolder
from client.cli.state_folder import open_plans
from client.cli.terminal import write_line
from client.state.config import check_plan, load_site
from client.state.folder import State
from client.state.machine import check_memory, memory_lines, read_room
from client.state.price import epsilon_after, price_after, refuse_over_cap, site_report
from client.state.records import Records
from common.errors import PolicyError
from common.privacy.claims import Claim, claims_of
from common.privacy.events import anchors_event, latent_event, plan_events
from common.privacy.plan_report import (
    PlanReport,
    feasibility,
    refuse_infeasible,
    refuse_over_budget,
)
from common.privacy.price import OF_PATIENT, SitePrice, at_most
from common.study.bundle import open_bundle
from common.study.fit import check_checkpoints
from common.study.plan import Study
from common.study.shapes import parameter_counts
from common.study.synthesis import Synthesis
from common.study.words import fingerprint_words

Bundle = Annotated[Path, typer.Argument(help="the operator's plan bundle")]
Yes = Annotated[bool, typer.Option("--yes", help="do not ask")]


def approve(state: StateFolder, bundle: Bundle, yes: Yes = False) -> None:
    """Show a signed plan against this site's policy and, if a person says yes, allow it to run."""
    config = load_site(state)
    plans = open_plans(state)

    # Verify and show.
    study = open_bundle(bundle, plans.operator)
    for text in plan_lines(study):
        write_line(text)

    # Refuse what the policy forbids, what cannot be computed, what breaks its own promise and what
    # cannot learn.
    check_plan(study, config.policy, config.site)
    check_checkpoints(study, bundle / "checkpoints")
    counts = parameter_counts(study, bundle / "checkpoints")
    events = plan_events(study, counts)
    refuse_over_budget(study, events)
    refuse_infeasible(study, counts)
    report = feasibility(study, counts, prv=False)
    spent = site_report(Records(State(state), config, plans))
    after = epsilon_after(spent, study.hash(), events)
    for text in price_lines(report, price_after(spent, after)):
        write_line(text)
    refuse_over_cap(study, after, config.policy.max_epsilon)
    write_line(f"  verdict      {report.sentence}")

    # Refuse what this machine cannot hold.
    room = read_room(config.limits, config.compute)
    for text in memory_lines(study, room):
        write_line(text)
    check_memory(study, room)

    # Ask, and keep.
    if not yes and not typer.confirm("Allow this plan to run here?"):
        raise PolicyError("not approved", hint="nothing was changed")
    plans.approve(bundle)
    write_line(f"approved: {study.hash()[:12]}")


def price_lines(report: PlanReport, site: SitePrice) -> Iterator[str]:
    """Yield what the plan costs one patient, beside all that was spent here."""
    yield f"  {OF_PATIENT}"
    yield from report.price.lines()
    yield from site.lines()


def plan_lines(study: Study) -> Iterator[str]:
    """Yield what a person needs to know of a plan."""
    sites = ", ".join(site.name for site in study.sites)
    yield f"plan {study.name}: {study.title}"
    yield f"  fingerprint  {fingerprint_words(study.hash())}   (compare it with the operator)"
    yield f"  sites        {sites}; quorum {study.quorum}"
    for name, model in study.models.trained().items():
        yield (
            f"  {name:<12} {model.rounds} rounds of {model.local_steps} steps, "
            f"noise {model.noise_multiplier:g}, clip {model.clip:g}, "
            f"{model.patients_per_step} patients a step"
        )
    if study.synthesis is not None:
        yield from _synthesis_lines(study, study.synthesis)
    for claim in claims_of(study):
        yield f"  claimed      {_claim_words(claim)}"


def _claim_words(claim: Claim) -> str:
    """One claim of the plan, as a person reads it before allowing the plan."""
    if claim.epsilon is None:
        return f"{claim.kind}, no epsilon: {claim.covers}"
    return (
        f"{claim.kind}: epsilon {at_most(claim.epsilon)} for one {claim.unit} ({claim.adjacency}): "
        f"{claim.covers}"
    )


def _synthesis_lines(study: Study, synthesis: Synthesis) -> Iterator[str]:
    """Yield what a person needs to know of the images."""
    yield (
        f"  images       each of at least {synthesis.k} distinct patients "
        f"({synthesis.grouping} groups), at most {synthesis.max_images_per_site}"
    )
    noise = anchors_event(study)
    if noise is not None:
        yield f"  averages     {noise.statement()}; epsilon above covers them too"
    if synthesis.privatize is None:
        return
    sent = "single images, by hand"
    if synthesis.privatizes_averages:
        sent = f"{synthesis.privatize.share:.0%} of the groups"
    yield f"  privatized   {sent}: {latent_event(study).statement(study.latent_dimension)}"
