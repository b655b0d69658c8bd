"""Public image + mask pairs: read from a folder, from an .npz, or drawn as phantoms; for pretraining and for evaluation.

In: a folder with images/NAME.png, masks/NAME.png and patients.csv (columns file, patient); or an .npz with `images` and `masks`
uint8 [N, H, W] (or `pairs` uint8 [N, H, W, 2]) and the patient of each (`patient_of`, `patient` or `sequence`, whole numbers).
Out: `PublicPairs`. Guaranteed: every read is capped and unpickles nothing; a mask is 0 or 255; a pair larger than asked is cut
to its centre, never resampled; every error names file, what was expected and what was found. Not: whether the pairs are
public. The operator answers for that.
"""

from __future__ import annotations

import csv
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from common.arrays import Pairs
from common.errors import ConfigurationError
from common.storage.files import read_capped

ARCHIVE_CAP_BYTES = 4 << 30
PICTURE_CAP_BYTES = 16 << 20
TABLE_CAP_BYTES = 64 << 20
LARGEST_SIDE_PX = 4096
MOST_PAIRS = 200_000
MASKS, PATIENTS = ("masks", "vessel_masks", "mask"), ("patient_of", "patient", "sequence")


@dataclass(frozen=True)
class PublicPairs:
    """`pairs` uint8 [N, S, S, 2]: image, mask (0 or 255); `patient_of` int64 [N]; `digest`: SHA-256 of what was read."""

    pairs: Pairs
    patient_of: NDArray[np.int64]
    digest: str


def read_pairs(path: Path, size_px: int) -> PublicPairs:
    """Return the public pairs in `path`, cut to their central `size_px`. Raises ConfigurationError."""
    if path.is_dir():
        found = _read_folder(path)
    elif path.suffix == ".npz" and path.is_file():
        found = _read_npz(path)
    else:
        raise ConfigurationError(
            f"{path}: expected a folder or an .npz file of image + mask pairs",
            hint="a folder needs images/NAME.png, masks/NAME.png and patients.csv with columns file,patient",
        )
    height, width = found.pairs.shape[1:3]
    if min(height, width) < size_px:
        raise ConfigurationError(
            f"{path}: pairs of {height} x {width} pixels, expected at least {size_px} x {size_px}"
        )
    top, left = (height - size_px) // 2, (width - size_px) // 2
    cut = np.ascontiguousarray(found.pairs[:, top : top + size_px, left : left + size_px])
    return PublicPairs(cut, found.patient_of, found.digest)


def phantom_pairs(patients: int, per_patient: int, size_px: int, seed: int) -> PublicPairs:
    """Return patches of `patients` procedural phantoms of the style "public" (server/public_data/phantoms.py)."""
    from server.public_data.phantoms import SHAPE, STYLES, patches, volume

    rng = np.random.default_rng(seed)
    shape = (SHAPE[0], max(SHAPE[1], size_px), max(SHAPE[2], size_px))
    made = [
        patches(volume(rng, STYLES["public"], shape), per_patient, size_px, rng)
        for _ in range(patients)
    ]
    pairs = np.concatenate(made)
    return PublicPairs(
        pairs,
        np.repeat(np.arange(patients), per_patient),
        hashlib.sha256(pairs.tobytes()).hexdigest(),
    )


# --- .npz -------------------------------------------------------------------------------------------------------------------


def _read_npz(path: Path) -> PublicPairs:
    """An archive's arrays, never unpickled."""
    data = read_capped(path, ARCHIVE_CAP_BYTES)
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = {
                name: file[name] for name in ("pairs", "images", *MASKS, *PATIENTS) if name in file
            }
    except (ValueError, OSError, EOFError) as error:
        raise ConfigurationError(
            f"{path}: not an .npz of plain arrays ({type(error).__name__})"
        ) from error
    patient = next((arrays[name] for name in PATIENTS if name in arrays), None)
    mask = next((arrays[name] for name in MASKS if name in arrays), None)
    if "pairs" in arrays:
        images, mask = arrays["pairs"][..., 0], arrays["pairs"][..., 1]
    else:
        images = arrays.get("images", np.zeros(0, np.uint8))
    if (
        mask is None
        or patient is None
        or images.ndim != 3
        or images.shape != mask.shape
        or len(patient) != len(mask)
    ):
        raise ConfigurationError(
            f"{path}: expected `images` and `masks` uint8 [N, H, W] (or `pairs` [N, H, W, 2]) and `patient_of` [N], "
            f"got { ({name: list(array.shape) for name, array in arrays.items()}) }"
        )
    if images.dtype != np.uint8 or mask.dtype.kind not in "bu" or patient.dtype.kind not in "iu":
        raise ConfigurationError(
            f"{path}: expected uint8 images and masks and whole-numbered patients"
        )
    _check_count(path, len(images))
    return PublicPairs(
        _paired(path, images, mask), patient.astype(np.int64), hashlib.sha256(data).hexdigest()
    )


