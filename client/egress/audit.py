"""The first audit of images that are about to leave: is one of them a copy of a patient's photograph?

In: released uint8 images [R, H, W, C] and the site's real ones [N, H, W, C]. Out: an `AuditReport`: one code per
released image, the only part that may leave, and evidence and a contact sheet that never do.

Checked, in this order; the first that fails gives the image its code
1. A-CONSTANT   the image is black or constant.
2. A-DUPLICATE  it is the same image as another released one (each of the two fails).
3. A-COPY       it is pixel for pixel a real image.
4. A-NEAR       in pixels, in pixels of equal brightness and contrast, or in fixed random-filter features, its nearest
                real image is either nearer than `NEAR_SHARE` of the floor, or nearer than the floor and than `LEAD` of
                the distance to the nearest image of any other patient. Floor: the median distance of a real image to
                its nearest real neighbour of another patient.
A-PASS otherwise.

Beside the codes, of the batch as a whole, `gives_away_members`: can somebody who has the released images tell the patients who
are in a group from the site's others? Attackers: nearness in the three spaces of rule 4 (common/measure/attacks.py). It answers only with
`LEAST_OTHERS` other patients or more, and yes when the 95 % interval of the worst attacker's AUC lies above `MEMBERS_AUC`: with
fewer the interval is too wide to say anything (measured: with 110 others a worst AUC of 0.59 is luck). The constant is from
benchmarks/RESULTS.md: intervals of `similar` begin at 0.63, 0.59 and 0.56 for k = 5, 10 and 20, those of k-Same-Pixel at 0.69,
0.61 and 0.54; averages of two and copies lie far above.

Guaranteed: numpy and Pillow only, nothing random, no time or path in the sheet; evidence never enters a code.
Not covered: attacks with a trained classifier; membership inference where nearly every patient is in a group, or finer than
`MEMBERS_AUC` (methods/ksalsa.md 6; the operator's rehearsal measures it, server/evaluate/rehearsal_report.py). An average is near to everything:
the rules find copies (re-encoded, moved by a pixel, recoloured), they do not measure privacy. The filters are fixed, so somebody
who knows them could evade them; they guard against faults, not malice.
"""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from common.arrays import Floats, Images
from common.errors import ConfigurationError
from common.measure import attacks

Code = Literal["A-PASS", "A-CONSTANT", "A-DUPLICATE", "A-COPY", "A-NEAR"]

BLANK_DEVIATION = 0.02  # of the grey values in [0, 1]
DUPLICATE_RMSE = 0.004  # one grey level of 255
NEAR_SHARE, LEAD = 0.4, 0.65
LEAST_OTHERS, MEMBERS_AUC = 20, 0.65
SIZE_PX = 64  # images are compared at this size
CHANNELS, FILTER_SEED = 16, 50403
BATCH = 256


@dataclass(frozen=True)
class Evidence:
    """One released image, site-local: row of its nearest real image, and in each space (pixels, contrast, filters) the
    distance to the nearest real image as a share of the floor (`floor_ratios`) and of that to the next patient (`leads`)."""

    nearest: int
    floor_ratios: tuple[float, ...]
    leads: tuple[float, ...]

    @property
    def near(self) -> bool:
        """True when rule 4 holds in some space."""
        pairs = zip(self.floor_ratios, self.leads, strict=True)
        return any(ratio < NEAR_SHARE or (ratio < 1 and lead < LEAD) for ratio, lead in pairs)


@dataclass(frozen=True)
class AuditReport:
    """`codes`, one per released image, may leave; `evidence` is site-local."""

    codes: tuple[Code, ...]
    evidence: tuple[Evidence, ...]

    @property
    def failures(self) -> tuple[Code, ...]:
        """The codes other than A-PASS, in order; empty when the whole batch passed."""
        return tuple(code for code in self.codes if code != "A-PASS")


