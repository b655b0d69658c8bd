"""Public photographs, read from a folder or an .npz file.

In: the path, and names to leave out.
Out: a `Source`.
Guarantees: a name in `exclude` never enters; every read is capped and unpickles nothing. The images
of a folder are framed by the rules of the hospitals' ingest: fundus photographs by their field of
view (common/field_of_view.py), all others by their longer side.
Not covered: whether the photographs are public. The operator answers for that. Images in an .npz
are taken as they are.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import zipfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
from PIL import Image

from common.arrays import Flags, Floats, Images, Pixels
from common.errors import ConfigurationError, damage_named
from common.field_of_view import find_field, frame_field
from common.storage.files import read_capped

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp")
SOURCE_CAP_BYTES = 4 << 30
PHOTOGRAPH_CAP_BYTES = 64 << 20
TABLE_CAP_BYTES = 64 << 20
LARGEST_PIXELS = 1 << 26
MODES = {1: "L", 3: "RGB"}
PLAIN_KINDS = "buifU"  # of the types that an array may have: numbers and text

Frame = Callable[[Image.Image, int, int], Pixels | None]


@dataclass(frozen=True)
class Source:
    """Public images uint8 [N, S, S, C].

    `right` is bool [N], or None where the side of the body is unknown. `digest` is the SHA-256 of
    the .npz file, or of the SHA-256 of every photograph in order of name. `weights` [N] of sum 1 is
    how often a training draws each image; None draws all patients alike. `patients` [N] is empty
    where each image is its own patient.
    """

    images: Images
    names: tuple[str, ...]
    right: Flags | None
    digest: str
    weights: Floats | None = None
    patients: tuple[str, ...] = ()


def read_source(
    path: Path,
    size_px: int,
    channels: int,
    exclude: Sequence[str] = (),
    *,
    field_of_view: bool = False,
    finer: int = 1,
) -> Source:
    """Return the public photographs in `path` (folder or .npz) without those in `exclude`.

    A folder's photographs are framed by their `field_of_view`, or by their longer side with black
    beside the shorter one, and resized to `finer` times `size_px`. An .npz may have either size. A
    folder's `labels.csv`, with columns file and laterality (L or R), gives the sides.
    Raises ConfigurationError for anything else, for a wrong size, for a photograph without a field
    of view where one is asked for, and for fewer than two images.
    """
    if path.is_dir():
        frame: Frame = _frame_whole
        if field_of_view:
            frame = _frame_fundus
        source = _read_folder(path, finer * size_px, channels, frame, set(exclude))
    elif path.suffix == ".npz":
        source = read_npz(path)
    else:
        raise ConfigurationError(
            f"{path}: expected a folder of photographs or an .npz file",
            hint="a folder of .jpg, .png or .tif files, or an .npz with an array `images`",
        )
    _check_size(path, source.images, (size_px, finer * size_px), channels)
    if len(source.patients) not in (0, len(source.images)):
        raise ConfigurationError(
            f"{path}: {len(source.patients)} patients, expected one for each of the "
            f"{len(source.images)} images",
            hint="give `patients` a value for each image, or leave it out",
        )
    return _leave_out(path, source, exclude)


def _check_size(path: Path, images: Images, sizes: tuple[int, int], channels: int) -> None:
    """Raise ConfigurationError unless the images are uint8 of one of two sizes."""
    shapes = [(size, size, channels) for size in sizes]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] not in shapes:
        expected = " or ".join(f"uint8 [N, {h}, {w}, {c}]" for h, w, c in dict.fromkeys(shapes))
        got = f"{images.dtype} {list(images.shape)}"
        raise ConfigurationError(f"{path}: expected images {expected}, got {got}")


def _leave_out(path: Path, source: Source, exclude: Sequence[str]) -> Source:
    """The source without the photographs named in `exclude`."""
    if exclude and not source.names:
        raise ConfigurationError(
            f"{path}: has no names, so nothing can be excluded", hint="add an array `names`"
        )

    # which photographs stay
    keep = np.ones(len(source.images), bool)
    if source.names:
        excluded = set(exclude)
        keep = np.array([name not in excluded for name in source.names])
    if keep.sum() < 2:
        raise ConfigurationError(
            f"{path}: {int(keep.sum())} photographs remain, expected at least 2"
        )

    # their names and sides
    names = []
    for name, kept in zip(source.names, keep, strict=False):
        if kept:
            names.append(name)
    right = source.right
    if right is not None:
        right = right[keep]
    weights = source.weights
    if weights is not None:
        weights = weights[keep] / weights[keep].sum()
    patients = tuple(compress(source.patients, keep))
    return replace(
        source,
        images=source.images[keep],
        names=tuple(names),
        right=right,
        weights=weights,
        patients=patients,
    )


def read_names(path: Path | None) -> list[str]:
    """Return the names in a text file, one a line, sorted and each once; none for no file."""
    if path is None:
        return []
    text = _decode_text(read_capped(path, TABLE_CAP_BYTES), path)
    names = {line.strip() for line in text.splitlines()}
    return sorted(names - {""})


def _decode_text(data: bytes, path: Path) -> str:
    """The text of a table; raises ConfigurationError for anything else."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: not UTF-8 text", hint="save it as UTF-8") from error


