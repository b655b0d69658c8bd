"""The next version of a study: it starts from the weights that the earlier one was left with.

In: the record of an abandoned study. Out: a draft that the operator edits, signs and sends.
Guarantees: the starting weights are those after the newest closed round, pinned by SHA-256; the
draft says how many closed rounds are in them, so its epsilon covers these too. A draft that says
otherwise is not signed.
Not covered: who agrees: every site approves the next version as it approves any plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from common.errors import PolicyError
from common.storage.files import atomic_write, file_digest, read_capped
from common.study.bundle import PLAN_FILE
from common.study.fields import CHECKPOINT_CAP_BYTES
from common.study.plan import Study
from common.study.versions import check_next
from server.rounds.record import StudyRecord

MOST_CHARACTERS = 32


def draft_next(record: StudyRecord, out: Path, sites: Sequence[str]) -> Study:
    """Write the next version's study.yaml and checkpoints into a new folder; return its plan.

    `sites`: hospitals that join. Raises PolicyError (E-STUDY-NEXT) for a study that may still go
    on, or of which a model has no round left.
    """
    study = record.study
    closed = _closed_rounds(record)
    _check_may_go_on(record, closed)
    data: dict[str, Any] = study.model_dump(mode="json")
    data["name"] = next_name(study.name)
    known = {site.name for site in study.sites}
    data["sites"] += [{"name": name} for name in sites if name not in known]
    for checkpoint in study.checkpoints():
        source = record.root / "bundle" / "checkpoints" / checkpoint.name
        atomic_write(out / checkpoint.name, read_capped(source, CHECKPOINT_CAP_BYTES))
    _name_files(data)
    for model, count in closed.items():
        section = data["models"][model]
        section["rounds"] -= count
        if count:
            section["start"] = _copy_weights(record, model, count, out)
    counted = _count_rounds(study, closed)
    if any(counted.values()):
        data["continues"] = {"plan": study.hash(), "rounds": counted}
    new = Study.model_validate(data)
    text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    atomic_write(out / PLAN_FILE, text.encode())
    return new


def check_draft(record: StudyRecord, new: Study) -> None:
    """Raise PolicyError (E-PLAN-NEXT, E-STUDY-NEXT) unless a plan says what the record knows.

    Its constants are the earlier version's, its closed rounds those that were closed, and its
    starting weights those after them.
    """
    check_next(record.study, new)
    assert new.continues is not None
    closed = _closed_rounds(record)
    _check_may_go_on(record, closed)
    for model, expected in _count_rounds(record.study, closed).items():
        stated = new.continues.rounds[model]
        if stated != expected:
            raise _refusal(new, f"continues.rounds: {stated} of {model}, expected {expected}")
        count = closed[model]
        if not count:
            continue
        start = new.models.trained()[model].start
        digest = file_digest(record.weights_file(model, count))
        if start is None or start.sha256 != digest:
            raise _refusal(new, f"models.{model}.start: not the weights after {count} rounds")


def next_name(name: str) -> str:
    """Return the name of the next version: `small`, `small-2`, `small-3`."""
    stem, _, number = name.rpartition("-")
    if stem and number.isdigit():
        return f"{stem}-{int(number) + 1}"
    return f"{name[: MOST_CHARACTERS - 2]}-2"


def _closed_rounds(record: StudyRecord) -> dict[str, int]:
    """How many rounds of each model are closed."""
    closed = {}
    for model, plan in record.study.models.trained().items():
        count = 0
        while count < plan.rounds and record.closing_entry("train", model, count) is not None:
            count += 1
        closed[model] = count
    return closed


def _count_rounds(study: Study, closed: dict[str, int]) -> dict[str, int]:
    """How many rounds the weights rest on, by model: closed ones, and those of earlier versions."""
    counted = {}
    for model, plan in study.models.trained().items():
        counted[model] = study.counted_rounds(model) - plan.rounds + closed[model]
    return counted


def _check_may_go_on(record: StudyRecord, closed: dict[str, int]) -> None:
    """Refuse a study that another round may still change, or with a model that has none left."""
    study = record.study
    if not record.abandoned():
        raise PolicyError(
            f"study {study.name} may still go on: its next version begins where it ends",
            hint=f"kohort-server study abandon {study.name}; closed rounds stay",
            code="E-STUDY-NEXT",
        )
    trained = study.models.trained()
    done = [model for model, plan in trained.items() if closed[model] == plan.rounds]
    if done:
        raise PolicyError(
            f"study {study.name}: every round of {', '.join(done)} is closed, and a plan needs one",
            hint="a hospital joins before the last round of a model; write a new study instead",
            code="E-STUDY-NEXT",
        )


def _copy_weights(record: StudyRecord, model: str, count: int, out: Path) -> dict[str, str]:
    """Copy the weights before round `count`; return the plan's entry for them."""
    record.weights(model, count)  # they have the SHA-256 that the journal names
    source = record.weights_file(model, count)
    name = f"{model}-after-{count}.safetensors"
    atomic_write(out / name, read_capped(source, CHECKPOINT_CAP_BYTES))
    return {"file": name, "sha256": file_digest(out / name)}


def _name_files(value: Any) -> None:
    """Let every checkpoint lie beside the draft."""
    if isinstance(value, dict):
        if set(value) == {"file", "sha256"}:
            value["file"] = Path(value["file"]).name
        for inner in value.values():
            _name_files(inner)


def _refusal(study: Study, what: str) -> PolicyError:
    return PolicyError(
        f"plan {study.name}: {what}",
        hint="take what `kohort-server study next` wrote; its rounds and weights are the record's",
        code="E-PLAN-NEXT",
    )