def audit(
    released: Images, real: Images, patient_of: NDArray[np.integer] | None = None
) -> AuditReport:
    """Return the report of `released` against all of the site's `real` images (not only those that were averaged).

    `patient_of` int [N] says whose each real image is (None: each another patient's). Raises ConfigurationError unless
    both are uint8 [N, H, W, C] of one size, with real images of two or more patients.
    """
    owner = np.arange(len(real)) if patient_of is None else np.asarray(patient_of)
    _check_images(released, real, owner)
    ours, theirs = _unit(released), _unit(real)
    spaces = [_against(view(ours), view(theirs), owner) for view in (_pixels, _contrast, _filtered)]
    nearest, ratios, leads = (np.stack(column) for column in zip(*spaces, strict=True))
    evidence = tuple(
        Evidence(
            int(nearest[leads[:, i].argmin(), i]),
            tuple(ratios[:, i].tolist()),
            tuple(leads[:, i].tolist()),
        )
        for i in range(len(released))
    )
    checks: tuple[tuple[Code, NDArray[np.bool_]], ...] = (
        ("A-CONSTANT", blank(released)),
        ("A-DUPLICATE", _duplicates(released, ours)),
        ("A-COPY", _copies(released, real)),
        ("A-NEAR", np.array([seen.near for seen in evidence], bool)),
    )
    return AuditReport(tuple(_first_failure(checks, i) for i in range(len(released))), evidence)


def gives_away_members(
    released: Images, real: Images, patient_of: NDArray[np.integer], member: NDArray[np.bool_]
) -> bool | None:
    """Return whether the batch gives away which of the site's patients are in a group; None where too few are in none.

    `real` uint8 [N, H, W, C] of patients `patient_of` int [N], `member` bool [N]: the image's patient is in a released group.
    Raises ConfigurationError as `audit` does. Site-local: only what the caller does about a yes may be seen outside.
    """
    _check_images(released, real, patient_of)
    persons, first, person_of = np.unique(patient_of, return_index=True, return_inverse=True)
    inside = member[first]
    if min(inside.sum(), len(persons) - inside.sum()) < LEAST_OTHERS:
        return None
    ours, theirs = _unit(released), _unit(real)
    scores = {
        view.__name__: attacks.by_person(
            attacks.nearness(view(theirs), view(ours)), person_of.astype(np.int64)
        )
        for view in (_pixels, _contrast, _filtered)
    }
    found = attacks.infer(scores, inside)
    return found is not None and found.worst.auc_interval[0] > MEMBERS_AUC


def _first_failure(checks: tuple[tuple[Code, NDArray[np.bool_]], ...], row: int) -> Code:
    """The code of the first check that image `row` fails."""
    for code, hit in checks:
        if hit[row]:
            return code
    return "A-PASS"


