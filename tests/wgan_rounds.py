"""One round of the WGAN on invented patients, with repeatable noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from client.ingest.cohort import Cohort
from client.learn import train_wgan
from client.state.ledger import PracticeReservation
from common.models.wgan import build, parameters_by_name
from common.privacy.events import round_event
from common.privacy.noise import SeededNoiseSource
from common.study.plan import Study
from common.study.training import WganPlan
from tests.studies import vessels_plan

PATIENTS = 6
Arrays = dict[str, NDArray[np.float32]]


def study(**changes: object) -> Study:
    """Return the small plan of pairs with two critic steps for each generator step.

    Every patient is drawn with chance 1/2. `changes` are keys of the WGAN.
    """
    own = {
        "critic_steps": 2,
        "adaptive": False,
        "max_update_norm": 1e4,
        "patients_per_step": 50,
        **changes,
    }
    return Study.model_validate(
        vessels_plan(**{f"models__wgan__{name}": value for name, value in own.items()})
    )


def plan_of(**changes: object) -> WganPlan:
    """The WGAN of that plan."""
    return train_wgan.plan_of(study(**{"local_steps": 1000, **changes}))


def cohort(seed: int = 0, counts: Sequence[int] = (3,) * PATIENTS) -> Cohort:
    """Random pairs of invented patients, `counts` of each."""
    rng, n = np.random.default_rng(seed), sum(counts)
    images = rng.integers(0, 256, (n, 32, 32, 2), dtype=np.uint8)
    images[..., 1] = (images[..., 1] > 200) * np.uint8(255)
    names = tuple(f"{p:064x}" for p in range(len(counts)))
    return Cohort(
        Path("unused"),
        images,
        np.repeat(np.arange(len(counts)), counts),
        np.zeros(n, np.int64),
        np.zeros(n, np.int8),
        names,
        tuple((name,) for name in names),
        ("vessels",),
        "0" * 64,
    )


def start(plan: Study) -> Arrays:
    """Return starting weights, the same at every call.

    The average is another network than the generator.
    """
    torch.manual_seed(0)
    wgan = train_wgan.plan_of(plan)
    (generator, critic), (average, _) = build(wgan, 32), build(wgan, 32)
    return {
        name: value.detach().numpy().copy()
        for name, value in parameters_by_name(generator, average, critic).items()
    }


def one_round(
    plan: Study,
    seed: int = 0,
    of: Cohort | None = None,
    weights: Arrays | None = None,
    noise: SeededNoiseSource | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Arrays:
    """The deltas of one round with repeatable noise."""
    reservation = PracticeReservation(round_event(plan, "wgan", 10**6))
    given = start(plan) if weights is None else weights
    source = noise or SeededNoiseSource(seed)
    return train_wgan.train(of or cohort(), plan, given, reservation, source, progress)


def moved(deltas: Arrays) -> set[str]:
    """The names whose delta is not zero."""
    return {name for name, delta in deltas.items() if np.abs(delta).max() > 0}


def norm(deltas: Arrays) -> float:
    """The joint L2 norm."""
    return float(np.sqrt(sum(float((d.astype(np.float64) ** 2).sum()) for d in deltas.values())))
