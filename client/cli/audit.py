"""`audit`: what canaries and meters measured in this site's own training.

Guarantees: nothing is sent. A file for the operator is written in a rehearsal alone, where
site.yaml says that no image is of a patient.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from client.cli.options import StateFolder
from client.cli.state_folder import open_plans
from client.cli.terminal import write_line
from client.state.config import SiteConfig, load_site
from client.state.folder import State
from client.state.plans import Plans
from client.state.records import Records
from common.errors import ConfigurationError, PolicyError
from common.privacy.audit_file import AuditFile, ModelCounts, counts_of
from common.privacy.canary_audit import epsilon_at_least
from common.privacy.price import at_least
from common.storage.files import atomic_write
from common.study.plan import Study
from common.study.rehearsed import plan_digest
from common.wire.messages import canonical

PlanHash = Annotated[
    str, typer.Option("--plan", help="first letters of the plan's hash; empty: the only one")
]
Out = Annotated[
    Path | None,
    typer.Option(help="rehearsal on public data: write the operator's file here"),
]


def audit(state: StateFolder, plan: PlanHash = "", out: Out = None) -> None:
    """Show what the canaries measured in this site's training; it stays here.

    With --out a rehearsal's site writes it for `kohort-server release --audit`.
    """
    config = load_site(state)
    plans = open_plans(state)
    study = _only_plan(plans, plan)
    found = _measured(Records(State(state), config, plans), study)
    for name in study.models.trained():
        write_line(_line(name, found.get(name), study.privacy.delta))
    if out is not None:
        _export(config, study, found, out)
        write_line(f"wrote {out}")


def _only_plan(plans: Plans, prefix: str) -> Study:
    """Return the one approved plan whose hash starts with `prefix`."""
    found = [plan_hash for plan_hash in plans.hashes() if plan_hash.startswith(prefix)]
    if len(found) != 1:
        raise ConfigurationError(
            f"{len(found)} approved plans match {prefix or '(any)'!r}, expected one",
            hint="give the first letters of one hash: --plan; `kohort-site status` lists them",
        )
    return plans.open(found[0])


def _measured(records: Records, study: Study) -> dict[str, ModelCounts]:
    """What the rounds that were answered showed, by model."""
    found = {}
    for name in study.models.trained():
        tally = records.canaries(study, name).counted()
        if tally is not None:
            found[name] = counts_of(tally, study, name)
    return found


def _line(name: str, found: ModelCounts | None, delta: float) -> str:
    """What one model showed."""
    if found is None:
        return f"{name}: not evaluated"
    bound = epsilon_at_least(found.canaries, found.guesses, found.correct, delta)
    return (
        f"{name}: epsilon is at least {at_least(bound)} (95 % confidence): {found.correct} of "
        f"{found.guesses} guesses right over {found.steps:,} steps\n"
        f"  noise {found.noise_ratio:.3f} times the plan's variance, a clipped gradient "
        f"{found.length:.3f} times the clip norm"
    )


def _export(config: SiteConfig, study: Study, found: dict[str, ModelCounts], out: Path) -> None:
    """Write the operator's file of a finished rehearsal."""
    if not config.rehearsal:
        raise PolicyError(
            "audit --out: site.yaml does not say `rehearsal: true`; nothing was written",
            hint="set `rehearsal: true` only where every image is public or invented; a "
            "hospital's own audit stays at the hospital",
            code="E-AUDIT-STAYS",
        )
    for name, plan in study.models.trained().items():
        steps = found[name].steps if name in found else 0
        if steps != plan.steps:
            raise PolicyError(
                f"audit --out: models.{name}: {steps} of {plan.steps} steps were measured; "
                "nothing was written",
                hint="let the rehearsal end first",
                code="E-AUDIT-STAYS",
            )
    file = AuditFile(
        format="kohort-audit/1", plan=plan_digest(study), site=config.site, models=found
    )
    atomic_write(out, canonical(file.model_dump(mode="json")))
