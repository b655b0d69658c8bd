"""The audit of images that are about to leave: is one of them a copy of a patient's image?

In: released uint8 images [R, H, W, C], the site's real ones [N, H, W, C].
Out: an `AuditReport`: one code per released image, the only part that may leave.
Rules, in this order; the first that fails gives the image its code:
1. A-CONSTANT   the image is black or constant.
2. A-DUPLICATE  it is the same as another released image; both fail.
3. A-COPY       it is pixel for pixel a real image.
4. A-NEAR       in one of three spaces (spaces.py) its nearest real image is nearer than
                `NEAR_SHARE` of the floor; or nearer than the floor and than `LEAD` of the distance
                to the nearest image of any other patient.
A-PASS otherwise. Floor: the median distance of a real image to the nearest one of another patient.
Guarantees: nothing is random; a code holds no distance, time or path.
Not covered: privacy. The rules find copies (re-encoded, moved by a pixel, recoloured); an average
is near to everything. The filters are fixed, so the rules guard against faults, not malice.
Membership over the whole batch: membership.py.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from client.egress.spaces import SPACES, check_images, distances, unit
from common.arrays import Flags, Floats, Images, Integers

Code = Literal["A-PASS", "A-CONSTANT", "A-DUPLICATE", "A-COPY", "A-NEAR"]

BLANK_DEVIATION = 0.02  # of the grey values in [0, 1]
DUPLICATE_RMSE = 0.004  # one grey level of 255
NEAR_SHARE = 0.4
LEAD = 0.65


@dataclass(frozen=True)
class Nearest:
    """The real image that is nearest to one released image. It stays on site.

    For each space: `floor_ratios`, its distance as a share of the floor; `leads`, its distance as a
    share of that to the next patient.
    """

    row: int
    floor_ratios: tuple[float, ...]
    leads: tuple[float, ...]

    @property
    def near(self) -> bool:
        """Whether rule 4 holds in some space."""
        for ratio, lead in zip(self.floor_ratios, self.leads, strict=True):
            if ratio < NEAR_SHARE or (ratio < 1 and lead < LEAD):
                return True
        return False


@dataclass(frozen=True)
class AuditReport:
    """`codes`, one per released image, may leave; `nearest` stays on site."""

    codes: tuple[Code, ...]
    nearest: tuple[Nearest, ...]

    @property
    def failures(self) -> tuple[Code, ...]:
        """The codes other than A-PASS, in order; empty when the whole batch passed."""
        return tuple(code for code in self.codes if code != "A-PASS")


def audit(
    released: Images, real: Images, patient_of: NDArray[np.integer] | None = None
) -> AuditReport:
    """Return the report of `released` against all of the site's `real` images.

    `patient_of` int [N] says whose each real image is; None: each is another patient's. Raises
    ConfigurationError unless both are uint8 [N, H, W, C] of one size, with real images of two or
    more patients.
    """
    owner = np.arange(len(real)) if patient_of is None else np.asarray(patient_of)
    check_images(released, real, owner)
    ours = unit(released)
    nearest = _find_nearest(ours, unit(real), owner)
    # rules 1 to 4, in their order
    checks: tuple[tuple[Code, Flags], ...] = (
        ("A-CONSTANT", blank(released)),
        ("A-DUPLICATE", _duplicates(released, ours)),
        ("A-COPY", _copies(released, real)),
        ("A-NEAR", np.array([found.near for found in nearest], bool)),
    )
    codes = tuple(_first_failure(checks, row) for row in range(len(released)))
    return AuditReport(codes, nearest)


def blank(images: Images) -> Flags:
    """Return bool [N]: True where an image is black or constant (rule 1)."""
    grey = images.mean(axis=-1, dtype=np.float64).reshape(len(images), -1) / 255
    return np.asarray(grey.std(axis=1) < BLANK_DEVIATION)


def _first_failure(checks: tuple[tuple[Code, Flags], ...], row: int) -> Code:
    """The code of the first check that image `row` fails."""
    for code, hit in checks:
        if hit[row]:
            return code
    return "A-PASS"


def _duplicates(released: Images, images: Floats) -> Flags:
    """True where another released image is the same within a grey level (rule 2)."""
    rows = images.reshape(len(images), -1)
    among = distances(rows, rows)
    np.fill_diagonal(among, np.inf)
    times = Counter(image.tobytes() for image in released)
    exact = np.array([times[image.tobytes()] > 1 for image in released], np.bool_)
    return np.asarray(exact | (among.min(axis=1) < DUPLICATE_RMSE))


def _copies(released: Images, real: Images) -> Flags:
    """True where a released image equals a real one in every pixel (rule 3)."""
    known = {image.tobytes() for image in real}
    return np.array([image.tobytes() in known for image in released])


def _find_nearest(ours: Floats, theirs: Floats, owner: NDArray[np.integer]) -> tuple[Nearest, ...]:
    """The nearest real image of each released one, in all spaces (rule 4).

    Its row is that of the space with the smallest lead.
    """
    # each array: [spaces, images]
    compared = [_compare(view(ours), view(theirs), owner) for view in SPACES.values()]
    rows, ratios, leads = (np.stack(column) for column in zip(*compared, strict=True))
    nearest: list[Nearest] = []
    for i in range(len(ours)):
        row = int(rows[leads[:, i].argmin(), i])
        nearest.append(Nearest(row, tuple(ratios[:, i].tolist()), tuple(leads[:, i].tolist())))
    return tuple(nearest)


def _compare(
    ours: Floats, theirs: Floats, owner: NDArray[np.integer]
) -> tuple[Integers, Floats, Floats]:
    """One space: row of the nearest real image, its share of the floor, its lead; each [R]."""
    # the floor: how near real images of different patients are to each other
    same_owner = owner[:, None] == owner[None, :]
    among = np.where(same_owner, np.inf, distances(theirs, theirs))
    floor = max(float(np.median(among.min(axis=1))), DUPLICATE_RMSE)
    # the nearest real image, and the nearest one of any other patient
    found = distances(ours, theirs)
    nearest = found.argmin(axis=1)
    least = found.min(axis=1)
    same_patient = owner[nearest][:, None] == owner[None, :]
    others = np.where(same_patient, np.inf, found).min(axis=1)
    return nearest, least / floor, least / np.maximum(others, DUPLICATE_RMSE)
