"""The averages of mode `anchors`: (epsilon, delta)-DP, and of at least k patients, at once.

In: codes of generator samples or a public basis, the plan's mechanism, a ledger's reservation, the
patients' whitened codes.
Out: noisy mean codes of the cells that may be published, each with its `Group`.
Guarantees:
  1. the reservation is this mechanism's and is taken before the first draw; repeatable noise is for
     tests alone
  2. a patient's code is cut to the radius R and put on the lattice toward zero, so its norm is at
     most R = 2^24 steps
  3. a patient is in one cell: the nearest anchor of the patient's own stratum, whoever the others
     are
  4. sums and counts are exact (int64); every declared cell gets its noise, empty or not, in
     declared order; a code of zero adds nothing and does not count
  5. published: true count k or more and noisy count k + tau or more (tau:
     common/privacy/anchors.py, with the proof)
  6. a code is noisy sum / noisy count, cut to R: a function of noisy numbers alone, as is all that
     is made from it
Cells, strata and mechanism come from the plan, its public basis and the generator. Of the arguments
only the roster and its codes are private, and of the roster only codes and strata enter.
Not covered: what a site does with the result by looking at its patients (its audit is for the site
alone); a person at two sites.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.state.group_store import Group, Stratum
from client.state.ledger import PracticeReservation, Reservation
from client.synthesize.align import render
from client.synthesize.group import Roster
from client.synthesize.partition import Cells, nearest
from client.synthesize.reference import GeneratorCodes, Reference, Whitening
from common.arrays import Floats, Integers
from common.errors import Bug, ConfigurationError, PolicyError
from common.models.basis import Basis
from common.models.draws import device_of
from common.models.stylegan import Generator
from common.privacy.anchors import NoisyAnchors
from common.privacy.noise import LATTICE, Noise, NoiseSource, SeededNoiseSource

NO_CELL = -1  # of a patient whose code is zero
CELLS_SEED = 20221  # of the centres that are normal draws, public constants


def make_cells(samples: GeneratorCodes, whitening: Whitening) -> Cells:
    """Return the samples' whitened codes as centres, float64 [M, components].

    Refuses anything but `GeneratorCodes`.
    """
    if not isinstance(samples, GeneratorCodes):
        raise Bug("cells_of takes GeneratorCodes; the cohort's codes must not shape the cells")
    return Cells(whitening(samples.codes))


def choose_space(
    known: Reference, basis: Basis | None, count: int, components: int
) -> tuple[Whitening, Cells]:
    """Return the whitening of codes, and `count` centres [count, components] in its coordinates.

    Of a public basis: there codes of public photographs have mean 0 and deviation 1, and the
    centres are normal draws that are the same everywhere. Without one: of generator samples.
    """
    if basis is None:
        centres = make_cells(known.samples, known.whitening).centres
        return known.whitening, Cells(centres[:count, :components])
    draws = np.random.default_rng(CELLS_SEED).standard_normal((count, components))
    return Whitening.of_basis(basis), Cells(draws)


@dataclass(frozen=True)
class NoisyMean:
    """A cell that may be published: its patients, and their noisy mean code float64 [components].

    The patients stay on the site.
    """

    group: Group
    code: Floats


def noisy_means(
    who: Roster,
    codes: NDArray[np.floating],
    cells: Cells,
    strata: Sequence[Stratum],
    mechanism: NoisyAnchors,
    reservation: Reservation | PracticeReservation,
    noise: Noise,
) -> list[NoisyMean]:
    """Return the published cells in declared order: stratum by stratum, anchor by anchor.

    `codes`: float [patients, components], whitened, in roster order. `strata`: every declared
    stratum. `cells.centres`: the anchors of one stratum, the same for each. Raises PolicyError
    (E-NOISE, E-RESERVATION, E-EXHAUSTED), and ConfigurationError for shapes that are not the
    mechanism's.
    """
    _check_constants(cells, strata, mechanism)
    _check_pair(mechanism, reservation, noise)

    # (2, 3, 4) put each patient in one cell; exact sums and counts
    cell_of, sums, counts = totals(who, codes, cells, strata, mechanism)

    # (1, 4) take the reservation, then draw noise for every declared cell
    reservation.take()
    sum_noise = noise.gaussian_lattice(sums.size, mechanism.sum_multiplier)
    noisy_sums = sums + sum_noise.reshape(sums.shape)
    count_noise = noise.gaussian_lattice(len(counts), mechanism.count_multiplier)
    noisy_counts = counts * LATTICE + count_noise

    # (5) publish where the true and the noisy count are large enough
    least = math.ceil(mechanism.threshold * LATTICE)
    shown = (counts >= mechanism.k) & (noisy_counts >= least)

    # (6) divide noisy sum by noisy count, and cut to R
    means = noisy_sums[shown] * mechanism.radius / noisy_counts[shown, None]
    codes_shown = shorten(means, mechanism.radius)
    published = []
    for cell, code in zip(np.flatnonzero(shown).tolist(), codes_shown, strict=True):
        names = tuple(who.pseudonyms[i] for i in np.flatnonzero(cell_of == cell))
        group = Group(names, strata[cell // len(cells.centres)], mechanism.k)
        published.append(NoisyMean(group, code))
    return published


def totals(
    who: Roster,
    codes: NDArray[np.floating],
    cells: Cells,
    strata: Sequence[Stratum],
    mechanism: NoisyAnchors,
) -> tuple[Integers, Integers, Integers]:
    """Return each patient's cell [patients], each cell's sum [cells, components], count [cells].

    A patient who adds nothing to the sum is in no cell.
    """
    # (2) cut to the radius, and put on the lattice
    integers = on_lattice(codes, mechanism, len(who.pseudonyms))

    # (3) find the nearest anchor of the patient's own stratum
    first = {stratum: place * len(cells.centres) for place, stratum in enumerate(strata)}
    if not set(who.strata) <= set(first):
        raise Bug("anchors: a patient of a stratum that the plan does not declare")
    near = nearest(integers.astype(np.float64) * (mechanism.radius / LATTICE), cells.centres)
    cell_of = np.array([first[stratum] for stratum in who.strata], np.int64) + near

    # (4) sum and count exactly; who adds nothing to the sum does not count
    sums = np.zeros((mechanism.cells, mechanism.components), np.int64)
    np.add.at(sums, cell_of, integers)
    adds = integers.any(axis=1)
    counts = np.bincount(cell_of[adds], minlength=mechanism.cells)
    return np.where(adds, cell_of, NO_CELL), sums, counts


def on_lattice(codes: NDArray[np.floating], mechanism: NoisyAnchors, patients: int) -> Integers:
    """Return int64 [patients, components] in units of R / 2^24, each row's norm at most 2^24.

    This is guarantee 2. What is not finite counts as 0. Raises ConfigurationError for another
    shape, Bug for a row beyond the radius.
    """
    points = np.asarray(codes, np.float64)
    if points.shape != (patients, mechanism.components):
        raise ConfigurationError(
            f"anchors: codes {points.shape}; expected {(patients, mechanism.components)}"
        )
    # finite numbers whose squares cannot overflow, inside the ball
    points = np.where(np.isfinite(points), np.clip(points, -1e100, 1e100), 0.0)
    points = shorten(points, mechanism.radius)
    # toward zero, so that rounding keeps them inside
    integers = np.trunc(points * (LATTICE / mechanism.radius)).astype(np.int64)
    if (np.square(integers).sum(axis=1) > LATTICE**2).any():
        raise Bug("anchors: a code lies outside the ball that the noise is made for")
    return integers


def shorten(codes: Floats, radius: float) -> Floats:
    """Return the codes [N, m]; those longer than the radius are cut to just below it."""
    norms = np.linalg.norm(codes, axis=1, keepdims=True)
    factors = radius * (1 - 1e-12) / np.maximum(norms, radius)
    shortened: Floats = np.where(norms > radius, codes * factors, codes)
    return shortened


def _check_constants(cells: Cells, strata: Sequence[Stratum], mechanism: NoisyAnchors) -> None:
    """Refuse anchors whose number or length is not the mechanism's."""
    expected = (mechanism.cells // max(1, len(strata)), mechanism.components)
    if len(set(strata)) * expected[0] != mechanism.cells or cells.centres.shape != expected:
        raise ConfigurationError(
            f"anchors: {cells.centres.shape} for {len(set(strata))} strata; expected {expected}",
            hint="synthesis.anchors.cells_per_stratum and synthesis.anchors.components: "
            "at most what the inversion's samples give",
        )


def _check_pair(
    mechanism: NoisyAnchors, reservation: Reservation | PracticeReservation, noise: Noise
) -> None:
    """Refuse noise and a reservation that do not belong together (guarantee 1)."""
    allowed = ((Reservation, NoiseSource), (PracticeReservation, SeededNoiseSource))
    if (type(reservation), type(noise)) not in allowed:
        raise PolicyError(
            f"anchors: {type(reservation).__name__} with {type(noise).__name__}: "
            "expected Reservation with NoiseSource",
            hint="tests that need repeatable noise pair SeededNoiseSource with PracticeReservation",
            code="E-NOISE",
        )
    if reservation.event != mechanism:
        raise PolicyError("anchors: the reservation is for another mechanism", code="E-RESERVATION")


def latents(codes: Sequence[Floats], whitening: Whitening, generator: Generator) -> Tensor:
    """Return W+ codes float32 [N, L, d_w], on the generator's device, of whitened codes.

    Each of these is [components]. It is post-processing. The whitening is undone, direction by
    direction. Outside its span, a code takes the mean of the generator samples.
    """
    flat = np.stack(codes)
    used = whitening.directions[:, : flat.shape[1]]
    undone = whitening.mean + flat @ (used / np.square(used).sum(axis=0)).T
    shape = (len(flat), generator.layer_count, generator.latent)
    return torch.from_numpy(undone).float().reshape(shape).to(device_of(generator))


def images(
    means: Sequence[NoisyMean],
    whitening: Whitening,
    generator: Generator,
    outputs: int,
    random: torch.Generator,
) -> list[NDArray[np.uint8]]:
    """Return `outputs` stacks of uint8 images [N, H, W, C].

    Each image has its own noise maps from `random`. Neither images nor features of patients enter.
    """
    codes = latents([mean.code for mean in means], whitening, generator)
    return [render(codes, generator, random) for _ in range(outputs)]
