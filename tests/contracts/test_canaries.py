"""Promises about canaries: they move no weight, count once, and show missing noise to the gate."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.daemon.site import Site
from client.learn.lattice import to_lattice
from client.learn.private_step import PrivateStep, StepConstants
from client.state.canaries import CanaryFile
from client.state.jobs import CANARIES
from client.state.ledger import PracticeReservation
from common.errors import KohortError, PolicyError
from common.privacy import canaries, canary_audit
from common.privacy.accounting import epsilon_pld
from common.privacy.canaries import Canaries, Tally
from common.privacy.canary_audit import Claim, fault
from common.privacy.mechanisms import SubsampledGaussian
from common.privacy.noise import LATTICE, SeededNoiseSource
from common.wire import tensors
from tests.sites import Hospital, Killed, make_hospital, scripted

torch.set_num_threads(1)
D, M = 5, 40
EVENT = SubsampledGaussian(q=0.5, noise_multiplier=2.0, steps=30, dimension=D + M)
CONSTANTS = StepConstants(clip=0.7, noise_multiplier=2.0, sampling_rate=0.5, divisor=8)
TABLE = torch.randn(9, D, generator=torch.Generator().manual_seed(1)) * 3


def run(
    included: NDArray[np.bool_] | None,
    *,
    noise: SeededNoiseSource | None = None,
    patients: int = 9,
    steps: int = 3,
    event: SubsampledGaussian = EVENT,
) -> tuple[list[Tensor], Tally]:
    """The weights' updates and the canaries' tally of some steps of a linear model."""
    canaries = None if included is None else Canaries(included)
    constants = dataclasses.replace(
        CONSTANTS, sampling_rate=event.q, noise_multiplier=event.noise_multiplier
    )
    step = PrivateStep(
        {"w": torch.zeros(D)},
        lambda p, patient: (p["w"] * patient[0]).sum(),
        constants,
        PracticeReservation(event),
        noise or SeededNoiseSource(7),
        canaries=canaries,
    )
    updates = [step.step(patients, lambda drawn: (TABLE[list(drawn)],))["w"] for _ in range(steps)]
    return updates, (canaries or Canaries(np.zeros(0, np.bool_))).tally()


def altered(
    change: Callable[[NDArray[np.int64]], NDArray[np.int64]], seed: int = 7
) -> SeededNoiseSource:
    """A source whose Gaussian noise is changed before it is used."""
    noise = SeededNoiseSource(seed)
    honest = noise.gaussian_lattice

    def gaussian_lattice(n: int, sigma: float) -> NDArray[np.int64]:
        return change(honest(n, sigma))

    noise.gaussian_lattice = gaussian_lattice  # type: ignore[method-assign]
    return noise


COINS = canaries.draw(SeededNoiseSource(3), M)


def test_canaries_never_move_a_weight() -> None:
    """Whoever is in: with the same noise the weights' updates are the same to the bit."""
    runs = [
        run(included)[0]
        for included in (COINS, ~COINS, np.zeros(M, np.bool_), np.ones(M, np.bool_))
    ]
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


def test_without_noise_the_weights_updates_are_those_of_a_run_without_canaries() -> None:
    with_canaries, without = (
        run(included, noise=altered(lambda z: z * 0), steps=1)[0] for included in (COINS, None)
    )
    assert torch.equal(with_canaries[0], without[0])


def test_patients_never_reach_a_canary() -> None:
    one, other = (
        run(COINS, noise=altered(lambda z: z * 0), steps=1),
        run(COINS, noise=altered(lambda z: z * 0), steps=1, patients=0),
    )
    out = ~COINS
    assert not one[1].scores[out].any() and not other[1].scores[out].any()
    assert one[1].scores[COINS].any()
    assert set(np.unique(one[1].scores)) == set(
        np.unique(other[1].scores)
    )  # 0, and the clipped canary


