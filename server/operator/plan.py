"""What an operator does with a plan before anything is spent: pin its checkpoints, read its cost, sign it.

In: study.yaml and the checkpoints beside it. Out: the file with fresh SHA-256 lines; a `PlanReport`; a signed bundle.
Guaranteed: a plan over its own epsilon, or infeasible without saying so, or without starting weights is not signed.
Not covered: whether the hospitals agree (each approves the plan's hash within its own policy).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.config import compose, read_text
from common.errors import ConfigurationError, PolicyError
from common.privacy.accounting import Spent, spend
from common.privacy.events import charged_image_event, round_event
from common.privacy.mechanisms import Mechanism
from common.privacy.plan_report import PlanReport, feasibility
from common.storage.files import atomic_write, file_digest
from common.study.bundle import write_bundle
from common.study.fields import Checkpoint
from common.study.plan import Study, load_study
from common.study.shapes import parameter_counts, wire_counts
from server.operator.releasable import check_releasable


def report(study: Study, checkpoints: Path) -> PlanReport:
    """Return the accountants' report; `checkpoints`: the plan's folder, or a bundle's checkpoints/."""
    return feasibility(
        study, parameter_counts(study, checkpoints), wire=wire_counts(study, checkpoints)
    )


def spent(study: Study, checkpoints: Path) -> Spent:
    """Return what all that one site sends spends by PLD and RDP: the release's account (imports no torch).

    Model updates, and the images whose mechanism covers patients (anchors; `random` groups), for they are the same patients'.
    """
    counts, trained = parameter_counts(study, checkpoints), study.models.trained()
    canaries = study.privacy.canaries  # their coordinates get noise too
    events: list[Mechanism] = [
        replace(round_event(study, name, counts[name] + canaries), steps=plan.steps)
        for name, plan in trained.items()
    ]
    images = charged_image_event(study)
    return spend([*events, *([images] if images else [])], study.privacy.delta)


def sign(study_path: Path, key: Ed25519PrivateKey, out: Path) -> tuple[Study, PlanReport]:
    """Write the signed bundle of a plan into `out`; raises PolicyError (E-PLAN-START, -PAIRS, -BUDGET, -INFEASIBLE)."""
    study = load_study(study_path)
    missing = [
        f"models.{name}.start"
        for name, plan in study.models.trained().items()
        if plan.start is None
    ]
    if (
        study.synthesis
        and study.models.encoder
        and study.models.encoder.start is None
        and study.models.encoder.steps == 0
    ):
        missing.append("models.encoder.start")
    if missing:
        raise PolicyError(
            f"{', '.join(missing)}: every model starts from a public checkpoint",
            hint="kohort-server pretrain makes one from public images",
            code="E-PLAN-START",
        )
    check_releasable(study)
    found = report(study, study_path.parent)
    if not found.accepted:
        over = found.verdict == "over budget"
        raise PolicyError(
            f"not signed: {found.sentence}\n{found.to_text()}",
            hint="change the plan as `fix` says"
            + ("" if over else ", or set privacy.accept_infeasible: true"),
            code="E-PLAN-BUDGET" if over else "E-PLAN-INFEASIBLE",
        )
    return write_bundle(study_path, key, out), found


def pin(study_path: Path) -> dict[str, str]:
    """Rewrite every `sha256:` that stands beside a `file:` in place; returns {file: SHA-256}. Comments stay."""
    text = read_text(study_path)
    node = compose(study_path, text)
    pinned: dict[str, str] = {}
    new = text
    for file, old in sorted(_pairs(node), key=lambda pair: -pair[1].start_mark.index):
        path = study_path.parent / file
        if not path.is_file():
            raise ConfigurationError(
                f"{path}: the checkpoint named in {study_path.name} is missing",
                hint="put it there, or train one with `kohort-server pretrain`",
            )
        pinned[file] = file_digest(path)
        value = f'"{pinned[file]}"'
        new = new[: old.start_mark.index] + value + new[old.end_mark.index :]
    atomic_write(study_path, new.encode())
    return pinned


def _pairs(node: yaml.Node | None) -> Iterator[tuple[str, yaml.Node]]:
    """Every (file, node of its sha256) in a YAML tree."""
    if isinstance(node, yaml.SequenceNode):
        for child in node.value:
            yield from _pairs(child)
    if isinstance(node, yaml.MappingNode):
        entries = {str(key.value): value for key, value in node.value}
        if set(entries) == set(Checkpoint.model_fields):
            yield str(entries["file"].value), entries["sha256"]
        for child in entries.values():
            yield from _pairs(child)
