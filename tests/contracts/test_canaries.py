"""Promises about canaries and meters: they move no weight, count once, and close the gate."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from client.daemon.site import Site
from client.learn.fast.backends import Backend
from client.learn.lattice import LatticeSum
from client.learn.private_step import Execution, PrivateStep, StepConstants
from client.state.canaries import CanaryFile, Tallies
from client.state.jobs import CANARIES
from client.state.ledger import PracticeReservation
from common.errors import KohortError, PolicyError
from common.privacy import canaries
from common.privacy.canaries import Canaries, Secret, draw
from common.privacy.canary_audit import Claim, fault
from common.privacy.mechanisms import SubsampledGaussian
from common.privacy.noise import Noise, SeededNoiseSource
from common.privacy.tally import Heard, Tally
from tests.sites import Hospital, Killed, make_hospital, scripted

torch.set_num_threads(1)
D, M = 400, 40
EVENT = SubsampledGaussian(q=0.5, noise_multiplier=2.0, steps=30, dimension=D + M)
CONSTANTS = StepConstants(clip=0.7, noise_multiplier=2.0, sampling_rate=0.5, divisor=8)
TABLE = torch.randn(9, D, generator=torch.Generator().manual_seed(1)) * 3
SECRET = canaries.draw(SeededNoiseSource(3), M, D)


def with_coins(own: NDArray[np.bool_], inside: NDArray[np.bool_]) -> Secret:
    """The secret with other coins in the same places."""
    return dataclasses.replace(SECRET, own=own, inside=inside)


def run(
    secret: Secret | None,
    *,
    noise: SeededNoiseSource | None = None,
    table: Tensor = TABLE,
    steps: int = 3,
    event: SubsampledGaussian = EVENT,
    items: int = 1,
) -> tuple[list[Tensor], Tally]:
    """The weights' updates and the canaries' tally of some steps of a linear model."""
    taking_part = Canaries(secret or canaries.nobody())
    constants = dataclasses.replace(
        CONSTANTS,
        sampling_rate=event.q,
        noise_multiplier=event.noise_multiplier,
        items_per_patient=items,
    )
    step = PrivateStep(
        {"v": torch.zeros(100), "w": torch.zeros(D - 100)},
        lambda p, patient: (torch.cat([p["v"], p["w"]]) * patient[0]).sum(),
        constants,
        PracticeReservation(event),
        noise or SeededNoiseSource(7),
        canaries=taking_part if secret else None,
    )
    updates = []
    for _ in range(steps):
        update = step.step(9, lambda drawn: (table[list(drawn)],))
        updates.append(torch.cat([update["v"], update["w"]]))
    return updates, taking_part.tally()


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


def silence(z: NDArray[np.int64]) -> NDArray[np.int64]:
    """No noise at all."""
    return z * 0


EVERYBODY = with_coins(np.ones(M, np.bool_), np.ones(len(SECRET.inside), np.bool_))
NOBODY = with_coins(~EVERYBODY.own, ~EVERYBODY.inside)


def test_canaries_never_move_a_weight() -> None:
    """Whoever is in: with the same noise the weights' updates are the same to the bit."""
    runs = [run(secret)[0] for secret in (SECRET, EVERYBODY, NOBODY)]
    assert len(EVERYBODY.inside) == 20 and EVERYBODY.places.shape == (20, 20)
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


