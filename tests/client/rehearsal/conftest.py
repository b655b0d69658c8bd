"""A hospital with tiny models, and children that do a job of a rehearsal in this process."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from client.child.job import work
from client.cli.main import run_command_line
from client.daemon.jobs import Ending
from client.state.folder import State
from client.state.jobs import Job, Progress
from common.errors import KohortError
from common.models.glow import Glow
from common.models.glow_checkpoint import weights_of
from common.models.stylegan import Critic, Generator
from common.models.weights import numpy_weights
from common.wire import tensors
from tests.client.cli.typing_commands import Cli
from tests.sites import Hospital, make_hospital


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run one command; returns (exit code, standard output, standard error)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run_command_line([str(argument) for argument in arguments])
        return (code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def weights() -> dict[str, tensors.Arrays]:
    """Untrained networks of the small plan."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    generator = numpy_weights(Generator(32, 3, 16, 16), "generator.")
    critic = numpy_weights(Critic(32, 3, 16), "critic.")
    return {"gan": dict(generator | critic), "glow": dict(weights_of(Glow(32, 3, 3, 2, 16)))}


def joined(hospital: Hospital) -> Hospital:
    """The hospital, with the file that says who the operator is."""
    text = hospital.site().membership.model_dump_json()
    State(hospital.root).membership.write_text(text)
    return hospital


@pytest.fixture
def hospital(tmp_path: Path, weights: dict[str, tensors.Arrays]) -> Hospital:
    return joined(make_hospital(tmp_path, weights=weights))


@dataclass
class InProcess:
    """Replaces `run_child`: does the job here, and keeps a copy of what it left.

    `before`: called with each job folder; a code that it returns is the child's refusal.
    """

    kept: Path
    jobs: list[Job] = field(default_factory=list)
    before: Callable[[Path], str] = lambda folder: ""

    def __call__(
        self, folder: Path, threads: int, secret: bytes, stop: threading.Event, progress: Progress
    ) -> Ending:
        job = Job.read(folder)
        self.jobs.append(job)
        code = self.before(folder)
        if code:
            (folder / "child.log").write_text(f"{code}: no stratum has k patients\n")
            return Ending(False, code)
        progress(0, 0)
        try:
            work(job, folder, secret)
        except KohortError as error:
            (folder / "child.log").write_text(f"{error.code}: {error}\n")
            return Ending(False, error.code)
        progress(1, 1)
        shutil.copytree(folder, self.kept / f"{len(self.jobs)}-{job.kind}")
        return Ending(True)


@pytest.fixture
def children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> InProcess:
    """Children in this process. Untrained models know nothing, so every image passes."""
    monkeypatch.setattr("client.synthesize.invert.BLANK_DEVIATION", -1.0)
    monkeypatch.setattr("client.synthesize.invert.np.quantile", lambda *_: 10.0)
    monkeypatch.setattr("client.egress.audit.BLANK_DEVIATION", -1.0)
    monkeypatch.setattr("client.egress.audit.DUPLICATE_RMSE", -1.0)
    found = InProcess(tmp_path / "kept")
    monkeypatch.setattr("client.daemon.jobs.run_child", found)
    return found
