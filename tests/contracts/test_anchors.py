"""Mode `anchors`, as theorems: one patient moves one cell; noise and threshold hide it."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Iterator
from statistics import NormalDist
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta

from client.state.group_store import Stratum
from client.state.ledger import PracticeReservation, Reservation
from client.synthesize import anchors as a
from client.synthesize.group import Roster, roster
from client.synthesize.partition import Cells, nearest
from client.synthesize.reference import GeneratorCodes, Whitening
from common.errors import Bug, ConfigurationError, PolicyError
from common.models.basis import fit
from common.privacy.accounting import epsilon_pld, epsilon_rdp, sampler_delta
from common.privacy.anchors import NoisyAnchors
from common.privacy.claims import claims_of
from common.privacy.events import anchors_event
from common.privacy.mechanisms import SubsampledGaussian, mechanism_from
from common.privacy.noise import LATTICE, NoiseSource, SeededNoiseSource
from tests.studies import small_study

KEY = b"k" * 32
REPETITIONS, CONFIDENCE = 10_000, 0.9995
STRATA = (Stratum(0), Stratum(1))
MECHANISM = NoisyAnchors(noise_multiplier=2.0, components=4, cells=6, k=3, threshold_delta=1e-3)
ANCHORS = Cells(np.random.default_rng(5).normal(size=(3, 4)))


def names(count: int) -> list[str]:
    return [f"{i:064x}" for i in range(count)]


def people(codes: np.ndarray, labels: np.ndarray) -> tuple[Roster, np.ndarray]:
    """A roster and the codes in its order."""
    who = roster(names(len(codes)), np.arange(len(codes)), labels, key=KEY)
    return who, codes[[rows[0] for rows in who.images]]


def released(
    who: Roster,
    codes: np.ndarray,
    noise: SeededNoiseSource,
    mechanism: NoisyAnchors = MECHANISM,
    cells: Cells = ANCHORS,
    strata: tuple[Stratum, ...] = STRATA,
) -> list[a.NoisyMean]:
    return a.noisy_means(
        who, codes, cells, strata, mechanism, PracticeReservation(mechanism), noise
    )


# --- one patient ----------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(2, 30),
    scale=st.sampled_from([0.1, 1.0, 50.0, 1e200, math.inf]),
)
def test_one_patient_moves_one_cell_by_at_most_the_radius_and_one(
    seed: int, count: int, scale: float
) -> None:
    rng = np.random.default_rng(seed)
    with np.errstate(all="ignore"):
        codes, labels = rng.normal(size=(count, 4)) * scale, rng.integers(0, 2, count)
    who, ordered = people(codes, labels)
    less, fewer = who.without({who.pseudonyms[0]}), ordered[1:]
    _, sums, counts = a.totals(who, ordered, ANCHORS, STRATA, MECHANISM)
    _, other_sums, other_counts = a.totals(less, fewer, ANCHORS, STRATA, MECHANISM)
    moved = np.flatnonzero((sums != other_sums).any(axis=1) | (counts != other_counts))
    # a code of zero, as of numbers that are not finite, moves nothing
    adds = int(a.on_lattice(ordered[:1], MECHANISM, 1).any())
    assert len(moved) == adds
    assert np.square(sums - other_sums).sum() <= LATTICE**2
    assert (counts - other_counts).sum() == adds


def test_a_patient_who_adds_nothing_to_a_cell_does_not_count_in_it() -> None:
    """Zeros and numbers that are not finite would otherwise fill a cell up to k."""
    codes = np.tile([0.1, 0.0, 0.0, 0.0], (9, 1))
    codes[3:6] = 0.0
    codes[6] = np.nan
    who, ordered = people(codes, np.zeros(9, np.int64))
    cell_of, sums, counts = a.totals(who, ordered, ANCHORS, STRATA, MECHANISM)
    assert counts.sum() == 5
    assert (cell_of == a.NO_CELL).sum() == 4
    _, alone, same = a.totals(
        who.without({who.pseudonyms[i] for i in np.flatnonzero(cell_of == a.NO_CELL)}),
        ordered[cell_of != a.NO_CELL],
        ANCHORS,
        STRATA,
        MECHANISM,
    )
    assert np.array_equal(sums, alone)
    assert np.array_equal(counts, same)


def test_the_longest_code_uses_the_radius_to_the_last_lattice_steps() -> None:
    integers = a.on_lattice(
        np.array([[1e9, 0, 0, 0], [0.1, 0.2, -0.3, 0.4], [np.nan, 1, 1, 1]]), MECHANISM, 3
    )
    assert LATTICE - 2 <= integers[0, 0] <= LATTICE
    assert np.abs(integers[1] * (MECHANISM.radius / LATTICE) - [0.1, 0.2, -0.3, 0.4]).max() < 1e-6
    assert (
        integers[2].tolist() == a.on_lattice(np.array([[0.0, 1, 1, 1]]), MECHANISM, 1)[0].tolist()
    )


def test_a_code_beyond_the_radius_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(a, "shorten", lambda codes, radius: codes)
    with pytest.raises(Bug, match="outside the ball"):
        a.on_lattice(np.full((1, 4), 9.0), MECHANISM, 1)


# --- the mechanism --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sigma", "sums", "counts", "tau"), [(1.994, 2.229, 4.46, 19.0), (0.6, 0.671, 1.34, 5.7)]
)
def test_the_noise_is_that_of_the_table(
    sigma: float, sums: float, counts: float, tau: float
) -> None:
    m = NoisyAnchors(sigma, 32, 10, 20, 1e-5)
    assert m.sum_multiplier == pytest.approx(sums, abs=6e-4)
    assert m.count_multiplier == pytest.approx(counts, abs=6e-3)
    assert m.threshold - m.k == pytest.approx(tau, abs=0.05)
    assert 1 / m.sum_multiplier**2 + 1 / m.count_multiplier**2 == pytest.approx(1 / sigma**2)


def test_sums_and_counts_get_the_noise_that_they_say() -> None:
    """Empty cells show the noise alone; a release's arithmetic is that of its draws."""
    drawn: list[tuple[int, float]] = []

    class Spy:
        private = False

        def gaussian_lattice(self, n: int, sigma: float) -> np.ndarray:
            drawn.append((n, sigma))
            return np.zeros(n, np.int64)

    who, codes = people(np.tile([0.5, 0, 0, 0], (40, 1)), np.zeros(40, int))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(a, "_check_pair", lambda *_: None)
        (mean,) = released(who, codes, Spy())  # type: ignore[arg-type]
    assert drawn == [(24, MECHANISM.sum_multiplier), (6, MECHANISM.count_multiplier)]
    assert mean.code == pytest.approx([0.5, 0, 0, 0], abs=1e-6)
    assert len(mean.group.members) == 40  # no upper bound


