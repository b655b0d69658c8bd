"""The plan of a rehearsal: the study's own, shortened if somebody asks for it, with another hash.

In: a verified bundle. Out: a folder with study.yaml and checkpoints/, as a child reads them.
Guarantees: its hash is that of no approved plan, so nothing that carries it passes a gate.
Not covered: what a shortened plan's images look like: they are not those of the study.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from common.errors import ConfigurationError, disk_faults_named
from common.storage.files import atomic_write
from common.study.bundle import PLAN_FILE
from common.study.plan import Study

TITLE = "REHEARSAL, NOT PRIVATE: "
MOST_CHARACTERS = 200


@dataclass(frozen=True)
class Shorter:
    """At most so many rounds of each model, and steps of each phase; None: as the plan says."""

    rounds: int | None = None
    steps: int | None = None

    @property
    def whole(self) -> bool:
        """Whether nothing is shortened."""
        return self.rounds is None and self.steps is None


def make_practice_plan(study: Study, shorter: Shorter) -> Study:
    """Return the plan to rehearse; raises ConfigurationError where it cannot be shortened so."""
    data: dict[str, Any] = study.model_dump(mode="json")
    data["title"] = (TITLE + study.title)[:MOST_CHARACTERS]
    for name in study.models.trained():
        _cut(data["models"][name], "rounds", shorter.rounds)
        _cut(data["models"][name], "local_steps", shorter.steps)
        _cut(data["models"][name], "critic_steps", shorter.steps)
    if data["models"].get("encoder"):
        _cut(data["models"]["encoder"], "steps", shorter.steps)
    if data.get("synthesis"):
        _cut(data["synthesis"], "inversion_steps", shorter.steps)
        _cut(data["synthesis"], "alignment_steps", shorter.steps)
    try:
        return Study.model_validate(data)
    except ValidationError as error:
        raise ConfigurationError(
            f"plan {study.name}: cannot be shortened so: {error.errors()[0]['msg']}",
            hint="leave --rounds and --steps out, or give larger numbers",
        ) from error


def write_practice_plan(study: Study, checkpoints: Path, folder: Path) -> None:
    """Write the plan for a child; the checkpoints stay where they are."""
    atomic_write(folder / PLAN_FILE, json.dumps(study.model_dump(mode="json")).encode(), mode=0o600)
    with disk_faults_named("cannot link the checkpoints in", folder):
        (folder / "checkpoints").symlink_to(checkpoints.resolve())


def _cut(section: dict[str, Any], key: str, most: int | None) -> None:
    """Lower a number of the plan to at most `most`."""
    if most is not None and section.get(key) is not None:
        section[key] = min(section[key], most)
