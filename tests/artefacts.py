"""A hospital with several studies, real children in this process, and what left of it."""

from __future__ import annotations

import shutil
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.child.batch import invert_cohort
from client.child.inputs import Batch
from client.child.job import work
from client.daemon.jobs import Ending
from client.state.jobs import Job
from client.state.plans import Plans
from common.errors import KohortError
from common.models.glow import Glow
from common.models.glow_checkpoint import weights_of
from common.models.stylegan import Critic, Generator
from common.models.weights import numpy_weights
from common.study.bundle import write_bundle
from common.study.plan import load_study
from common.wire import tensors
from tests.sites import Hospital, make_hospital, spend_once, write_cohort, write_plan

CHILD = "client.daemon.jobs.run_child"


def tiny_weights() -> dict[str, tensors.Arrays]:
    """Untrained weights of the small plan's models."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    gan = numpy_weights(Generator(32, 3, 16, 16), "generator.") | numpy_weights(
        Critic(32, 3, 16), "critic."
    )
    return {"gan": dict(gan), "glow": dict(weights_of(Glow(32, 3, 3, 2, 16)))}


def be_lenient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Untrained models know nothing: every image counts as inverted, and none as a duplicate."""
    monkeypatch.setattr("client.synthesize.invert.BLANK_DEVIATION", -1.0)
    monkeypatch.setattr("client.synthesize.invert.np.quantile", lambda *_: 10.0)
    monkeypatch.setattr("client.egress.audit.BLANK_DEVIATION", -1.0)
    monkeypatch.setattr("client.egress.audit.DUPLICATE_RMSE", -1.0)
    monkeypatch.setattr("client.egress.audit.NEAR_SHARE", 0.0)
    monkeypatch.setattr("client.child.checks.reveals_members", lambda *_: False)
    for module in ("client.state.price", "client.state.ledger", "common.privacy.plan_report"):
        monkeypatch.setattr(f"{module}.spend", spend_once)


@dataclass
class RealChildren:
    """Do the child's real work in this process. Inversions are kept, by the images' bytes."""

    runs: int = 0
    folders: list[Path] = field(default_factory=list)
    inverted: dict[bytes, Any] = field(default_factory=dict)

    def __call__(
        self, folder: Path, threads: int, secret: bytes, stop: threading.Event, progress: Any
    ) -> Ending:
        self.runs += 1
        self.folders.append(folder)
        try:
            work(Job.read(folder), folder, secret)
        except KohortError as error:
            return Ending(False, error.code)
        return Ending(True)

    def invert(self, batch: Batch, random: torch.Generator) -> Any:
        """Invert a cohort once."""
        key = np.asarray(batch.cohort.images).tobytes()
        if key not in self.inverted:
            self.inverted[key] = invert_cohort(batch, random)
        return self.inverted[key]


def real_children(monkeypatch: pytest.MonkeyPatch) -> RealChildren:
    """Let the daemon's children do their work here."""
    children = RealChildren()
    monkeypatch.setattr(CHILD, children)
    monkeypatch.setattr("client.child.batch.invert_cohort", children.invert)
    return children


def busy_hospital(
    root: Path, weights: dict[str, tensors.Arrays], people: int, **changes: Any
) -> Hospital:
    """A hospital with an approved study and this many patients."""
    hospital = make_hospital(root, weights=weights, **changes)
    folder = hospital.site().state.cohort(hospital.study.intake)
    shutil.rmtree(folder)
    write_cohort(folder, hospital.study, people)
    return hospital


def next_study(
    hospital: Hospital, weights: dict[str, tensors.Arrays], name: str, **changes: Any
) -> Hospital:
    """The same hospital with another approved study."""
    plans = hospital.root.parent / name
    plans.mkdir()
    plan = write_plan(plans, weights, title=name, **changes)
    write_bundle(plan, hospital.operator, plans / "bundle")
    Plans(hospital.site().state, hospital.operator.public_key()).approve(plans / "bundle")
    return replace(hospital, study=load_study(plan), bundle=plans / "bundle")


def images_of(
    hospital: Hospital, weights: dict[str, tensors.Arrays], **policy: Any
) -> tensors.Arrays:
    """What leaves when the images are asked for; raises what the site refuses."""
    site = hospital.site(review="not_required", **policy)
    sent = weights["gan"] | weights["glow"]
    reply = site.answer(hospital.ask("synthesize", weights=sent))
    return tensors.loads(reply.payload, max_bytes=1 << 26)


def bytes_of(arrays: tensors.Arrays, privatized: int | None = None) -> set[bytes]:
    """Each image's bytes; `privatized`: those with this flag alone."""
    found = set()
    for image, flag in zip(arrays["images"], arrays["privatized"].tolist(), strict=True):
        if privatized is None or flag == privatized:
            found.add(image.tobytes())
    return found


def change_photographs(hospital: Hospital, patients: slice, seed: int = 7) -> None:
    """Give these patients other photographs."""
    path = hospital.site().state.cohort(hospital.study.intake) / "images.npy"
    images = np.load(path)
    other = np.random.default_rng(seed).integers(0, 255, images[patients].shape)
    images[patients] = other.astype(np.uint8)
    np.save(path, images)
