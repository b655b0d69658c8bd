"""Public pairs of image and mask: from a folder, from an .npz, or drawn as phantoms.

In, one of:
  - a folder with images/NAME.png, masks/NAME.png and patients.csv (columns file, patient);
  - an .npz with `images` and `masks` uint8 [N, H, W], or `pairs` uint8 [N, H, W, 2], and the
    patient of each as a whole number (`patient_of`, `patient` or `sequence`).
Out: `PublicPairs`.
Guarantees: every read is capped and unpickles nothing; a mask is 0 or 255; nothing is resampled.
Not covered: whether the pairs are public. The operator answers for that.
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
from PIL import Image

from common.arrays import Images, Labels, Pairs, Pixels
from common.errors import ConfigurationError, damage_named
from common.storage.files import read_capped
from server.public_data.images import arrays_of

ARCHIVE_CAP_BYTES = 4 << 30
PICTURE_CAP_BYTES = 16 << 20
TABLE_CAP_BYTES = 64 << 20
LARGEST_SIDE_PX = 4096
MOST_PAIRS = 200_000
MASKS = ("masks", "vessel_masks", "mask")
PATIENTS = ("patient_of", "patient", "sequence")


@dataclass(frozen=True)
class PublicPairs:
    """`pairs` uint8 [N, S, S, 2]: image, mask (0 or 255); `patient_of` int64 [N].

    `digest`: SHA-256 of what was read.
    """

    pairs: Pairs
    patient_of: Labels
    digest: str


def read_pairs(path: Path, size_px: int) -> PublicPairs:
    """Return the public pairs in `path`, cut to their central `size_px`.

    Raises ConfigurationError for anything else and for smaller pairs.
    """
    if path.is_dir():
        found = _read_folder(path)
    elif path.suffix == ".npz" and path.is_file():
        found = _read_npz(path)
    else:
        raise ConfigurationError(
            f"{path}: expected a folder or an .npz file of image + mask pairs",
            hint="a folder needs images/NAME.png, masks/NAME.png and patients.csv with columns "
            "file,patient",
        )

    # cut the centre out of larger pairs
    height, width = found.pairs.shape[1:3]
    if min(height, width) < size_px:
        raise ConfigurationError(
            f"{path}: pairs of {height} x {width} pixels, expected at least {size_px} x {size_px}"
        )
    top = (height - size_px) // 2
    left = (width - size_px) // 2
    cut = np.ascontiguousarray(found.pairs[:, top : top + size_px, left : left + size_px])
    return PublicPairs(cut, found.patient_of, found.digest)


def phantom_pairs(patients: int, per_patient: int, size_px: int, seed: int) -> PublicPairs:
    """Return patches of `patients` phantoms of the style "public" (phantoms.py)."""
    from server.public_data.phantoms import SHAPE, STYLES, patches, volume

    rng = np.random.default_rng(seed)
    shape = (SHAPE[0], max(SHAPE[1], size_px), max(SHAPE[2], size_px))
    made = []
    for _ in range(patients):
        phantom = volume(rng, STYLES["public"], shape)
        made.append(patches(phantom, per_patient, size_px, rng))
    pairs = np.concatenate(made)
    patient_of = np.repeat(np.arange(patients), per_patient)
    return PublicPairs(pairs, patient_of, hashlib.sha256(pairs.tobytes()).hexdigest())


# --- .npz -----------------------------------------------------------------------------------


def _read_npz(path: Path) -> PublicPairs:
    """The pairs of an .npz file."""
    # find image, mask and patient under any of their names
    data = read_capped(path, ARCHIVE_CAP_BYTES)
    arrays = arrays_of(data, path, ("pairs", "images", *MASKS, *PATIENTS))
    patient = _first_of(arrays, PATIENTS)
    mask = _first_of(arrays, MASKS)
    images = arrays.get("images", np.zeros(0, np.uint8))
    if "pairs" in arrays:
        images = arrays["pairs"][..., 0]
        mask = arrays["pairs"][..., 1]

    # refuse other shapes and types
    if mask is None or patient is None or not _fit(images, mask, patient):
        shapes = {name: list(array.shape) for name, array in arrays.items()}
        raise ConfigurationError(
            f"{path}: expected `images` and `masks` uint8 [N, H, W] (or `pairs` [N, H, W, 2]) "
            f"and `patient_of` [N], got {shapes}"
        )
    if images.dtype != np.uint8 or mask.dtype.kind not in "bu" or patient.dtype.kind not in "iu":
        raise ConfigurationError(
            f"{path}: expected uint8 images and masks and whole-numbered patients"
        )
    _check_count(path, len(images))
    digest = hashlib.sha256(data).hexdigest()
    return PublicPairs(_pair(path, images, mask), patient.astype(np.int64), digest)


def _first_of(arrays: dict[str, NDArray[Any]], names: tuple[str, ...]) -> NDArray[Any] | None:
    """The array under the first of `names` that there is."""
    for name in names:
        if name in arrays:
            return arrays[name]
    return None


def _fit(images: NDArray[Any], mask: NDArray[Any], patient: NDArray[Any]) -> bool:
    """Whether there are images [N, H, W], and a mask and a patient for each."""
    return images.ndim == 3 and images.shape == mask.shape and len(patient) == len(mask)


# --- folder ---------------------------------------------------------------------------------


def _read_folder(folder: Path) -> PublicPairs:
    """The pairs of a folder with images/, masks/ and patients.csv."""
    # read every listed pair; all have one size
    rows = _read_table(folder / "patients.csv")
    _check_count(folder, len(rows))
    digest = hashlib.sha256()
    images = []
    masks = []
    for name in sorted(rows):
        image = _read_picture(folder / "images" / name, digest)
        mask = _read_picture(folder / "masks" / name, digest)
        images.append(image)
        masks.append(mask)
        if image.shape != mask.shape or image.shape != images[0].shape:
            raise ConfigurationError(
                f"{folder}: {name}: image {image.shape}, mask {mask.shape}, "
                f"first image {images[0].shape}: expected one size for all"
            )

    # refuse pictures that the table does not list
    unlisted = sorted({path.name for path in (folder / "images").glob("*.png")} - set(rows))
    if unlisted:
        raise ConfigurationError(f"{folder}/images/{unlisted[0]}: not listed in patients.csv")

    # number the patients
    number = {patient: i for i, patient in enumerate(sorted(set(rows.values())))}
    patient_of = np.array([number[rows[name]] for name in sorted(rows)], np.int64)
    pairs = _pair(folder, np.stack(images), np.stack(masks))
    return PublicPairs(pairs, patient_of, digest.hexdigest())


def _read_table(path: Path) -> dict[str, str]:
    """The patient of every file in patients.csv."""
    # the columns
    if not path.is_file():
        raise ConfigurationError(
            f"{path}: missing", hint="a CSV with columns file,patient; one line an image"
        )
    text = read_capped(path, TABLE_CAP_BYTES).decode("utf-8-sig", "replace")
    with damage_named(ConfigurationError(f"{path}: not a CSV table")):
        reader = csv.DictReader(io.StringIO(text))
        columns = list(reader.fieldnames or ())
        lines = list(reader)
    if not {"file", "patient"} <= set(columns):
        raise ConfigurationError(f"{path}: expected columns file and patient, got {columns}")

    # every row: a plain file name that stands once, and a patient
    rows: dict[str, str] = {}
    for line, row in enumerate(lines, 2):
        name = (row["file"] or "").strip()
        patient = (row["patient"] or "").strip()
        plain = Path(name).name == name and name.endswith(".png")
        if not patient or not plain or name in rows:
            raise ConfigurationError(
                f"{path}: line {line}: expected a .png name that stands once, and a patient"
            )
        rows[name] = patient
    return rows


def _read_picture(path: Path, digest: hashlib._Hash) -> Pixels:
    """One grey PNG, uint8 [H, W]."""
    if not path.is_file():
        raise ConfigurationError(f"{path}: missing, but patients.csv lists it")
    data = read_capped(path, PICTURE_CAP_BYTES)
    digest.update(hashlib.sha256(data).digest())
    damage = ConfigurationError(f"{path}: not a PNG that can be read")
    with damage_named(damage), Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        if max(image.size) > LARGEST_SIDE_PX or image.mode not in ("L", "1", "P"):
            raise ConfigurationError(
                f"{path}: {image.size} pixels of mode {image.mode}, expected 8-bit grey"
            )
        return np.asarray(image.convert("L"))


# --- both -----------------------------------------------------------------------------------


def _check_count(path: Path, count: int) -> None:
    """Raise ConfigurationError for too few or too many pairs."""
    if not 2 <= count <= MOST_PAIRS:
        raise ConfigurationError(f"{path}: {count} pairs, expected 2 to {MOST_PAIRS:,}")


def _pair(path: Path, images: Images, masks: NDArray[Any]) -> Pairs:
    """Images and masks as pairs uint8 [N, H, W, 2], with masks of 0 and 255."""
    values = set(np.unique(masks).tolist())
    if not (values <= {0, 1} or values <= {0, 255}):
        raise ConfigurationError(
            f"{path}: masks: expected 0 and 255 (or 0 and 1), got {sorted(values)[:6]}"
        )
    return np.stack([images, (masks > 0).astype(np.uint8) * np.uint8(255)], axis=-1)
