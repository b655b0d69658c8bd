"""Lets a child look at the site's own pictures with a plan's starting checkpoints.

In: an approved plan, its cohort. Out: a `Domain`, kept in the state folder.
Guarantees: nothing is trained, spent or sent; what the child computed goes with the scratch folder,
and the numbers of single pictures with it.
"""

from __future__ import annotations

import threading
from pathlib import Path

from client.daemon import jobs
from client.egress.frozen import NO_GROUPS
from client.ingest.cohort import Cohort
from client.rehearsal.course import refusal
from client.state.config import SiteConfig
from client.state.domain import Domain
from client.state.folder import State
from client.state.jobs import OUTPUT, OUTPUT_CAP_BYTES, Job, Progress
from client.state.plans import Plans
from common.study.families import FAMILIES
from common.study.plan import Study
from common.study.shapes import starting_weights
from common.wire.tensors import Arrays, dumps, read


def can_look(study: Study) -> bool:
    """Return whether the plan has networks that pictures could be foreign to, with checkpoints."""
    models = study.models
    inverts = bool(study.synthesis and study.synthesis.needs_generator and models.encoder)
    flows = bool(study.synthesis and models.glow and models.glow.start)
    return flows or bool(inverts and models.gan and models.gan.start)


def look_at_pictures(
    state: State, config: SiteConfig, plans: Plans, study: Study, scratch: Path, show: Progress
) -> Domain:
    """Return what was found, after it is kept.

    `scratch`: an empty folder of this look. Raises PolicyError or EnvironmentFault with the code of
    a child that ended early, RefusedError for a cohort that is not whole.
    """
    folder = state.cohort(study.intake)
    cohort = Cohort.open(folder)
    weights: Arrays = {}
    for model in ("gan", "glow"):
        plan = study.models.trained().get(model)
        if plan is not None and plan.start is not None:
            weights |= starting_weights(plans.start_file(study, model), FAMILIES[model])
    job = Job(
        kind="domain",
        model="",
        plan=str(plans.folder(study.hash()).resolve()),
        cohort=str(folder.resolve()),
        reservation="",
        threads=config.limits.threads,
        memory_gib=config.limits.child_memory_gib,
        compute=config.compute.shared,
        practice=True,
    )
    place = scratch / "domain"
    job.write(place, dumps(weights), NO_GROUPS[0])
    ending = jobs.run_child(place, job.threads_each, b"", threading.Event(), show)
    if not ending.finished:
        raise refusal("pictures", place, ending.code)
    found = read(place / OUTPUT, max_bytes=OUTPUT_CAP_BYTES)
    domain = Domain.of(found, study.hash(), cohort.digest, tuple(study.strata()))
    domain.keep(state.domains)
    return domain