@pytest.mark.parametrize("loud", [10, -10])
def test_a_mean_is_divided_by_the_noisy_count_and_tells_nothing_of_the_true_one(loud: int) -> None:
    """40 patients whose count is heard as 50, or as 30."""

    class Off:
        private = False

        def gaussian_lattice(self, n: int, sigma: float) -> np.ndarray:
            of_counts = sigma == MECHANISM.count_multiplier
            return np.full(n, of_counts * loud * LATTICE, np.int64)

    who, codes = people(np.tile([0.5, 0, 0, 0], (40, 1)), np.zeros(40, int))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(a, "_check_pair", lambda *_: None)
        (mean,) = released(who, codes, Off())  # type: ignore[arg-type]
    assert mean.code == pytest.approx([0.5 * 40 / (40 + loud), 0, 0, 0], abs=1e-6)


def test_the_event_is_known_and_composes_with_the_training() -> None:
    m, training = NoisyAnchors(1.994, 32, 40, 20, 1e-6), SubsampledGaussian(0.16, 4.0, 20)
    assert mechanism_from(m.event()) == m
    trained, alone, both = (
        epsilon_pld(events, 1e-5) for events in ([training], [m], [training, m])
    )
    assert 1.99 < alone < 2.03  # 2 at delta 1e-5; the threshold's share is taken off first
    assert max(alone, trained) < both < alone + trained
    assert epsilon_rdp([training, m], 1e-5) > both
    assert epsilon_rdp([m, m], 1e-5) > 1.3 * epsilon_rdp([m], 1e-5)
    assert sampler_delta([m], 2.0) > 0


def test_the_thresholds_delta_is_spent() -> None:
    gaussian = NoisyAnchors(2.0, 4, 6, 3, 1e-300)
    assert epsilon_pld([NoisyAnchors(2.0, 4, 6, 3, 5e-6)], 1e-5) == pytest.approx(
        epsilon_pld([gaussian], 5e-6)
    )
    for accountant in (epsilon_pld, epsilon_rdp):
        with pytest.raises(PolicyError) as refused:
            accountant([NoisyAnchors(2.0, 4, 6, 3, 5e-6)] * 2, 1e-5)
        assert refused.value.code == "E-CAP"