@pytest.mark.parametrize("clip", [1e-3, 0.7, 1.0, 3.3, 1000.0])
def test_a_canary_takes_the_patients_clip_and_the_rehearsal_takes_the_canarys(clip: float) -> None:
    theirs = float(to_lattice(torch.full((1, 1), canaries.RAW_NORM * clip), clip)[0, 0])
    assert canaries.to_lattice(np.float32(canaries.RAW_NORM * clip), clip) == theirs
    assert 0.999 * LATTICE < theirs <= LATTICE


def test_the_rehearsal_hears_what_the_private_step_lets_canaries_hear() -> None:
    """With equal coins and noise the operator's rehearsal and the step on site agree to the bit."""

    def source() -> SeededNoiseSource:
        noise = SeededNoiseSource(11)
        rows = iter(np.random.default_rng(2).integers(-(2**25), 2**25, (30, D + M)))
        noise.gaussian_lattice = lambda n, sigma: next(rows)[-n:]  # type: ignore[method-assign]
        return noise

    on_site = run(COINS, noise=source(), patients=0, steps=30)[1]
    rehearsed = Canaries(COINS)
    canaries.rehearse(rehearsed, EVENT, CONSTANTS.clip, CONSTANTS.divisor, source())
    assert np.array_equal(on_site.scores, rehearsed.tally().scores)
    assert np.array_equal(on_site.squares, rehearsed.tally().squares)


CLAIM = Claim(EVENT, 2.0 * 0.7 / 8, 1e-5, 1, M)


def test_the_private_steps_noise_is_heard_to_be_the_plans() -> None:
    tally = run(COINS, steps=30)[1]
    assert fault(tally, tally, CLAIM) == ""


