"""A round of each private trainer on a strict device: every back end, with canaries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.ingest.cohort import Cohort
from client.learn import train_encoder, train_gan, train_glow, train_wgan
from client.learn.fast.backends import Execution
from client.learn.machine import Machine
from client.state.ledger import PracticeReservation
from common.models.glow_checkpoint import weights_of
from common.models.weights import numpy_weights
from common.models.wgan import build, parameters_by_name
from common.privacy.canaries import Canaries, draw
from common.privacy.events import round_event
from common.privacy.noise import SeededNoiseSource
from common.study.plan import Study
from tests.strict_device import GPU, strict_device
from tests.studies import small_study, vessels_plan

PATIENTS = 3
CANARIES = 6
CASES = [
    ("layers", 64),
    ("layers", 128),
    ("layers", 256),
    ("backward", 64),
    ("backward", 128),
    ("backward", 256),
    ("vmap", 64),
    ("vmap", 128),
    ("vmap", 256),
]
EVERYONE = 64  # patients a step: of three, nearly all are drawn


def _cohort(size_px: int, planes: int) -> Cohort:
    """Two random images of each of three patients."""
    shape = (2 * PATIENTS, size_px, size_px, planes)
    names = tuple(f"{p:064x}" for p in range(PATIENTS))
    return Cohort(
        folder=Path("unused"),
        images=np.random.default_rng(0).integers(0, 256, shape, np.uint8),
        patient_of=np.repeat(np.arange(PATIENTS), 2),
        labels=np.zeros(2 * PATIENTS, np.int64),
        laterality=np.zeros(2 * PATIENTS, np.int8),
        pseudonyms=names,
        aliases=tuple((name,) for name in names),
        label_names=("none",),
        digest="0" * 64,
    )


def _one_round(
    train: Any, study: Study, name: str, planes: int, weights: Any, backend: Any, trained: int
) -> dict[str, np.ndarray]:
    """The deltas of one round on the device."""
    cohort = _cohort(study.intake.size_px, planes)
    canaries = Canaries(draw(SeededNoiseSource(9), CANARIES, trained))
    machine = Machine(GPU, Execution(backend=backend, chunk=2), images_bytes=2**30)
    event = round_event(study, name, 10**7)
    with strict_device():
        deltas: dict[str, np.ndarray] = train(
            cohort,
            study,
            weights,
            PracticeReservation(event),
            SeededNoiseSource(0),
            lambda done, total: None,
            canaries,
            machine,
        )
    assert canaries.tally().steps == event.steps
    return deltas


@pytest.mark.parametrize(("backend", "size_px"), CASES)
def test_a_round_of_the_gan(backend: str, size_px: int) -> None:
    study = small_study(
        intake__size_px=size_px,
        models__gan__width=8,
        models__gan__patients_per_step=EVERYONE,
    )
    generator, critic = train_gan.build(study)
    weights = numpy_weights(generator, "generator.") | numpy_weights(critic, "critic.")
    trained = sum(p.numel() for p in critic.parameters())
    deltas = _one_round(train_gan.train, study, "gan", 3, weights, backend, trained)
    assert deltas.keys() == weights.keys()


@pytest.mark.parametrize(("backend", "size_px"), CASES)
def test_a_round_of_the_flow(backend: str, size_px: int) -> None:
    study = small_study(
        intake__size_px=size_px,
        models__glow__width=8,
        models__glow__steps_per_level=1,
        models__glow__patients_per_step=EVERYONE,
    )
    model = train_glow.build(study)
    weights = weights_of(model)
    trained = sum(p.numel() for p in model.parameters())
    deltas = _one_round(train_glow.train, study, "glow", 3, weights, backend, trained)
    assert deltas.keys() == weights.keys()


@pytest.mark.parametrize(
    ("loss", "backend"),
    [("logistic", "layers"), ("wgan-gp", "backward"), ("wgan-gp", "vmap")],
)
@pytest.mark.parametrize("size_px", [64, 128, 256])
def test_a_round_of_the_pairs(loss: str, backend: str, size_px: int) -> None:
    study = Study.model_validate(
        vessels_plan(
            intake__size_px=size_px,
            models__wgan__loss=loss,
            models__wgan__patients_per_step=EVERYONE,
        )
    )
    plan = train_wgan.plan_of(study)
    networks = [*build(plan, size_px), build(plan, size_px)[0]]
    generator, critic, average = networks
    named = parameters_by_name(generator, average, critic)
    weights = {name: value.detach().numpy() for name, value in named.items()}
    trained = sum(p.numel() for p in critic.parameters())
    deltas = _one_round(train_wgan.train, study, "wgan", 2, weights, backend, trained)
    assert deltas.keys() == weights.keys()


@pytest.mark.parametrize("size_px", [64, 128, 256])
def test_the_encoder_trains(size_px: int) -> None:
    study = small_study(intake__size_px=size_px, models__gan__width=8, models__encoder__width=8)
    generator, _ = train_gan.build(study)
    weights = numpy_weights(generator, "generator.")
    with strict_device():
        found = train_encoder.train(weights, {}, study, lambda done, total: None, device=GPU)
    assert all(np.isfinite(array).all() for array in found.values())
    assert torch.Generator().device.type == "cpu"
