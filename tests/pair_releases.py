"""A finished study of pairs, and its release with other pairs or statements."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from common.storage.files import file_digest
from server.release.build import build_release
from server.release.items import Pairs, ReleaseInputs
from server.release.pairs import draw_pairs
from server.rounds.study_run import StudyRun
from tests.federation import Federation
from tests.releases import ACCOUNT


@dataclasses.dataclass
class Finished:
    """A finished study of pairs and what its release is made from."""

    federation: Federation
    run: StudyRun
    inputs: ReleaseInputs

    @property
    def pairs(self) -> Pairs:
        assert self.inputs.pairs is not None
        return self.inputs.pairs


def finish_study(folder: Path) -> Finished:
    """A study without synthesis, run to its end below `folder`."""
    federation = Federation.of_pairs(folder)
    run = federation.run()
    file = run.record.final_weights()["wgan"]
    plan = federation.study.models.wgan
    assert plan is not None
    pairs = draw_pairs(
        run.record.root / "pairs", run.record.weights("wgan", 2), file_digest(file), plan, 32
    )
    inputs = ReleaseInputs(
        federation.study,
        folder / "bundle",
        (),
        ACCOUNT,
        {"wgan": file},
        pairs=Pairs(pairs, run.record.evidence("wgan")),
    )
    return Finished(federation, run, inputs)


def build_pairs(finished: Finished, folder: Path, **changes: Any) -> Path:
    """Build with other pairs or statements."""
    pairs = dataclasses.replace(finished.pairs, **changes)
    return build_release(
        dataclasses.replace(finished.inputs, pairs=pairs), folder, finished.federation.key
    )
