"""`plan`, `pin`, `sign`: a study plan, from its draft to the signed bundle."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from common.errors import PolicyError
from common.privacy.aggregation_noise import efficiency
from common.privacy.plan_report import PlanReport
from common.privacy.planning import ModelNoise
from common.study.bundle import open_bundle
from common.study.changes import changes
from common.study.forecast_words import forecast_facts, forecast_lines
from common.study.plan import Study, load_study
from common.study.words import fingerprint_words
from server.cli.options import AsJson, StateFolder, StudyFile
from server.cli.output import check_folder
from server.cli.state_folder import load_operator_key, open_record
from server.cli.terminal import write
from server.operator import plan as plans
from server.operator.checkpoint_sources import public_sources
from server.operator.config import Limits, limits_in
from server.operator.state import ServerState
from server.operator.update_norms import write_missing_norms
from server.rounds.versions import check_draft

PlanState = Annotated[
    Path | None,
    typer.Option("--state", help="the operator's state folder, for the limits of its server.yaml"),
]


def plan(study: StudyFile, state: PlanState = None, as_json: AsJson = False) -> None:
    """Print what a plan costs in privacy, whether it can learn, and what it asks of the machines.

    Nothing is spent. Images, bytes, memory and hours are an estimate.

    Writes each max_update_norm that is missing. Ends with an error where the plan spends more than
    its own epsilon, or where its rounds or its release would meet a cap on sizes and numbers.
    """
    written = write_missing_norms(study)
    loaded = load_study(study)
    report = plans.report(loaded, study.parent)
    need = plans.check_room(loaded, report, plan_limits(state))
    if as_json:
        facts = report_facts(loaded, report) | {"written": written, "room": asdict(need)}
        facts["public_sources"] = public_sources(loaded, study.parent)
        write(json.dumps(facts) + "\n")
    else:
        for model, cap in written.items():
            write(f"wrote models.{model}.max_update_norm: {cap:g}\n")
        write(report.to_text() + "\n")
        write("\n".join(forecast_lines(loaded)) + "\n")
        for file, names in public_sources(loaded, study.parent).items():
            write(f"{file} knows {'; '.join(names)}\n")
        write(f"hash {loaded.hash()} ({fingerprint_words(loaded.hash())})\n")
    if report.verdict == "over budget":
        raise PolicyError(
            report.sentence, hint="change the plan as `fix` says", code="E-PLAN-BUDGET"
        )


def plan_limits(state: Path | None) -> Limits:
    """Return the limits of the state folder's server.yaml, or the usual ones."""
    return Limits() if state is None else limits_in(ServerState(state).config)


def report_facts(study: Study, report: PlanReport) -> dict[str, object]:
    """Return the report as `plan --json` prints it."""
    spent = report.spent
    return {
        "plan": study.name,
        "hash": study.hash(),
        "verdict": report.verdict,
        "sentence": report.sentence,
        "accepted": report.accepted,
        "epsilon": {"pld": spent.pld, "prv": spent.prv, "rdp": spent.rdp},
        "epsilon_of_updates": {
            "pld": report.updates.pld,
            "prv": report.updates.prv,
            "rdp": report.updates.rdp,
        },
        "epsilon_is_upper_bound": spent.is_upper_bound,
        "delta": spent.delta,
        "sampler_delta": spent.sampler_delta,
        "aggregation": {
            "rule": study.aggregation.rule,
            "trim": study.aggregation.trim,
            "efficiency": efficiency(study),
        },
        "share_of_cap": spent.pld / report.site_cap,
        "parameters": {model.name: model.event.dimension for model in report.models},
        "models": {model.name: model_facts(model, report) for model in report.models},
        "fixes": list(report.fixes),
        "needs": [asdict(needs) for needs in report.needs],
        "forecast": forecast_facts(study),
    }


def model_facts(model: ModelNoise, report: PlanReport) -> dict[str, float | int | None]:
    """Return what `plan --json` prints of one model."""
    facts: dict[str, float | int | None] = {
        "sampling_rate": model.event.q,
        "patients_per_step": model.plan.patients_per_step,
        "items_per_patient": model.plan.items_per_patient,
        "steps": model.event.steps,
        "noise_multiplier": model.event.noise_multiplier,
        "calibrated_noise_multiplier": model.calibrated,
        "parameters": model.event.dimension,
        "noise_ratio": model.ratio,
        "federated_noise_ratio": model.federated_ratio,
        "round_bytes": model.round_bytes,
        "max_update_norm": model.plan.max_update_norm,
    }
    norm = report.norms.get(model.name)
    if norm is not None:
        facts["honest_update_norm"] = norm.noise
        facts["largest_honest_update_norm"] = norm.honest
        facts["recommended_max_update_norm"] = norm.cap
    return facts


def pin(study: StudyFile) -> None:
    """Write the checkpoints' SHA-256 into a plan, in place."""
    for file, digest in sorted(plans.pin(study).items()):
        write(f"{digest}  {file}\n")
    load_study(study)


def sign(
    study: StudyFile,
    state: StateFolder,
    out: Annotated[Path, typer.Option(help="folder for the signed bundle")],
    next_of: Annotated[
        Path | None, typer.Option("--next-of", help="the earlier version's bundle; prints the diff")
    ] = None,
) -> None:
    """Sign a plan for the sites to approve.

    Refused when the plan spends more than its own epsilon, or cannot learn and does not say so.
    """
    place = ServerState(state)
    key = load_operator_key(place)
    check_folder("--out", out)
    loaded = load_study(study)
    if next_of is not None:
        earlier = open_bundle(next_of, key.public_key())
        write(f"next version of {earlier.name}; the sites see these changes too:\n")
        for line in changes(earlier, loaded):
            write(f"  {line}\n")
        if loaded.continues is not None:
            with open_record(place, earlier) as record:
                check_draft(record, loaded)
    elif loaded.continues is not None:
        raise PolicyError(
            f"plan {loaded.name} goes on from {loaded.continues.plan[:12]}",
            hint="sign it with --next-of and the earlier version's bundle",
            code="E-PLAN-NEXT",
        )
    signed, report = plans.sign(study, key, out, plan_limits(state))
    with place.open_log() as log:
        log.note("plan-signed", once=True, plan=signed.hash())
    write(report.to_text() + "\n")
    write(f"signed {signed.name}: {out}\n")
    write(f"hash {signed.hash()}\nread aloud: {fingerprint_words(signed.hash())}\n")