# --- folder -----------------------------------------------------------------------------------------------------------------


def _read_folder(folder: Path) -> PublicPairs:
    """images/, masks/ and patients.csv."""
    rows = _table(folder / "patients.csv")
    _check_count(folder, len(rows))
    digest = hashlib.sha256()
    images, masks = [], []
    for name in sorted(rows):
        images.append(_picture(folder / "images" / name, digest))
        masks.append(_picture(folder / "masks" / name, digest))
        if images[-1].shape != masks[-1].shape or images[-1].shape != images[0].shape:
            raise ConfigurationError(
                f"{folder}: {name}: image {images[-1].shape}, mask {masks[-1].shape}, first image {images[0].shape}: "
                "expected one size for all"
            )
    unlisted = sorted({path.name for path in (folder / "images").glob("*.png")} - set(rows))
    if unlisted:
        raise ConfigurationError(f"{folder}/images/{unlisted[0]}: not listed in patients.csv")
    number = {patient: i for i, patient in enumerate(sorted(set(rows.values())))}
    patient_of = np.array([number[rows[name]] for name in sorted(rows)], np.int64)
    return PublicPairs(
        _paired(folder, np.stack(images), np.stack(masks)), patient_of, digest.hexdigest()
    )


def _table(path: Path) -> dict[str, str]:
    """patients.csv: the patient of every file."""
    if not path.is_file():
        raise ConfigurationError(
            f"{path}: missing", hint="a CSV with columns file,patient; one line an image"
        )
    reader = csv.DictReader(
        io.StringIO(read_capped(path, TABLE_CAP_BYTES).decode("utf-8-sig", "replace"))
    )
    if not {"file", "patient"} <= set(reader.fieldnames or ()):
        raise ConfigurationError(
            f"{path}: expected columns file and patient, got {reader.fieldnames}"
        )
    rows: dict[str, str] = {}
    for line, row in enumerate(reader, 2):
        name, patient = (row["file"] or "").strip(), (row["patient"] or "").strip()
        if not patient or Path(name).name != name or not name.endswith(".png") or name in rows:
            raise ConfigurationError(
                f"{path}: line {line}: expected a .png name that stands once, and a patient"
            )
        rows[name] = patient
    return rows


def _picture(path: Path, digest: hashlib._Hash) -> NDArray[np.uint8]:
    """One grey PNG, uint8 [H, W]."""
    if not path.is_file():
        raise ConfigurationError(f"{path}: missing, but patients.csv lists it")
    data = read_capped(path, PICTURE_CAP_BYTES)
    digest.update(hashlib.sha256(data).digest())
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if max(image.size) > LARGEST_SIDE_PX or image.mode not in ("L", "1", "P"):
                raise ConfigurationError(
                    f"{path}: {image.size} pixels of mode {image.mode}, expected 8-bit grey"
                )
            return np.asarray(image.convert("L"))
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ConfigurationError(f"{path}: not a PNG that can be read") from error


# --- both -------------------------------------------------------------------------------------------------------------------


def _check_count(path: Path, count: int) -> None:
    if not 2 <= count <= MOST_PAIRS:
        raise ConfigurationError(f"{path}: {count} pairs, expected 2 to {MOST_PAIRS:,}")


def _paired(path: Path, images: NDArray[np.uint8], masks: NDArray[Any]) -> Pairs:
    """uint8 [N, H, W, 2] with masks of 0 and 255."""
    values = set(np.unique(masks).tolist())
    if not (values <= {0, 1} or values <= {0, 255}):
        raise ConfigurationError(
            f"{path}: masks: expected 0 and 255 (or 0 and 1), got {sorted(values)[:6]}"
        )
    return np.stack([images, (masks > 0).astype(np.uint8) * np.uint8(255)], axis=-1)