@pytest.mark.parametrize("backend", ["layers", "backward"])
def test_canaries_never_move_a_weight_whatever_the_order_of_the_rows_columns(
    backend: Backend,
) -> None:
    """The fast back end keeps a convolution's columns in another order than its weights."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.LeakyReLU(0.2), nn.Conv2d(6, 8, 3), nn.Flatten())
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    dimension = sum(p.numel() for p in parameters.values())
    event = dataclasses.replace(EVENT, dimension=dimension + M)
    images = torch.randn(9, 1, 2, 8, 8)
    secret = canaries.draw(SeededNoiseSource(5), M, dimension)
    updates, tallies = [], []
    for coin in (True, False):
        coins = np.full(len(secret.inside), coin)
        taking_part = Canaries(dataclasses.replace(secret, inside=coins))
        step = PrivateStep(
            parameters,
            lambda p, patient: functional_call(model, p, (patient[0],)).square().mean(),
            CONSTANTS,
            PracticeReservation(event),
            SeededNoiseSource(7),
            execution=Execution(backend, chunk=4 if backend == "layers" else None),
            canaries=taking_part,
        )
        steps = [step.step(9, lambda drawn: (images[list(drawn)],)) for _ in range(3)]
        updates.append(torch.cat([u.flatten() for step in steps for u in step.values()]))
        tallies.append(taking_part.tally())
    assert torch.equal(*updates)
    length = CONSTANTS.clip / CONSTANTS.divisor
    heard = tallies[0].inside.scores - tallies[1].inside.scores
    assert heard == pytest.approx(tallies[0].inside.drawn * length, rel=1e-3, abs=1e-6)


def test_without_noise_the_weights_updates_are_those_of_a_run_without_canaries() -> None:
    with_canaries = run(EVERYBODY, noise=altered(silence), steps=1)[0]
    without = run(None, noise=altered(silence), steps=1)[0]
    assert torch.equal(with_canaries[0], without[0])


def test_a_canary_inside_the_model_is_a_row_of_the_patients_own_sum(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its raw gradient is ten clip norms long, in the columns of the patients' rows."""
    rows: list[Tensor] = []
    honest = LatticeSum.add

    def add(self: LatticeSum, added: Tensor) -> None:
        rows.extend(added.clone())
        honest(self, added)

    monkeypatch.setattr(LatticeSum, "add", add)
    tally = run(EVERYBODY, table=torch.zeros(9, D), steps=1)[1]
    long = [row for row in rows if len(row) == D and row.any()]
    assert len(long) == tally.inside.drawn.sum() > 0
    for row in long:
        assert float(row.double().norm()) == pytest.approx(10 * CONSTANTS.clip, rel=1e-6)


def test_patients_never_reach_a_canary() -> None:
    """What canaries hear is the same whatever the patients are, up to the release's float32."""
    one, other = run(SECRET, steps=5)[1], run(SECRET, table=TABLE * 0, steps=5)[1]
    assert np.array_equal(one.own.scores, other.own.scores)
    assert np.abs(one.inside.scores - other.inside.scores).max() < 1e-6
    assert np.abs(one.inside.scores).max() > 0.1
    assert one.released.sum() != other.released.sum()


def test_without_noise_a_canary_hears_its_clipped_gradient_or_nothing() -> None:
    tally = run(SECRET, noise=altered(silence), steps=4)[1]
    for heard in (tally.own, tally.inside):
        assert not heard.drawn[~heard.included].any()
        assert np.abs(heard.scores[~heard.included]).max() < 1e-6  # float32 of what is released
        expected = heard.drawn * (CONSTANTS.clip / CONSTANTS.divisor)
        assert heard.scores == pytest.approx(expected, rel=1e-3, abs=1e-6) and expected.any()


def test_the_tally_counts_what_was_released_tensor_by_tensor() -> None:
    updates, tally = run(SECRET, steps=4)
    squares = [
        sum(float((u[a:b].double() ** 2).sum()) for u in updates) for a, b in ((0, 100), (100, D))
    ]
    assert tally.sizes.tolist() == [100, 300] and tally.released == pytest.approx(squares)


def test_the_bound_on_the_signal_is_of_the_drawn_patients() -> None:
    noise = SeededNoiseSource(7)
    drawn = iter((3, 0, 5))
    noise.bernoulli = lambda q, n: np.arange(n) < next(drawn)  # type: ignore[method-assign]
    assert run(SECRET, noise=noise)[1].signal == 9 + 0 + 25


def test_coins_sample_canaries_as_often_as_patients() -> None:
    event = dataclasses.replace(EVENT, steps=300)
    tally = run(EVERYBODY, steps=300, event=event)[1]
    for heard in (tally.own, tally.inside):
        assert heard.drawn.mean() == pytest.approx(150, abs=8)


CLAIM = Claim(EVENT, 0.7, 8, 1e-5, 1, M)


def test_the_private_steps_noise_and_clip_are_heard_to_be_the_plans() -> None:
    tally = run(SECRET, steps=30)[1]
    assert fault(tally, tally, CLAIM) == ""


def test_more_items_a_patient_bring_no_less_noise() -> None:
    tally = run(SECRET, steps=30, items=9)[1]
    assert fault(tally, tally, CLAIM) == ""


def only(z: NDArray[np.int64], where: NDArray[np.int64]) -> NDArray[np.int64]:
    """The noise on some coordinates alone."""
    kept = np.zeros_like(z)
    kept[where] = z[where]
    return kept


