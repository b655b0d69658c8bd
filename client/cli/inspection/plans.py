"""Looks at the approved plans, their cohorts, and the state."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from client.cli.inspection.scene import Scene, list_faults, name_fault
from client.cli.state_folder import open_plans
from client.ingest.cohort import Cohort
from client.rehearsal.domain import can_look
from client.state.config import load_site
from client.state.domain import read_domain
from client.state.machine import check_memory, memory_lines, read_room
from client.state.plan_check import check_plan
from client.state.upgrade import check_state
from common.alerts import Alert
from common.errors import ConfigurationError, KohortError, PolicyError
from common.study.fit import check_checkpoints
from common.study.plan import Study


def valid_plans(scene: Scene) -> Iterator[tuple[str, Study]]:
    """Yield the approved plans that can be opened; the others are faults of `look_at_plans`."""
    try:
        plans = open_plans(scene.root)
        hashes = plans.hashes()
    except KohortError:
        return
    for plan_hash in hashes:
        try:
            yield plan_hash, plans.open(plan_hash)
        except KohortError:
            continue


def look_at_plans(scene: Scene) -> Iterator[Alert | str]:
    """Approved plans are intact and allowed, their cohorts large enough."""
    plans = open_plans(scene.root)
    if not plans.hashes():
        yield name_fault("E-PLAN-UNAPPROVED", "no plan is approved", "kohort-site approve BUNDLE")
    for plan_hash in plans.hashes():
        try:
            study = plans.open(plan_hash)
        except ConfigurationError as error:
            if not error.problems:
                yield from list_faults(error)
                continue
            yield name_fault(
                "E-PLAN-VERSION",
                f"plan {plan_hash[:12]}: not valid in this version",
                "ask the operator for another",
            )
        except KohortError as error:
            yield from list_faults(error)
        else:
            yield from _plan_faults(scene, study)


def _plan_faults(scene: Scene, study: Study) -> Iterator[Alert | str]:
    """Yield what is wrong with one plan here, and what it needs."""
    config = scene.config
    room = read_room(config.limits, config.compute)
    checkpoints = open_plans(scene.root).checkpoints(study)
    checks: tuple[Callable[[], object], ...] = (
        lambda: check_plan(study, config.policy, config.site),
        lambda: check_checkpoints(study, checkpoints),
        lambda: check_memory(study, room),
        lambda: _check_cohort(scene, study),
    )
    for check in checks:
        try:
            check()
        except KohortError as error:
            yield from list_faults(error)
    yield f"plan {study.name} needs here, about:"
    yield from memory_lines(study, room)
    yield from _pictures(scene, study)


def _pictures(scene: Scene, study: Study) -> Iterator[Alert | str]:
    """Yield what a look at the site's pictures found with the plan's checkpoints, if there was one.

    A cohort that cannot be opened is a fault already.
    """
    if not can_look(study):
        return
    try:
        digest = Cohort.open(scene.place.cohort(study.intake)).digest
    except KohortError:
        return
    try:
        found = read_domain(scene.place.domains, study.hash(), digest)
    except KohortError as error:
        yield from list_faults(error)
        return
    if found is None:
        yield f"plan {study.name}: kohort-site check --pictures asks whether its checkpoints know"
        yield "  pictures like yours"
        return
    yield f"plan {study.name}, and your pictures:"
    for line in found.lines():
        yield f"  {line}"
    yield from found.faults()


def _check_cohort(scene: Scene, study: Study) -> None:
    """Raise PolicyError unless the cohort of a plan is there, whole and large enough."""
    folder = scene.place.cohort(study.intake)
    if not folder.is_dir():
        raise PolicyError(
            f"plan {study.name}: no cohort yet", hint="kohort-site ingest", code="E-COHORT-MISSING"
        )
    patients = Cohort.open(folder).patient_count
    if study.synthesis and patients < study.synthesis.k:
        raise PolicyError(
            f"plan {study.name}: fewer patients than k={study.synthesis.k}",
            hint="take more patients in (`kohort-site ingest --refresh`), or leave the study: a "
            "smaller k is for the plan and policy.min_k to allow",
            code="E-COHORT-SMALL",
        )


def look_at_state(scene: Scene) -> Iterator[Alert | str]:
    """The state is as new as all that it signed, and as the operator's receipts."""
    load_site(scene.root)
    check_state(scene.place)
    yield from ()
