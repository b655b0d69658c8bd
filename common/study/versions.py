"""The next version of a study: what may differ from the earlier one, and what must not.

In: two plans. Out: nothing, or PolicyError (E-PLAN-NEXT) with every key.
Guarantees: whatever the epsilon of the earlier rounds follows from is the same in both, so one
account covers both.
Not covered: which rounds were closed (server/rounds/versions.py), what a site spent (its ledger).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from common.errors import PolicyError
from common.study.plan import Study

# what an operator may change: who takes part, how long, and what the release says of itself
FREE = {"name", "title", "sites", "quorum", "round_deadline_s", "aggregation", "continues"}
FREE |= {"release"}
FREE_OF_MODELS = {"rounds", "start"}


def check_next(old: Study, new: Study) -> None:
    """Raise PolicyError (E-PLAN-NEXT) unless `new` goes on from `old`, under the same constants."""
    problems = []
    if new.continues is None or new.continues.plan != old.hash():
        problems.append(f"continues.plan: expected {old.hash()}")
    before = dict(_constants(old))
    after = dict(_constants(new))
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) != after.get(key):
            problems.append(f"{key}: {before.get(key)} before, {after.get(key)} now")
    if problems:
        raise PolicyError(
            f"plan {new.name} is no next version of {old.name}: " + "; ".join(problems),
            hint="sites, quorum, rounds and the release may change; for anything else write a new "
            "study from public checkpoints",
            code="E-PLAN-NEXT",
        )


def _constants(study: Study) -> Iterator[tuple[str, Any]]:
    """Every key and value that the next version must keep."""
    data = study.model_dump(mode="json", exclude=FREE)
    for model in study.models.trained():
        for key in FREE_OF_MODELS:
            del data["models"][model][key]
    yield from _leaves("", data)


def _leaves(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Every leaf of nested sections; of a checkpoint its digest, wherever the file lies."""
    if not isinstance(value, Mapping):
        yield prefix.removeprefix("."), value
        return
    for key, inner in value.items():
        if key == "file" and "sha256" in value:
            continue
        yield from _leaves(f"{prefix}.{key}", inner)