DUMMIES = np.arange(D, D + M)
BROKEN_NOISE = {
    "half the noise": lambda z: z // 2,
    "no noise": silence,
    "double noise": lambda z: 2 * z,
    "noise on dummy coordinates alone": lambda z: only(z, DUMMIES),
    "noise where canaries are alone": lambda z: only(z, np.append(DUMMIES, SECRET.places[:10])),
    "one tensor without noise": lambda z: only(z, np.arange(100, D + M)),
    "noise divided by the root of 9 items": lambda z: z // 3,
    "the same noise in every step": lambda z: only(
        SeededNoiseSource(5).gaussian_lattice(D + M, 2.0), np.arange(D + M)
    ),
}


@pytest.mark.parametrize("case", BROKEN_NOISE, ids=lambda case: case.replace(" ", "-"))
def test_broken_noise_is_a_fault(case: str) -> None:
    tally = run(SECRET, noise=altered(BROKEN_NOISE[case]), steps=30)[1]
    assert fault(tally, tally, CLAIM) != ""


def test_another_divisor_is_a_fault() -> None:
    tally = run(SECRET, steps=30)[1]
    assert fault(tally, tally, dataclasses.replace(CLAIM, divisor=10)) != ""


def loosen(factor: float, least: int) -> Callable[[Tensor, float], Tensor]:
    """A clip at `factor`·C for rows of at least `least` coordinates."""
    from client.learn import lattice

    honest = lattice._factors

    def factors(rows: Tensor, clip: float) -> Tensor:
        if rows.shape[1] < least:
            return honest(rows, clip)
        return honest(rows / factor, clip)

    return factors


@pytest.mark.parametrize(("factor", "least"), [(1e6, 0), (3.0, 64), (2.0, 0)])
def test_a_loose_clip_is_a_fault(
    monkeypatch: pytest.MonkeyPatch, factor: float, least: int
) -> None:
    """Also one that is loose for long rows alone, where canaries on dummy coordinates are short."""
    monkeypatch.setattr("client.learn.lattice._factors", loosen(factor, least))
    tally = run(SECRET, steps=30)[1]
    assert "clipped gradient" in fault(tally, tally, CLAIM)


