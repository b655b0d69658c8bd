"""A study that was abandoned after one round of its first model, and drafts of its next version."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.study.plan import Study, load_study
from server.rounds import orders
from server.rounds.loop import train_round
from server.rounds.record import StudyRecord
from server.rounds.versions import draft_next
from tests.federation import Federation
from tests.studies import varied

ROUNDS = 3


@dataclass
class Abandoned:
    """A federation whose study ended after one of three rounds of its first model."""

    federation: Federation
    record: StudyRecord
    folder: Path

    @classmethod
    def create(cls, folder: Path) -> Abandoned:
        """Run the first round, and abandon the study."""
        federation = Federation.create(folder, models__gan__rounds=ROUNDS)
        run = federation.open()
        train_round(run, federation.grid(), "gan", 0)
        orders.abandon(run.record)
        return cls(federation, run.record, folder)

    def draft(self, **changes: Any) -> Study:
        """Draft the next version with a fourth hospital; `changes` go into its file."""
        out = self.folder / "next"
        data = draft_next(self.record, out, ["hospital-d"]).model_dump(mode="json")
        (out / "study.yaml").write_text(json.dumps(varied(data, **changes)))
        return load_study(out / "study.yaml")