def read_npz(path: Path) -> Source:
    """Return the source in an .npz of at most 4 GiB.

    It has `images` and, if present, `names`, `laterality` (true: right), `weights` and `patients`.
    Raises ConfigurationError for another file, and for weights that are not one positive number an
    image.
    """
    data = read_capped(path, SOURCE_CAP_BYTES)
    found = arrays_of(data, path, ("images", "names", "laterality", "weights", "patients"))
    if "images" not in found:
        raise ConfigurationError(f"{path}: no array `images`; found {sorted(found)}")
    names = tuple(map(str, found.get("names", ())))
    right = None
    if "laterality" in found:
        right = found["laterality"].astype(bool)
    weights = None
    if "weights" in found:
        weights = _share(found["weights"], len(found["images"]), path)
    patients = tuple(map(str, found.get("patients", ())))
    digest = hashlib.sha256(data).hexdigest()
    return Source(found["images"], names, right, digest, weights, patients)


def _share(weights: NDArray[Any], count: int, path: Path) -> Floats:
    """The weights, of sum 1."""
    fit = weights.shape == (count,) and weights.dtype.kind in "uif"
    if not fit or not bool((np.isfinite(weights) & (weights > 0)).all()):
        raise ConfigurationError(
            f"{path}: weights {weights.dtype} {list(weights.shape)}, "
            f"expected one positive number for each of {count} images"
        )
    numbers = weights.astype(np.float64)
    return np.asarray(numbers / numbers.sum(), dtype=np.float64)