@pytest.mark.parametrize(
    "change",
    [
        {"noise_multiplier": 0.0},
        {"components": 0},
        {"cells": 0},
        {"k": 1.5},
        {"threshold_delta": 0.5},
        {"threshold_delta": 0.0},
        {"noise_multiplier": math.nan},
    ],
    ids=str,
)
def test_constants_out_of_range_are_refused(change: dict[str, Any]) -> None:
    fields = {
        "noise_multiplier": 1.0,
        "components": 4,
        "cells": 6,
        "k": 3,
        "threshold_delta": 1e-6,
        **change,
    }
    with pytest.raises(ConfigurationError):
        NoisyAnchors(**fields)


# --- nothing but public constants, patients and noise ---------------------------------------------


def test_no_argument_but_the_roster_and_its_codes_is_made_from_patients() -> None:
    assert set(inspect.signature(a.noisy_means).parameters) == {
        "who",
        "codes",
        "cells",
        "strata",
        "mechanism",
        "reservation",
        "noise",
    }
    assert set(inspect.signature(anchors_event).parameters) == {"study"}
    assert set(inspect.signature(a.make_cells).parameters) == {"samples", "whitening"}
    assert set(inspect.signature(a.images).parameters) == {
        "means",
        "whitening",
        "generator",
        "outputs",
        "random",
    }


def test_no_statistics_of_a_group_have_a_place_here() -> None:
    forbidden = {
        "GroupStatistics",
        "PatientStatistics",
        "measure_patients",
        "gather",
        "align",
        "window_grams",
    }
    assert not forbidden & set(vars(a))


def test_cells_are_never_made_from_the_cohort() -> None:
    whitening = Whitening(np.zeros(4), np.eye(4))
    with pytest.raises(Bug, match="GeneratorCodes"):
        a.make_cells(np.zeros((5, 4)), whitening)  # type: ignore[arg-type]
    assert a.make_cells(GeneratorCodes(np.eye(4)), whitening).centres.tolist() == np.eye(4).tolist()


def test_with_a_public_basis_neither_generator_nor_cohort_makes_the_space() -> None:
    rng = np.random.default_rng(0)
    public = rng.normal(3.0, [4.0, 2.0, 1.0, 0.5, 0.1], (400, 5))
    basis = fit(public, 3)
    known: Any = SimpleNamespace()  # not one number of the generator is asked for
    whitening, cells = a.choose_space(known, basis, 6, 3)
    white = whitening(public)
    np.testing.assert_allclose(white.mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(white.std(0), 1, atol=0.01)
    again = a.choose_space(known, fit(public[:300], 3), 6, 3)[1]
    assert cells.centres.shape == (6, 3)
    assert np.array_equal(cells.centres, again.centres)
    assert len(np.unique(nearest(white, cells.centres))) == 6


def test_a_code_of_a_public_basis_is_decoded_in_its_directions() -> None:
    rng = np.random.default_rng(0)
    public = rng.normal(3.0, 1.0, (400, 8))
    whitening = Whitening.of_basis(fit(public, 8))
    generator: Any = torch.nn.Linear(1, 1)
    generator.layer_count, generator.latent = 2, 4
    rows = rng.normal(size=(5, 8))
    codes = a.latents(list(whitening(rows)), whitening, generator)
    np.testing.assert_allclose(codes.reshape(5, 8), rows, atol=1e-5)
    # what no coordinate holds takes the mean of the public codes
    alone = a.latents([np.zeros(2)], whitening, generator)
    np.testing.assert_allclose(alone.flatten(), public.mean(0), atol=1e-5)


def test_a_plan_without_a_basis_keeps_its_bytes() -> None:
    study = small_study(synthesis=anchors_synthesis())
    assert '"basis"' not in study.model_dump_json()
    basis = {"file": "codes.safetensors", "sha256": "0" * 64}
    with_one = small_study(synthesis=anchors_synthesis(basis=basis))
    assert '"basis"' in with_one.model_dump_json()
    assert with_one.hash() != study.hash()
    # neither noise nor price depends on it
    assert anchors_event(with_one) == anchors_event(study)


def test_a_claim_takes_a_basis_of_codes_as_public() -> None:
    basis = {"file": "codes.safetensors", "sha256": "0" * 64}
    plain, with_one = (
        small_study(synthesis=anchors_synthesis(**changes)) for changes in ({}, {"basis": basis})
    )
    for study, told in ((plain, False), (with_one, True)):
        given = [words for claim in claims_of(study) for words in claim.given]
        assert any("The basis of the codes is taken as public" in one for one in given) == told


def test_the_plan_alone_says_how_many_cells_there_are() -> None:
    study = small_study(synthesis=anchors_synthesis(), privacy__planned_patients=900)
    assert study.cells_per_stratum == 900 // (3 * 5 * 3 * 2)
    event = anchors_event(study)
    assert event is not None and event.cells == 10 * 3 * 3
    declared = small_study(synthesis=anchors_synthesis(cells_per_stratum=4))
    assert declared.cells_per_stratum == 4
    assert anchors_event(small_study()) is None


def anchors_synthesis(k: int = 5, **changes: Any) -> dict[str, Any]:
    plan = {"noise_multiplier": 0.8, "threshold_delta": 1e-6, "components": 8, **changes}
    return {
        "k": k,
        "grouping": "anchors",
        "anchors": plan,
        "inversion_steps": 0,
        "alignment_steps": 0,
        "max_images_per_site": 40,
        "outputs_per_group": 2,
    }


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"synthesis__grouping": "anchors"}, "expected with grouping anchors"),
        (
            {"synthesis": {**anchors_synthesis(), "grouping": "similar"}},
            "expected with grouping anchors",
        ),
        (
            {
                "synthesis": {
                    **anchors_synthesis(),
                    "privatize": {"share": 1, "radius": 0.8, "scale": 0.5},
                }
            },
            "not with",
        ),
        ({"synthesis": anchors_synthesis(threshold_delta=6e-6)}, "half of privacy.delta"),
        ({"synthesis": anchors_synthesis(cells_per_stratum=193)}, "cells_per_stratum"),
    ],
)
def test_a_plan_that_does_not_fit_anchors_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        small_study(**changes)