def contact_sheet(
    released: Images, real: Images, report: AuditReport, *, columns: int = 6, zoom: int = 2
) -> bytes:
    """Return PNG bytes: each released image beside its nearest real one, code and lead below. ON SITE ONLY.

    Read it as pairs: left released, right real. Raises ConfigurationError as `audit` does.
    """
    _check_images(released, real, np.arange(len(real)))
    height, width = released.shape[1] * zoom, released.shape[2] * zoom
    cell_w, cell_h = 2 * width + 12, height + 18
    rows = -(-len(released) // columns)
    sheet = Image.new("RGB", (cell_w * min(columns, len(released)), cell_h * rows), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (code, seen) in enumerate(zip(report.codes, report.evidence, strict=True)):
        x, y = cell_w * (i % columns), cell_h * (i // columns)
        for side, image in enumerate((released[i], real[seen.nearest])):
            sheet.paste(
                _picture(image).resize((width, height), Image.Resampling.NEAREST),
                (x + side * width, y),
            )
        text = f"{i + 1} {code} {min(seen.leads):.2f}"
        draw.text((x + 2, y + height + 3), text, fill="black" if code == "A-PASS" else "red")
    stream = io.BytesIO()
    sheet.save(stream, "PNG")
    return stream.getvalue()


def blank(images: Images) -> NDArray[np.bool_]:
    """Return bool [N]: True where an image is black or constant."""
    grey = images.mean(axis=-1, dtype=np.float64).reshape(len(images), -1) / 255
    return np.asarray(grey.std(axis=1) < BLANK_DEVIATION)


def _check_images(released: Images, real: Images, owner: NDArray[np.integer]) -> None:
    """Raise ConfigurationError on anything but two stacks of uint8 images of one size, real ones of two patients."""
    for name, images in (("released", released), ("real", real)):
        if (
            images.ndim != 4
            or images.dtype != np.uint8
            or images.shape[1:] != released.shape[1:]
            or not len(images)
        ):
            raise ConfigurationError(
                f"audit: {name}: expected uint8 images [N, H, W, C] of one size; got {images.dtype} {images.shape[1:]}"
            )
    if len(owner) != len(real) or len(np.unique(owner)) < 2:
        raise ConfigurationError(
            "audit: expected one owner per real image, and two patients or more"
        )


def _unit(images: Images) -> Floats:
    """float64 [N, S, S, C] in [0, 1], averaged down to `SIZE_PX` where the size is a multiple of it."""
    factor = max(1, images.shape[1] // SIZE_PX)
    if factor == 1 or images.shape[1] % factor or images.shape[2] % factor:
        return np.asarray(images / 255.0)
    n, height, width, channels = images.shape
    tiles = images.reshape(n, height // factor, factor, width // factor, factor, channels)
    return np.asarray(tiles.mean(axis=(2, 4), dtype=np.float64) / 255)


def _pixels(images: Floats) -> Floats:
    """[N, D]: the pixels."""
    return images.reshape(len(images), -1)


def _contrast(images: Floats) -> Floats:
    """[N, D]: the pixels, every channel of every image at mean 0 and deviation 1: a recoloured copy stays near."""
    centred = images - images.mean(axis=(1, 2), keepdims=True)
    return _pixels(centred / (images.std(axis=(1, 2), keepdims=True) + 1e-3))


def _filtered(images: Floats) -> Floats:
    """[N, D]: two strided convolutions with fixed random filters and ReLU: a slightly moved copy stays near."""
    rng = np.random.default_rng(FILTER_SEED)
    first = _zero_mean(rng.normal(size=(5 * 5 * images.shape[-1], CHANNELS)))
    second = rng.normal(size=(3 * 3 * CHANNELS, 2 * CHANNELS)) / np.sqrt(3 * 3 * CHANNELS)
    parts = []
    for start in range(0, len(images), BATCH):
        x = _convolved(images[start : start + BATCH], first, 5)
        parts.append(_pixels(_convolved(x, second, 3)))
    return np.concatenate(parts)


def _zero_mean(filters: Floats) -> Floats:
    """Filters that see structure, not brightness."""
    centred = filters - filters.mean(axis=0)
    return np.asarray(centred / np.linalg.norm(centred, axis=0))


def _convolved(x: Floats, filters: Floats, size: int) -> Floats:
    """ReLU of a `size`×`size` convolution with stride 2, [N, H, W, C] → [N, ~H/2, ~W/2, filters]."""
    patches = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(1, 2))[:, ::2, ::2]
    n, height, width = patches.shape[:3]
    return np.maximum(patches.reshape(n, height, width, -1) @ filters, 0.0)


def _against(
    ours: Floats, theirs: Floats, owner: NDArray[np.integer]
) -> tuple[NDArray[np.int64], Floats, Floats]:
    """Row of the nearest real image, its distance / floor, and its distance / that of the nearest other patient, [R]."""
    among = np.where(owner[:, None] == owner[None, :], np.inf, _distances(theirs, theirs))
    floor = max(float(np.median(among.min(axis=1))), DUPLICATE_RMSE)
    distances = _distances(ours, theirs)
    nearest = distances.argmin(axis=1)
    least = distances.min(axis=1)
    others = np.where(owner[nearest][:, None] == owner[None, :], np.inf, distances).min(axis=1)
    return nearest, least / floor, least / np.maximum(others, DUPLICATE_RMSE)


def _distances(a: Floats, b: Floats) -> Floats:
    """Root mean square differences [A, B]."""
    squared = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None, :] - 2 * a @ b.T
    return np.asarray(np.sqrt(np.maximum(squared, 0.0) / a.shape[1]))


def _duplicates(released: Images, unit: Floats) -> NDArray[np.bool_]:
    """True where another released image is the same within a grey level."""
    among = _distances(unit.reshape(len(unit), -1), unit.reshape(len(unit), -1))
    np.fill_diagonal(among, np.inf)
    times = Counter(image.tobytes() for image in released)
    exact = np.array([times[image.tobytes()] > 1 for image in released], np.bool_)
    return np.asarray(exact | (among.min(axis=1) < DUPLICATE_RMSE))


def _copies(released: Images, real: Images) -> NDArray[np.bool_]:
    """True where a released image equals a real one in every pixel."""
    known = {image.tobytes() for image in real}
    return np.array([image.tobytes() in known for image in released])


def _picture(image: Images) -> Image.Image:
    """A Pillow RGB image of uint8 [H, W, 1 or 3]."""
    return Image.fromarray(
        np.ascontiguousarray(image[..., 0] if image.shape[-1] == 1 else image)
    ).convert("RGB")
