"""What a release's images are worth, measured on public data alone.

In: released images, and public reference images (in a rehearsal: the public photographs that played the patients).
Out: an `Evaluation`: statements with value, unit, evidence and status; what did not run reads "not evaluated".
Guaranteed: no number comes from a hospital's patients; the same inputs give the same numbers. Not covered yet: downstream
utility (train on synthetic, test on real) and attacks; they stand in the report as "not evaluated".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    from server.canaries import ModelAudit

Images = NDArray[np.uint8]
FEATURE_SEED, CHANNELS, SCALES = 20_230_310, 48, 3
NOT_EVALUATED = "not evaluated"


@dataclass(frozen=True)
class Finding:
    """One statement of a report; `status` is "shown" or "not evaluated"."""

    name: str
    value: float | int | None
    unit: str
    evidence: str
    status: str = "shown"


def evaluate(
    images: Images, labels: NDArray[np.int64], names: tuple[str, ...], reference: Images | None
) -> list[Finding]:
    """Return the findings on uint8 images [N, H, W, C] with label indices [N]; `reference` is uint8 [M, H, W, C] or None."""
    findings = [
        Finding("images", len(images), "images", "counted in the release"),
        Finding("exact duplicates", len(images) - len({x.tobytes() for x in images}), "images", "bytes compared"),
        *(
            Finding(f"share of label {name}", round(float((labels == i).mean()), 4), "share", "counted in the release")
            for i, name in enumerate(names)
        ),
    ]
    if reference is not None and len(reference) >= 8 and len(images) >= 4:
        findings += compare(features(images), features(reference))
    else:
        findings += [
            Finding(name, None, "", "no public reference images were given", NOT_EVALUATED)
            for name in ("kernel distance", "nearest reference ratio")
        ]
    for name in (
        "downstream accuracy on real images",
        "membership inference",
        "re-identification",
    ):
        findings.append(Finding(name, None, "", "did not run for this release", NOT_EVALUATED))
    return findings


def canary_findings(audits: Mapping[str, ModelAudit]) -> list[Finding]:
    """Return the lower bounds on epsilon of the canary audits by model (server/canaries.py): no patient took part in them."""
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


def features(images: Images) -> NDArray[np.float64]:
    """Return fixed-seed multi-scale texture features [N, D] of uint8 images [N, H, W, C].

    Random 5x5 convolutions at three scales, rectified; mean and standard deviation over the picture. They need no download
    and favour nobody's training set; they see colour and texture, not anatomy.
    """
    generator = torch.Generator().manual_seed(FEATURE_SEED)
    x = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 127.5 - 1  # [N, C, H, W]
    filters = torch.randn(CHANNELS, x.shape[1], 5, 5, generator=generator)
    filters = filters / filters.flatten(1).norm(dim=1)[:, None, None, None]
    parts = []
    with torch.no_grad():
        for _ in range(SCALES):
            y = torch.relu(torch.nn.functional.conv2d(x, filters))
            parts += [y.mean(dim=(2, 3)), y.std(dim=(2, 3))]
            x = torch.nn.functional.avg_pool2d(x, 2)
    return torch.cat(parts, dim=1).double().numpy()  # [N, 2 * CHANNELS * SCALES]


def kernel_distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Return the unbiased squared MMD of two standardised feature sets under the cubic kernel (Binkowski et al. 2018, KID)."""
    both = np.concatenate([a, b])
    middle, scale = both.mean(axis=0), both.std(axis=0) + 1e-6
    a, b = (a - middle) / scale, (b - middle) / scale
    d = a.shape[1]
    kaa, kbb, kab = ((x @ y.T / d + 1) ** 3 for x, y in ((a, a), (b, b), (a, b)))
    n, m = len(a), len(b)
    within = (kaa.sum() - np.trace(kaa)) / (n * (n - 1)) + (kbb.sum() - np.trace(kbb)) / (m * (m - 1))
    return float(within - 2 * kab.mean())


def compare(released: NDArray[np.float64], reference: NDArray[np.float64]) -> list[Finding]:
    """Return distances between released and reference features [N, D], each beside its real-against-real floor."""
    order = np.random.default_rng(0).permutation(len(reference))
    half = len(order) // 2
    floor = kernel_distance(reference[order[:half]], reference[order[half:]])
    nearest = _distances(released, reference).min(axis=1)
    among = _distances(reference, reference)
    np.fill_diagonal(among, np.inf)
    ratio = float(np.median(nearest) / np.median(among.min(axis=1)))
    how = "fixed-seed random convolutions against public reference images"
    return [
        Finding("kernel distance", round(kernel_distance(released, reference), 5), "squared MMD", how),
        Finding("kernel distance, real against real", round(floor, 5), "squared MMD", f"{how}: two halves"),
        Finding("nearest reference ratio", round(ratio, 4), "ratio to the real-to-real median; 0 is a copy", how),
    ]


def _distances(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Euclidean distances [N, M]."""
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    distances: NDArray[np.float64] = np.sqrt(np.maximum(squares, 0))
    return distances


def to_json(findings: list[Finding]) -> list[dict[str, Any]]:
    """Return the findings as plain data."""
    return [asdict(finding) for finding in findings]