# --- reservation and noise ------------------------------------------------------------------------


def test_noise_that_repeats_itself_never_meets_a_ledgers_reservation() -> None:
    who, codes = people(np.zeros((5, 4)), np.zeros(5, int))
    stuck = type("Stuck", (NoiseSource,), {"uniform_u64": lambda self, n: np.zeros(n, np.uint64)})
    pairs: list[tuple[Any, Any]] = [
        (Reservation(1, 1, MECHANISM), stuck()),
        (Reservation(1, 1, MECHANISM), SeededNoiseSource(1)),
        (PracticeReservation(MECHANISM), NoiseSource()),
    ]
    for reservation, noise in pairs:
        with pytest.raises(PolicyError) as refused:
            a.noisy_means(who, codes, ANCHORS, STRATA, MECHANISM, reservation, noise)
        assert refused.value.code == "E-NOISE"


def test_a_reservation_is_for_one_release_of_this_mechanism() -> None:
    who, codes = people(np.zeros((5, 4)), np.zeros(5, int))
    reservation = Reservation(1, 1, MECHANISM)
    a.noisy_means(who, codes, ANCHORS, STRATA, MECHANISM, reservation, NoiseSource())
    with pytest.raises(PolicyError) as spent:
        a.noisy_means(who, codes, ANCHORS, STRATA, MECHANISM, reservation, NoiseSource())
    louder = Reservation(1, 1, NoisyAnchors(9.0, 4, 6, 3, 1e-3))
    with pytest.raises(PolicyError) as other:
        a.noisy_means(who, codes, ANCHORS, STRATA, MECHANISM, louder, NoiseSource())
    assert (spent.value.code, other.value.code) == ("E-EXHAUSTED", "E-RESERVATION")


def test_the_reservation_is_taken_before_the_first_draw() -> None:
    who, codes = people(np.zeros((5, 4)), np.zeros(5, int))
    reservation = PracticeReservation(MECHANISM)

    def draw(self: SeededNoiseSource, n: int, sigma: float) -> np.ndarray:
        assert reservation.taken == 1
        raise EOFError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SeededNoiseSource, "gaussian_lattice", draw)
        with pytest.raises(EOFError):
            a.noisy_means(who, codes, ANCHORS, STRATA, MECHANISM, reservation, SeededNoiseSource(1))


@pytest.mark.parametrize("centres", [np.zeros((2, 4)), np.zeros((3, 5)), np.zeros((6, 4))])
def test_other_cells_than_the_reserved_ones_are_refused(centres: np.ndarray) -> None:
    who, codes = people(np.zeros((5, 4)), np.zeros(5, int))
    with pytest.raises(ConfigurationError, match="expected"):
        released(who, codes, SeededNoiseSource(1), cells=Cells(centres))


# --- the leave-one-out game -----------------------------------------------------------------------

