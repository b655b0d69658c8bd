"""What a release's images are worth, measured on public data alone.

In: released images, and public reference images (in a rehearsal: the public photographs that played the patients).
Out: an `Evaluation`: statements with value, unit, evidence and status; what did not run reads "not evaluated".
Guaranteed: no number comes from a hospital's patients; the same inputs give the same numbers; a distance stands beside its
floor, the same distance between two halves of the reference with no patient in both. Not here: downstream utility of pairs
(server/evaluate/pair_utility.py), attacks and utility of labelled images (server/evaluate/rehearsal_report.py): what nobody measured reads "not evaluated".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from common.arrays import Floats, Images
from server.evaluate import distances
from server.evaluate.extractors import Extractor, Texture

if TYPE_CHECKING:
    from server.evaluate.canary_rehearsal import ModelAudit

NOT_EVALUATED = "not evaluated"
LEAST_IMAGES, LEAST_REFERENCES = 4, 8
DISTANCES = (
    "Fréchet distance",
    "kernel distance",
    "precision",
    "recall",
    "nearest reference ratio",
)
FLOOR = ", real against real"
DOWNSTREAM = "downstream accuracy on real images"
ATTACKS = ("membership inference", "linkage", "re-identification")


@dataclass(frozen=True)
class Finding:
    """One statement of a report; `status` is "shown" or "not evaluated", `interval` the 95 % interval where there is one."""

    name: str
    value: float | int | None
    unit: str
    evidence: str
    status: str = "shown"
    interval: tuple[float, float] | None = None


def evaluate(
    images: Images,
    labels: NDArray[np.int64],
    names: tuple[str, ...],
    reference: Images | None,
    *,
    patient_of: NDArray[np.int64] | None = None,
    extractor: Extractor | None = None,
    downstream: Sequence[Finding] = (),
    attacks: Sequence[Finding] = (),
) -> list[Finding]:
    """Return the findings on uint8 images [N, H, W, C] with label indices [N]; `reference` is uint8 [M, H, W, C] or None.

    `patient_of` [M] keeps the images of a person in one half of the floor. `downstream`, `attacks`: what was measured elsewhere;
    an attack of `ATTACKS` that starts none of their names reads "not evaluated".
    """
    findings = [
        Finding("images", len(images), "images", "counted in the release"),
        Finding(
            "exact duplicates",
            len(images) - len({x.tobytes() for x in images}),
            "images",
            "bytes compared",
        ),
        *(
            Finding(
                f"share of label {name}",
                round(float((labels == i).mean()), 4),
                "share",
                "counted in the release",
            )
            for i, name in enumerate(names)
        ),
    ]
    if reference is not None and len(reference) >= LEAST_REFERENCES and len(images) >= LEAST_IMAGES:
        least = min(len(images), len(reference) // 2)
        findings += compare(images, reference, extractor or _texture(least), patient_of)
    else:
        findings += [_missing(name, "no public reference images were given") for name in DISTANCES]
    findings += downstream or [_missing(DOWNSTREAM)]
    missing = [
        name for name in ATTACKS if not any(found.name.startswith(name) for found in attacks)
    ]
    return [*findings, *attacks, *(_missing(name) for name in missing)]


def _texture(images: int) -> Texture:
    """The most texture features whose covariance this many images can carry; all of them where no choice does."""
    return next((Texture(channels) for channels in (48, 24, 8) if images > 6 * channels), Texture())


def _missing(name: str, evidence: str = "did not run for this release") -> Finding:
    return Finding(name, None, "", evidence, NOT_EVALUATED)


def canary_findings(audits: Mapping[str, ModelAudit]) -> list[Finding]:
    """Return the lower bounds on epsilon of the canary audits by model (server/evaluate/canary_rehearsal.py): no patient took part in them."""
    if not audits:
        return [Finding("canary lower bound", None, "", "the plan has no canaries", NOT_EVALUATED)]
    return [
        Finding(
            f"canary lower bound, {name}",
            round(found.lower_bound, 2),
            f"epsilon at {found.confidence:.0%} confidence; PLD says at most {found.upper_bound:.2f}",
            f"{found.correct} of {found.guesses} guesses right in a rehearsal with {found.canaries} canaries",
        )
        for name, found in audits.items()
    ]


def compare(
    images: Images,
    reference: Images,
    extractor: Extractor,
    patient_of: NDArray[np.int64] | None = None,
) -> list[Finding]:
    """Return distances between released and reference images [N, H, W, C], each beside its real-against-real floor."""
    released, real = extractor.features(images), extractor.features(reference)
    if extractor.standardised:
        middle, scale = real.mean(axis=0), real.std(axis=0) + 1e-6
        released, real = (released - middle) / scale, (real - middle) / scale
    first, second = (real[rows] for rows in halves(len(real), patient_of))
    how = f"{extractor.name}, against public reference images"
    return [
        *_frechet(released, first, second, how),
        *_kernel(released, real, first, second, how),
        *_coverage(released, real, first, second, how),
        Finding(
            "nearest reference ratio",
            round(distances.nearest_ratio(released, real), 4),
            "ratio to the real-to-real median; 0 is a copy",
            how,
        ),
    ]


def halves(
    count: int, patient_of: NDArray[np.int64] | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the positions of two halves of a reference in a fixed random order; no patient is in both."""
    patients = np.arange(count) if patient_of is None else np.asarray(patient_of)
    names = np.random.default_rng(0).permutation(np.unique(patients))
    inside = np.isin(patients, names[: len(names) // 2])
    rng = np.random.default_rng(1)
    return rng.permutation(np.flatnonzero(inside)), rng.permutation(np.flatnonzero(~inside))


def _frechet(released: Floats, first: Floats, second: Floats, how: str) -> list[Finding]:
    """The Fréchet distance and its floor at one sample size, for it grows as the sample shrinks."""
    count, dimension = min(len(released), len(first), len(second)), released.shape[1]
    names = ("Fréchet distance", "Fréchet distance" + FLOOR)
    if count <= dimension:
        why = f"{how}: {count} images a side cannot carry a covariance of {dimension} features"
        return [_missing(name, why) for name in names]
    some = released[np.random.default_rng(2).permutation(len(released))[:count]]
    sets = (some, second[:count])
    evidence = f"{how}; {count} images a side"
    return [
        Finding(name, round(distances.frechet(x, first[:count]), 4), "squared distance", evidence)
        for name, x in zip(names, sets, strict=True)
    ]


def _kernel(
    released: Floats, real: Floats, first: Floats, second: Floats, how: str
) -> list[Finding]:
    """The kernel distance, which is unbiased at any size, and its floor."""
    if min(len(first), len(second)) < 2:
        return [
            _missing(name, f"{how}: one patient a half")
            for name in ("kernel distance", "kernel distance" + FLOOR)
        ]
    found = []
    for name, a, b in (
        ("kernel distance", released, real),
        ("kernel distance" + FLOOR, second, first),
    ):
        distance = distances.kernel(a, b)
        evidence = (
            f"{how}; deviation {distance.deviation:.2g} over subsets of {distance.subset_size}"
        )
        found.append(Finding(name, round(distance.value, 5), "squared MMD", evidence))
    return found


def _coverage(
    released: Floats, real: Floats, first: Floats, second: Floats, how: str
) -> list[Finding]:
    """Precision (are released images like real ones?) and recall (are all kinds of real ones there?)."""
    found = []
    for end, a, b in (("", released, real), (FLOOR, second, first)):
        for name, value in zip(
            ("precision", "recall"), distances.precision_recall(a, b), strict=True
        ):
            found.append(Finding(name + end, round(value, 4), "share", how))
    return found


def to_json(findings: list[Finding]) -> list[dict[str, Any]]:
    """Return the findings as plain data."""
    return [asdict(finding) for finding in findings]
