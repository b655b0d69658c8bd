"""The whole child on a strict device, every model and size: a job folder in, its output out."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.child.job import confine, work
from client.state.folder import State
from client.state.jobs import Job
from client.synthesize.reference import InversionPlan
from common.compute import Compute
from common.devices import set_tf32
from common.models import stylegan, wgan
from common.models.glow import Glow
from common.models.glow_checkpoint import weights_of
from common.models.weights import numpy_weights
from common.study.training import WganPlan
from common.wire import tensors
from tests.jobs import NO_GROUPS, SECRET, job_folder
from tests.sites import Hospital, make_hospital, write_cohort
from tests.strict_device import Ledger, strict_device
from tests.studies import SMALL, VESSELS, varied

SIZES_PX = (64, 128, 256)
PATIENTS = 4
FEW = {"planned_patients": 5, "epsilon": 8.0, "delta": 1e-5, "accept_infeasible": True}
GAN = {"rounds": 1, "local_steps": 1, "patients_per_step": 4, "width": 8, "latent": 16}
GLOW = {"local_steps": 1, "patients_per_step": 4, "width": 8, "steps_per_level": 1}
SYNTHESIS = {"k": 2, "inversion_steps": 1, "alignment_steps": 1}


@pytest.fixture(autouse=True)
def accept_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Untrained models know nothing, so every image counts as accepted and as passed."""
    monkeypatch.setattr("client.synthesize.invert.BLANK_DEVIATION", -1.0)
    monkeypatch.setattr("client.synthesize.invert.np.quantile", lambda *_: 10.0)
    monkeypatch.setattr("client.egress.audit.BLANK_DEVIATION", -1.0)
    monkeypatch.setattr("client.egress.audit.DUPLICATE_RMSE", -1.0)


@pytest.fixture(autouse=True)
def keep_settings() -> Iterator[None]:
    """Put back what a child settles for its whole process."""
    deterministic = torch.backends.cudnn.deterministic
    yield
    set_tf32(False)
    torch.backends.cudnn.deterministic = deterministic


def image_site(folder: Path, size_px: int, grouping: str = "similar") -> tuple[Hospital, Any]:
    """A hospital of four patients whose plan makes images, and the weights of its models."""
    plan = varied(SMALL, intake__size_px=size_px)
    models = plan["models"]
    models["gan"] |= GAN
    models["glow"] |= GLOW
    models["encoder"] |= {"steps": 1, "width": 8}
    synthesis = plan["synthesis"] | SYNTHESIS | {"grouping": grouping}
    synthesis["privatize"] = {"share": 0.5, "radius": 0.8, "scale": 10.0}
    torch.manual_seed(0)
    gan = numpy_weights(stylegan.Generator(size_px, 3, 8, 16), "generator.")
    gan |= numpy_weights(stylegan.Critic(size_px, 3, 8), "critic.")
    weights = {"gan": dict(gan), "glow": dict(weights_of(Glow(size_px, 3, 3, 1, 8)))}
    changes = {"intake": plan["intake"], "models": models, "privacy": FEW, "synthesis": synthesis}
    return _with_few_patients(make_hospital(folder, weights=weights, **changes)), weights


def pair_site(folder: Path, size_px: int) -> tuple[Hospital, Any]:
    """A hospital of four patients whose plan trains pairs, and the weights of its model."""
    plan = varied(VESSELS, intake__size_px=size_px, models__wgan__local_steps=1)
    plan["models"]["wgan"] |= {"patients_per_step": 4, "items_per_patient": 1}
    torch.manual_seed(0)
    networks = wgan.build(WganPlan.model_validate(plan["models"]["wgan"]), size_px)
    named = wgan.parameters_by_name(networks[0], *networks)
    weights = {"wgan": {name: value.detach().numpy() for name, value in named.items()}}
    names = ("modality", "intake", "models", "release")
    changes = {name: plan[name] for name in names} | {"privacy": FEW, "synthesis": None}
    return _with_few_patients(make_hospital(folder, weights=weights, **changes)), weights


def _with_few_patients(hospital: Hospital) -> Hospital:
    """The same hospital with four patients, of whom two have each label."""
    folder = State(hospital.root).cohort(hospital.study.intake)
    shutil.rmtree(folder)
    write_cohort(folder, hospital.study, PATIENTS)
    return hospital


@contextmanager
def child_on_a_gpu(folder: Path, weights: tensors.Arrays) -> Iterator[Ledger]:
    """The job that the daemon of a site with `device: cuda` writes, done in this process."""
    job = replace(Job.read(folder), compute=Compute(device="cuda"))
    job.write(folder, tensors.dumps(weights), NO_GROUPS)
    with strict_device() as ledger:
        confine(job)
        work(job, folder, SECRET)
        yield ledger


@pytest.mark.parametrize("model", ["gan", "glow", "wgan"])
@pytest.mark.parametrize("size_px", SIZES_PX)
def test_a_round_is_trained_by_the_whole_child(size_px: int, model: str, tmp_path: Path) -> None:
    make = pair_site if model == "wgan" else image_site
    hospital, weights = make(tmp_path / "hospital", size_px)
    folder = tmp_path / "job"
    job_folder(hospital, folder, "train", model, weights[model], NO_GROUPS)
    with child_on_a_gpu(folder, weights[model]) as ledger:
        assert ledger.copies_back > 0
    found = tensors.read(folder / "out.safetensors", max_bytes=1 << 26)
    assert found.keys() == weights[model].keys()
    assert all(np.isfinite(delta).all() for delta in found.values())


@pytest.mark.parametrize(
    ("size_px", "grouping"),
    [(32, "cells"), (64, "similar"), (128, "similar"), (256, "similar")],
)
def test_a_batch_is_made_by_the_whole_child(
    size_px: int, grouping: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = partial(InversionPlan, samples=8, components=4, turned=2)
    monkeypatch.setattr("client.child.batch.InversionPlan", few)
    hospital, weights = image_site(tmp_path / "hospital", size_px, grouping)
    both = weights["gan"] | weights["glow"]
    folder = job_folder(hospital, tmp_path / "job", "synthesize", "", both, NO_GROUPS)
    with child_on_a_gpu(folder, both):
        pass
    found = tensors.read(folder / "out.safetensors", max_bytes=1 << 26)
    assert found["images"].shape == (2, size_px, size_px, 3)
    assert found["privatized"].sum() == 1
    assert (folder / "inversions.png").is_file()