def arrays_of(data: bytes, path: Path, wanted: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Return those of the arrays `wanted` that the .npz `data` of `path` holds.

    Nothing is unpickled. Raises ConfigurationError for data that is no .npz, is damaged, holds
    Python objects, or unpacks to more than the cap.
    """
    damage = ConfigurationError(
        f"{path}: expected an .npz of arrays without Python objects, undamaged",
        hint="write it with numpy.savez",
    )
    with damage_named(damage), zipfile.ZipFile(io.BytesIO(data)) as archive:
        # the size that the archive declares must be within the cap before it is unpacked
        size = sum(member.file_size for member in archive.infolist())
        if size > SOURCE_CAP_BYTES:
            raise ConfigurationError(
                f"{path}: unpacks to {size} bytes, expected at most {SOURCE_CAP_BYTES}"
            )
        files = {member.filename: member for member in archive.infolist()}
        return {
            name: _unpack(archive, files[f"{name}.npy"])
            for name in wanted
            if f"{name}.npy" in files
        }


def _unpack(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[Any]:
    """One array, whose shape and type take just the bytes that the archive declares for it."""
    with archive.open(member) as file:
        version = npy.read_magic(file)
        if version == (1, 0):
            shape, _, dtype = npy.read_array_header_1_0(file)
        else:
            shape, _, dtype = npy.read_array_header_2_0(file)
        # numpy would allocate what the shape says before it reads
        needed = math.prod(shape) * dtype.itemsize
        plain = dtype.kind in PLAIN_KINDS and dtype.itemsize > 0 and min(shape, default=1) >= 0
        if not plain or file.tell() + needed != member.file_size:
            raise ValueError("shape or type")
        file.seek(0)
        found: NDArray[Any] = npy.read_array(file, allow_pickle=False)
        if dtype.kind == "U":
            _check_characters(found)
        return found


def _check_characters(texts: NDArray[Any]) -> None:
    """Raise ValueError for numbers that are no characters: numpy believes whatever is there."""
    codes = texts.astype(texts.dtype.newbyteorder("=")).reshape(-1).view(np.uint32)
    if bool(((codes > 0x10FFFF) | ((codes >= 0xD800) & (codes < 0xE000))).any()):
        raise ValueError("characters")


def _decode(data: bytes, path: Path, size_px: int, channels: int, frame: Frame) -> Pixels:
    """One photograph; raises ConfigurationError for a file that is damaged or no picture."""
    damage = ConfigurationError(
        f"{path}: not readable as a photograph", hint="replace the file or take it out"
    )
    with damage_named(damage), Image.open(io.BytesIO(data)) as image:
        if image.width * image.height > LARGEST_PIXELS:
            raise ConfigurationError(
                f"{path}: {image.width} x {image.height} pixels, expected at most {LARGEST_PIXELS}"
            )
        pixels = frame(image, size_px, channels)
    if pixels is None:
        raise ConfigurationError(
            f"{path}: no field of view found, expected the lit circle of a fundus camera",
            hint="take the file out, or replace it by the photograph as the camera took it; for "
            "other photographs than of the fundus give --no-field-of-view",
        )
    return pixels


def _read_folder(
    folder: Path, size_px: int, channels: int, frame: Frame, exclude: Collection[str]
) -> Source:
    """The photographs directly in `folder`, sorted by name."""
    # every picture, in order of name
    digest = hashlib.sha256()
    images = []
    names = []
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            continue
        data = read_capped(path, PHOTOGRAPH_CAP_BYTES)
        digest.update(hashlib.sha256(data).digest())
        names.append(path.name)
        pixels = np.zeros((size_px, size_px, channels), np.uint8)
        if path.name not in exclude:
            pixels = _decode(data, path, size_px, channels, frame)
        images.append(pixels)
    if not images:
        raise ConfigurationError(
            f"{folder}: no photographs ({', '.join(IMAGE_SUFFIXES)})",
            hint="they lie directly in the folder",
        )

    # the sides, where a table gives them
    right = _read_sides(folder / "labels.csv", names)
    return Source(np.stack(images), tuple(names), right, digest.hexdigest())


def _frame_fundus(image: Image.Image, size_px: int, channels: int) -> Pixels | None:
    """The field of view, uint8 [S, S, C]; None where there is none."""
    shown = np.asarray(image.convert(MODES[channels]))
    pixels = shown.reshape(image.height, image.width, channels)
    field = find_field(pixels)
    if field is None:
        return None
    return frame_field(pixels, field, size_px, _resize)


def _resize(pixels: Pixels, height: int, width: int) -> Pixels:
    """Pixels [H, W, C] at another height and width, by antialiased bicubic interpolation."""
    channels = pixels.shape[2]
    if channels == 1:
        pixels = pixels[..., 0]
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    resized = picture.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized).reshape(height, width, channels)


def _frame_whole(image: Image.Image, size_px: int, channels: int) -> Pixels:
    """The whole image by its longer side, with black beside the shorter one, uint8 [S, S, C]."""
    shown = np.asarray(image.convert(MODES[channels]))
    pixels = shown.reshape(image.height, image.width, channels)
    scale = size_px / max(image.size)
    height = max(1, round(image.height * scale))
    width = max(1, round(image.width * scale))
    top = (size_px - height) // 2
    left = (size_px - width) // 2
    square = np.zeros((size_px, size_px, channels), np.uint8)
    square[top : top + height, left : left + width] = _resize(pixels, height, width)
    return square


def _read_sides(table: Path, names: Sequence[str]) -> Flags | None:
    """True for right, in the order of `names`; None unless the table gives every side."""
    if not table.is_file():
        return None
    text = _decode_text(read_capped(table, TABLE_CAP_BYTES), table).removeprefix("\ufeff")
    side_of = {}
    with damage_named(ConfigurationError(f"{table}: not a CSV table")):
        for row in csv.DictReader(io.StringIO(text)):
            side_of[row.get("file")] = row.get("laterality")
    sides = [side_of.get(name) for name in names]
    if not set(sides) <= {"L", "R"}:
        return None
    right: Flags = np.array(sides) == "R"
    return right
