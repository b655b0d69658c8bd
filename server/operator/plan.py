"""What an operator does with a plan before anything is spent: pin, report, sign.

In: study.yaml and the checkpoints beside it.
Out: the file with fresh SHA-256 lines, a `PlanReport`, a signed bundle.
Guarantees: no plan is signed that is over its own epsilon, that is infeasible without saying so,
or that lacks starting weights of its own sizes.
Not covered: whether the hospitals agree: each approves the plan's hash within its own policy.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.config import compose, read_text
from common.errors import ConfigurationError, PolicyError
from common.privacy.accounting import Spent, spend
from common.privacy.events import plan_events
from common.privacy.plan_report import PlanReport, feasibility
from common.storage.files import atomic_write, file_digest
from common.study.bundle import write_bundle
from common.study.fields import Checkpoint
from common.study.fit import check_checkpoints
from common.study.plan import Study, load_study
from common.study.shapes import parameter_counts, wire_counts
from server.operator.caps import Need, check_caps
from server.operator.config import Limits
from server.operator.releasable import check_releasable
from server.operator.update_norms import update_norms


def report(study: Study, checkpoints: Path) -> PlanReport:
    """Return the accountants' report.

    `checkpoints`: the plan's folder, or a bundle's checkpoints/. Raises PolicyError
    (E-PLAN-CHECKPOINT) where one is not of the plan's sizes.
    """
    check_checkpoints(study, checkpoints)
    counts = parameter_counts(study, checkpoints)
    wire = wire_counts(study, checkpoints)
    return feasibility(study, counts, wire=wire, norms=update_norms(study, checkpoints))


def spending(study: Study, checkpoints: Path) -> Spent:
    """Return what all that one site sends spends by PLD and RDP: the release's account.

    This covers the model updates, and the images whose mechanism covers patients (anchors,
    `random` groups), for they are the same patients'. Imports no torch.
    """
    events = plan_events(study, parameter_counts(study, checkpoints))
    return spend(events, study.privacy.delta)


def check_room(study: Study, found: PlanReport, limits: Limits) -> Need:
    """Return what the plan may need at most.

    Raises PolicyError: E-PLAN-ROOM above a cap, E-PLAN-PAIRS for pairs that cannot be released.
    """
    check_releasable(study)
    return check_caps(study, {model.name: model.round_bytes for model in found.models}, limits)


def sign(
    study_path: Path, key: Ed25519PrivateKey, out: Path, limits: Limits | None = None
) -> tuple[Study, PlanReport]:
    """Write the signed bundle of a plan into `out`; return the plan and its report.

    `limits`: those of server.yaml; without them the usual ones.
    Raises PolicyError (E-PLAN-START, E-PLAN-PAIRS, E-PLAN-CHECKPOINT, E-PLAN-ROOM, E-PLAN-BUDGET,
    E-PLAN-INFEASIBLE).
    """
    study = load_study(study_path)
    # (1) every trained model has starting weights
    missing = missing_starts(study)
    if missing:
        raise PolicyError(
            f"{', '.join(missing)}: every model starts from a public checkpoint",
            hint="kohort-server pretrain makes one from public images",
            code="E-PLAN-START",
        )
    # (2) its pictures could be released, (3) its checkpoints fit it, and so does the server's room,
    # (4) it is within its own epsilon, and can learn
    check_releasable(study)
    found = report(study, study_path.parent)
    check_room(study, found, limits or Limits())
    if not found.accepted:
        raise _refusal(found)
    return write_bundle(study_path, key, out), found


def missing_starts(study: Study) -> list[str]:
    """Return the keys of the models that have no starting checkpoint and need one."""
    missing = []
    for name, plan in study.models.trained().items():
        if plan.start is None:
            missing.append(f"models.{name}.start")
    encoder = study.models.encoder
    if study.synthesis and encoder and encoder.start is None and encoder.steps == 0:
        missing.append("models.encoder.start")
    return missing


def _refusal(found: PlanReport) -> PolicyError:
    """Why a plan is not signed, and what to change."""
    text = f"not signed: {found.sentence}\n{found.to_text()}"
    hint = "change the plan as `fix` says"
    if found.verdict == "over budget":
        return PolicyError(text, hint=hint, code="E-PLAN-BUDGET")
    return PolicyError(
        text,
        hint=hint + ", or set privacy.accept_infeasible: true",
        code="E-PLAN-INFEASIBLE",
    )


def pin(study_path: Path) -> dict[str, str]:
    """Rewrite in place every `sha256:` that stands beside a `file:`; return {file: SHA-256}.

    Comments stay.
    """
    text = read_text(study_path)
    node = compose(study_path, text)
    pinned: dict[str, str] = {}
    new = text
    # From the end of the text to its start, so that the places found stay right.
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
