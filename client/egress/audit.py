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
A-PASS otherwise. Floor: the median distance of a real image to the nearest one of another patient,
over `FLOOR_ROWS` evenly spaced ones of a larger cohort.
Guarantees: nothing is random; a code holds no distance, time or path. Distances are computed by
blocks in float32; where their rounding could change a code, they are computed again in float64.
Not covered: privacy. The rules find copies (re-encoded, moved by a pixel, recoloured); an average
is near to everything. The filters are fixed, so the rules guard against faults, not malice.
Membership over the whole batch: membership.py.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from client.egress.nearest import Chain, Found, find_nearest
from client.egress.spaces import check_images
from client.ingest.cohort import CHUNK_ROWS, release_pages
from common.arrays import Flags, Floats, Images

Code = Literal["A-PASS", "A-CONSTANT", "A-DUPLICATE", "A-COPY", "A-NEAR"]

BLANK_DEVIATION = 0.02  # of the grey values in [0, 1]
DUPLICATE_RMSE = 0.004  # one grey level of 255
NEAR_SHARE = 0.4
LEAD = 0.65
FLOOR_ROWS = (
    1024  # evenly spaced real images whose neighbours give the floor; all, if they are fewer
)


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
    nearest = _find_nearest(released, real, owner)
    # rules 1 to 4, in their order
    checks: tuple[tuple[Code, Flags], ...] = (
        ("A-CONSTANT", blank(released)),
        ("A-DUPLICATE", _duplicates(released)),
        ("A-COPY", _copies(released, real)),
        ("A-NEAR", np.array([found.near for found in nearest], bool)),
    )
    codes = tuple(_first_failure(checks, row) for row in range(len(released)))
    return AuditReport(codes, nearest)


def blank(images: Images) -> Flags:
    """Return bool [N]: True where an image is black or constant (rule 1)."""
    deviations: list[float] = []
    for image in images:
        grey = image.mean(axis=-1, dtype=np.float64).ravel() / 255
        deviations.append(float(grey.std()))
    return np.array(deviations) < BLANK_DEVIATION


def _first_failure(checks: tuple[tuple[Code, Flags], ...], row: int) -> Code:
    """The code of the first check that image `row` fails."""
    for code, hit in checks:
        if hit[row]:
            return code
    return "A-PASS"


def _duplicates(released: Images) -> Flags:
    """True where another released image is the same within a grey level (rule 2)."""
    digests = [hashlib.sha256(np.ascontiguousarray(image).data).digest() for image in released]
    times = Counter(digests)
    exact = np.array([times[digest] > 1 for digest in digests], np.bool_)
    if len(released) == 1:
        return exact
    each = np.arange(len(released))
    found = find_nearest(released, released, each, own=each, spaces=("pixels",))["pixels"]
    # where rounding could decide, in float64
    limit = max(DUPLICATE_RMSE, 0) ** 2
    unsure = np.abs(found.least - limit) <= found.error
    if unsure.any():
        asking = released[unsure]
        exactly = find_nearest(
            asking, released, each, own=each[unsure], spaces=("pixels",), dtype=np.float64
        )
        found = found.take(unsure, exactly["pixels"])
    return np.asarray(exact | (np.sqrt(found.least) < DUPLICATE_RMSE))


def _copies(released: Images, real: Images) -> Flags:
    """True where a released image equals a real one in every pixel (rule 3)."""
    # one line of pixels says who may be equal
    line = released.shape[1] // 2
    waiting: dict[bytes, list[int]] = {}
    for row, image in enumerate(released):
        waiting.setdefault(image[line].tobytes(), []).append(row)
    copies = np.zeros(len(released), np.bool_)
    for start in range(0, len(real), CHUNK_ROWS):
        for image in real[start : start + CHUNK_ROWS]:
            for row in waiting.get(image[line].tobytes(), ()):
                copies[row] |= np.array_equal(image, released[row])
        release_pages(real)
    return copies


def _find_nearest(
    released: Images, real: Images, owner: NDArray[np.integer]
) -> tuple[Nearest, ...]:
    """The nearest real image of each released one, in all spaces (rule 4).

    In float32 first; where rounding could decide the rule, again in float64. The row is that of the
    space with the smallest lead.
    """
    compared = _compare(released, real, owner, np.float32)
    easier = _to_nearest(compared, -1)
    harder = _to_nearest(compared, +1)
    unsure = np.array([one.near != two.near for one, two in zip(easier, harder, strict=True)])
    nearest = _to_nearest(compared, 0)
    if unsure.any():
        exactly = iter(_to_nearest(_compare(released[unsure], real, owner, np.float64), 0))
        nearest = tuple(
            next(exactly) if doubtful else found
            for doubtful, found in zip(unsure.tolist(), nearest, strict=True)
        )
    return nearest


def _compare(
    released: Images, real: Images, owner: NDArray[np.integer], dtype: type[np.floating]
) -> list[tuple[Found, float]]:
    """What is nearest in each space, and the space's floor."""
    # the floor: how near real images of different patients are to each other
    count = min(len(real), FLOOR_ROWS)
    rows = np.arange(count) * len(real) // count
    asking = Chain(released, real, rows)
    own = np.concatenate([np.full(len(released), -1), owner[rows]]).astype(np.int64)
    compared: list[tuple[Found, float]] = []
    for found in find_nearest(asking, real, owner, own=own, dtype=dtype).values():
        apart = np.sqrt(found.least[len(released) :])
        floor = max(float(np.median(apart)), DUPLICATE_RMSE)
        mine = Found(*(column[: len(released)] for column in vars(found).values()))
        compared.append((mine, floor))
    return compared


def _to_nearest(compared: list[tuple[Found, float]], error: int) -> tuple[Nearest, ...]:
    """Each image's findings; with `error` 1 as far off by rounding as they may be, -1 as near."""
    # each list: one array [R] a space
    ratios: list[Floats] = []
    leads: list[Floats] = []
    for found, floor in compared:
        least = np.sqrt(np.maximum(found.least + error * found.error, 0))
        others = np.sqrt(np.maximum(found.others - error * found.error, 0))
        ratios.append(least / floor)
        leads.append(least / np.maximum(others, DUPLICATE_RMSE))
    rows = [found.rows for found, _ in compared]
    nearest: list[Nearest] = []
    for i in range(len(rows[0])):
        lead = tuple(float(of_space[i]) for of_space in leads)
        row = int(rows[lead.index(min(lead))][i])
        nearest.append(Nearest(row, tuple(float(of_space[i]) for of_space in ratios), lead))
    return tuple(nearest)