def test_the_noise_meter_fails_at_half_sigma() -> None:
    tally = run(COINS, noise=altered(lambda z: z // 2), steps=30)[1]
    assert "times the plan's variance" in fault(tally, tally, CLAIM)


def test_the_noise_meter_hears_another_divisor() -> None:
    tally = run(COINS, steps=30)[1]
    assert "times the plan's variance" in fault(
        tally, tally, dataclasses.replace(CLAIM, deviation=2.0 * 0.7 / 10)
    )


def test_with_noise_off_the_lower_bound_exceeds_a_claim_of_epsilon_one() -> None:
    event = SubsampledGaussian(q=0.5, noise_multiplier=14.0, steps=40, dimension=D + 200)
    coins = canaries.draw(SeededNoiseSource(4), 200)
    silent = run(coins, noise=altered(lambda z: z * 0), steps=40, event=event)[1]
    claimed = epsilon_pld([event], 1e-5)
    assert 0.8 < claimed < 1.05
    assert canary_audit.audit(silent, 14.0 * 0.7 / 8, 1e-5).lower_bound > claimed
    assert fault(silent, silent, Claim(event, 14.0 * 0.7 / 8, 1e-5, 1, 200)) != ""


def test_dummy_coordinates_must_be_reserved() -> None:
    with pytest.raises(PolicyError) as refused:
        run(COINS, event=dataclasses.replace(EVENT, dimension=D + M - 1))
    assert refused.value.code == "E-RESERVATION"


# --- the gate and the daemon


@pytest.fixture
def hospital(tmp_path: Path) -> Hospital:
    return make_hospital(tmp_path)


def kept(hospital: Hospital, model: str = "gan") -> Tally:
    """What counts of a model's canaries at the site."""
    path = hospital.root / "canaries" / f"{hospital.study.hash()[:16]}-{model}.safetensors"
    arrays = tensors.read(path, max_bytes=1 << 20)
    arrays.pop("rounds")
    return Tally.from_arrays(arrays)


FAULTS: dict[str, Callable[[Tally], Tally]] = {
    "half the noise": lambda t: dataclasses.replace(t, squares=t.squares / 4),
    "no noise": lambda t: dataclasses.replace(t, scores=t.included * 1.0, squares=t.squares * 0),
    "a bound above the claim": lambda t: dataclasses.replace(
        t, scores=t.scores + 1000.0 * t.included
    ),
    "a step too few": lambda t: dataclasses.replace(t, steps=t.steps - 1),
}


@pytest.mark.parametrize("case", FAULTS, ids=lambda case: case.replace(" ", "-"))
def test_the_gate_stays_closed_when_the_audit_fails(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    scripted(monkeypatch, hospital.study).tally = FAULTS[case]
    site = hospital.site()
    with pytest.raises(KohortError) as refused:
        site.answer(hospital.ask("train"))
    assert refused.value.code == "E-GATE-26"
    assert not list((hospital.root / "outbox").glob("*"))
    assert not any(row.kind == "commit" for row in site.ledger().rows())
    assert kept(hospital).steps == 0


def test_rounds_add_up_under_one_draw_of_coins(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    children, seen = scripted(monkeypatch, hospital.study), []
    children.tally = lambda tally: (seen.append(tally), tally)[1]
    for number in range(2):
        hospital.site().answer(hospital.ask("train", round=number))
    total = kept(hospital)
    assert np.array_equal(seen[0].included, seen[1].included) and np.array_equal(
        total.included, seen[0].included
    )
    assert total.steps == 4 and np.array_equal(total.scores, seen[0].scores + seen[1].scores)
    hospital.site().answer(hospital.ask("train", model="glow"))
    assert not np.array_equal(
        kept(hospital, "glow").included, total.included
    )  # 300 coins of their own


@pytest.mark.parametrize(
    "script", [("crash",), ("die",), ("die after",), ("die", "crash", "die after")]
)
def test_a_round_that_is_redone_counts_once(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch, script: tuple[str, ...]
) -> None:
    scripted(monkeypatch, hospital.study, *script)
    for _ in range(len(script) + 1):
        try:
            hospital.site().answer(hospital.ask("train"))
        except Killed:
            continue
    assert kept(hospital).steps == 2


@pytest.mark.parametrize("where", ["before it counts", "after it counts"])
def test_a_kill_between_commit_and_answer_counts_once(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    children = scripted(monkeypatch, hospital.study)

    def kill(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        if where == "before it counts":
            patch.setattr(CanaryFile, "count_round", kill)
        else:
            patch.setattr(Site, "_seal", kill)
        with pytest.raises(Killed):
            hospital.site().answer(hospital.ask("train"))
    hospital.site().answer(hospital.ask("train"))
    assert (kept(hospital).steps, children.runs) == (2, 1)


def test_coins_and_scores_never_leave(hospital: Hospital, monkeypatch: pytest.MonkeyPatch) -> None:
    children, seen = scripted(monkeypatch, hospital.study), []
    children.tally = lambda tally: (seen.append(tally), tally)[1]
    reply = hospital.site().answer(hospital.ask("train"))
    left = b"".join(
        [
            *reply,
            *(
                path.read_bytes()
                for path in (hospital.root / "outbox").rglob("*")
                if path.is_file()
            ),
        ]
    )
    secrets = [
        seen[0].included.tobytes(),
        *(value.tobytes() for value in (*seen[0].scores, *seen[0].squares)),
    ]
    assert not any(secret in left for secret in secrets)
    assert b"canar" not in left and b"tally" not in left
    assert (hospital.root / "canaries").is_dir()
    for path in (hospital.root / "canaries").iterdir():
        assert path.stat().st_mode & 0o77 == 0


def test_no_canaries_no_file_and_no_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hospital = make_hospital(tmp_path, privacy__canaries=0)
    children = scripted(monkeypatch, hospital.study)
    jobs: list[bool] = []
    children.change = lambda arrays: (
        jobs.extend(p.name == CANARIES for p in hospital.root.rglob("*")),
        arrays,
    )[1]
    hospital.site().answer(hospital.ask("train"))
    assert jobs and not any(jobs)
    assert not (hospital.root / "canaries").exists()