GAME = NoisyAnchors(noise_multiplier=2.0, components=4, cells=1, k=3, threshold_delta=1e-3)
GAME_DELTA, FALSE_ALARMS = 0.02, 0.05
OTHERS = 40


def halved(patch: pytest.MonkeyPatch) -> None:
    """Noise at half its strength."""
    honest = SeededNoiseSource.gaussian_lattice
    patch.setattr(
        SeededNoiseSource, "gaussian_lattice", lambda self, n, sigma: honest(self, n, sigma / 2)
    )


def statistics_of_releases(with_target: bool, seed: int) -> Iterator[float]:
    """What the attacker reads from each release: the target's direction times the others' number.

    The attacker knows everybody else's code, which has nothing in that direction, and how many
    they are.
    """
    codes = np.random.default_rng(0).normal(size=(OTHERS + 1, 4)) * [0, 0.5, 0.5, 0.5]
    codes[-1] = [99.0, 0, 0, 0]
    who, ordered = people(codes, np.zeros(OTHERS + 1, int))
    if not with_target:
        place = who.pseudonyms.index(names(OTHERS + 1)[-1])
        who, ordered = who.without({who.pseudonyms[place]}), np.delete(ordered, place, axis=0)
    noise, cells = SeededNoiseSource(seed), Cells(np.zeros((1, 4)))
    same = a.totals(
        who, ordered, cells, (Stratum(0),), GAME
    )  # before the noise every release is the same
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(a, "totals", lambda *_: same)
        for _ in range(REPETITIONS):
            means = released(who, ordered, noise, GAME, cells, (Stratum(0),))
            yield means[0].code[0] * OTHERS / GAME.radius if means else -math.inf


def lower_bound_of_epsilon(scale: float = 1.0) -> float:
    """A lower bound on epsilon, with confidence: Clopper-Pearson on both error rates.

    The threshold on the statistic is fixed beforehand: it gives `FALSE_ALARMS` at the noise of the
    releases.
    """
    limit = NormalDist(0, GAME.sum_multiplier * scale).inv_cdf(1 - FALSE_ALARMS)
    alarms = sum(value > limit for value in statistics_of_releases(False, 1))
    hits = sum(value > limit for value in statistics_of_releases(True, 2))
    false_rate = float(beta.ppf(CONFIDENCE, alarms + 1, REPETITIONS - alarms))
    hit_rate = float(beta.ppf(1 - CONFIDENCE, hits, REPETITIONS - hits + 1))
    return math.log(max(hit_rate - GAME_DELTA, 1e-12) / false_rate)


def test_leaving_one_patient_out_finds_no_violation_in_ten_thousand_releases() -> None:
    claimed = epsilon_pld([GAME], GAME_DELTA)
    found = lower_bound_of_epsilon()
    assert 0.2 < found < claimed  # the game is no empty one: it does see the patient


def test_leaving_one_patient_out_finds_noise_at_half_its_strength(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    halved(monkeypatch)
    assert lower_bound_of_epsilon(0.5) > epsilon_pld([GAME], GAME_DELTA) + 0.2


EDGE = NoisyAnchors(noise_multiplier=2.0, components=2, cells=1, k=5, threshold_delta=0.02)


def shown(count: int, repetitions: int) -> int:
    """In how many releases a cell of so many patients is published."""
    who, codes = people(np.full((count, 2), 0.01), np.zeros(count, int))
    noise, cells = SeededNoiseSource(3), Cells(np.zeros((1, 2)))
    return sum(
        bool(released(who, codes, noise, EDGE, cells, (Stratum(0),))) for _ in range(repetitions)
    )


def test_a_cell_below_k_is_never_published_and_one_of_k_with_probability_delta_at_most() -> None:
    assert shown(4, 1000) == 0
    found = shown(5, 2000)
    assert found > 0
    assert beta.ppf(1 - CONFIDENCE, found, 2000 - found + 1) < EDGE.threshold_delta


def test_a_published_code_is_never_longer_than_the_radius() -> None:
    who, codes = people(np.tile([99.0, 0, 0, 0], (30, 1)), np.zeros(30, int))
    noise = SeededNoiseSource(7)
    lengths = [np.linalg.norm(mean.code) for _ in range(50) for mean in released(who, codes, noise)]
    assert lengths and max(lengths) <= MECHANISM.radius


def test_a_release_says_what_its_epsilon_is_of() -> None:
    said = MECHANISM.describe()
    assert said["unit"] == "linked component of patient ids at one site"
    assert said["adjacency"] == "add or remove one patient"
    assert json.loads(MECHANISM.event())["mechanism"] == "noisy_anchors"