def test_patients_that_alone_escape_the_clip_are_heard_in_the_release(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    honest = LatticeSum.add

    def add(self: LatticeSum, rows: Tensor) -> None:
        dense = bool((rows != 0).all())
        for _ in range(20 if dense else 1):
            honest(self, rows.clone())

    monkeypatch.setattr(LatticeSum, "add", add)
    tally = run(SECRET, steps=30)[1]
    assert "released tensors" in fault(tally, tally, CLAIM)


def test_with_noise_off_the_lower_bound_exceeds_the_claim() -> None:
    from common.privacy.canary_audit import epsilon_at_least

    event = SubsampledGaussian(q=0.5, noise_multiplier=14.0, steps=40, dimension=D + 200)
    secret = canaries.draw(SeededNoiseSource(4), 200, D)
    for change, least, most in ((silence, 1.5, 9.0), (lambda z: z, 0.0, 0.9)):
        tally = run(secret, noise=altered(change), steps=40, event=event)[1]
        found = counts_of_heard(tally.inside)
        assert least <= epsilon_at_least(*found, 1e-5) <= most


def counts_of_heard(heard: Heard) -> tuple[int, int, int]:
    """Canaries, guesses and right guesses."""
    from common.privacy.canary_audit import count_correct, guess_count

    return len(heard), guess_count(len(heard)), count_correct(heard)


def test_dummy_coordinates_must_be_reserved() -> None:
    with pytest.raises(PolicyError) as refused:
        run(SECRET, event=dataclasses.replace(EVENT, dimension=D + M - 1))
    assert refused.value.code == "E-RESERVATION"


# --- the gate and the daemon


@pytest.fixture
def hospital(tmp_path: Path) -> Hospital:
    return make_hospital(tmp_path)


def file_of(hospital: Hospital, model: str = "gan") -> CanaryFile:
    """The site's file of a model's canaries."""
    count = hospital.study.privacy.canaries
    return CanaryFile(hospital.root / "canaries", hospital.study.hash(), model, count)


def kept_steps(hospital: Hospital) -> int:
    """The steps that count of the GAN's canaries at the site."""
    tally = file_of(hospital).counted()
    return tally.steps if tally else 0


def changed_inside(tally: Tally, **changes: object) -> Tally:
    """The tally with other numbers of the canaries inside the model."""
    return dataclasses.replace(tally, inside=dataclasses.replace(tally.inside, **changes))


FAULTS: dict[str, Callable[[Tally], Tally]] = {
    "no noise inside": lambda t: changed_inside(t, squares=t.inside.squares * 0),
    "half the noise on dummies": lambda t: dataclasses.replace(
        t, own=dataclasses.replace(t.own, squares=t.own.squares / 4)
    ),
    "a bound above the claim": lambda t: dataclasses.replace(
        t, own=dataclasses.replace(t.own, scores=t.own.scores + 1000.0 * t.own.included)
    ),
    "a long canary": lambda t: dataclasses.replace(
        t, own=dataclasses.replace(t.own, drawn_scores=t.own.drawn_scores + 20.0 * t.own.drawn)
    ),
    "a quiet release": lambda t: dataclasses.replace(t, released=t.released * 0),
    "a loud release": lambda t: dataclasses.replace(t, released=t.released * 1000),
    "a step too few": lambda t: dataclasses.replace(t, steps=t.steps - 1),
    "another number of weights": lambda t: dataclasses.replace(t, sizes=t.sizes + 1),
    "a canary too few": lambda t: dataclasses.replace(
        t, own=type(t.own)(*(getattr(t.own, f.name)[:-1] for f in dataclasses.fields(t.own)))
    ),
}


def draw_with_one_left_out(noise: Noise, count: int, dimension: int) -> Secret:
    """A secret as the site draws it, again until a canary inside the model is left out."""
    secret = draw(noise, count, dimension)
    while secret.inside.all():
        secret = draw(noise, count, dimension)
    return secret


@pytest.mark.parametrize("case", FAULTS, ids=lambda case: case.replace(" ", "-"))
def test_the_gate_stays_closed_when_the_audit_fails(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    scripted(monkeypatch, hospital.study).tally = FAULTS[case]
    # of the few canaries inside so small a model, at least one is left out
    monkeypatch.setattr("client.state.canaries.draw", draw_with_one_left_out)
    site = hospital.site()
    with pytest.raises(KohortError) as refused:
        site.answer(hospital.ask("train"))
    assert refused.value.code in ("E-GATE-26", "E-CANARIES")
    assert not list((hospital.root / "outbox").glob("*"))
    assert not any(row.kind == "commit" for row in site.ledger().rows())
    assert kept_steps(hospital) == 0


def test_the_gate_stays_closed_when_all_rounds_together_fail(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The latest round alone is honest."""
    scripted(monkeypatch, hospital.study)
    hospital.site().answer(hospital.ask("train"))
    honest = CanaryFile.with_round

    def with_round(self: CanaryFile, number: int, latest: Tally) -> Tallies:
        tallies = honest(self, number, latest)
        return Tallies(latest, dataclasses.replace(tallies.total, released=latest.released * 0))

    monkeypatch.setattr(CanaryFile, "with_round", with_round)
    with pytest.raises(KohortError) as refused:
        hospital.site().answer(hospital.ask("train", round=1))
    assert refused.value.code == "E-GATE-26"


def test_rounds_add_up_under_one_draw_of_coins(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    children, seen = scripted(monkeypatch, hospital.study), []
    children.tally = lambda tally: (seen.append(tally), tally)[1]
    for number in range(2):
        hospital.site().answer(hospital.ask("train", round=number))
    total = file_of(hospital).counted()
    assert total is not None and total.steps == 4
    for kind in ("own", "inside"):
        first, second = (getattr(tally, kind) for tally in seen)
        assert np.array_equal(first.included, second.included)
        assert np.array_equal(getattr(total, kind).scores, first.scores + second.scores)
    hospital.site().answer(hospital.ask("train", model="glow"))
    glow = file_of(hospital, "glow").counted()
    assert glow is not None
    assert not np.array_equal(glow.own.included, total.own.included)  # 300 coins of their own


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
    assert kept_steps(hospital) == 2


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
    assert (kept_steps(hospital), children.runs) == (2, 1)


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
    tally = seen[0]
    places = file_of(hospital).secret(4).places
    secrets = [tally.own.included.tobytes(), places.tobytes(), tally.released.tobytes()]
    for heard in (tally.own, tally.inside):
        secrets += [value.tobytes() for value in (*heard.scores, *heard.squares)]
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
