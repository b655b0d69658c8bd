"""Public photographs for pretraining: read, leave out whom must not be in it, and multiply by small changes.

In: a folder of photographs or an .npz file. Out: a `Source`, and its augmented views as tensors.
Guaranteed: a name in `exclude` never enters; every read is capped and unpickles nothing; the digest is that of the file
(.npz) or of all files in order of name (folder). Not: whether the photographs are public. The operator answers for that.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from common.errors import ConfigurationError
from common.models.images import to_unit
from common.storage.files import read_capped

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp")
SOURCE_CAP_BYTES = 4 << 30
PHOTOGRAPH_CAP_BYTES = 64 << 20
TABLE_CAP_BYTES = 64 << 20


@dataclass(frozen=True)
class Source:
    """Public images uint8 [N, S, S, C]; `right` bool [N] or None where the side of the body is unknown."""

    images: np.ndarray
    names: tuple[str, ...]
    right: np.ndarray | None
    digest: str


def read_source(path: Path, size_px: int, channels: int, exclude: Sequence[str] = ()) -> Source:
    """The public photographs in `path` (folder or .npz) without those named in `exclude`.

    A folder's photographs are cut to their central square and resized; `labels.csv` with columns file and laterality
    (L or R) gives sides. Raises ConfigurationError for anything else, for a wrong size, and for an empty remainder.
    """
    if path.is_dir():
        source = _read_folder(path, size_px, channels)
    elif path.suffix == ".npz":
        source = _read_npz(path)
    else:
        raise ConfigurationError(f"{path}: expected a folder of photographs or an .npz file")
    shape, dtype = source.images.shape, source.images.dtype
    if dtype != np.uint8 or len(shape) != 4 or shape[1:] != (size_px, size_px, channels):
        expected = f"uint8 [N, {size_px}, {size_px}, {channels}]"
        raise ConfigurationError(f"{path}: expected images {expected}, got {dtype} {list(shape)}")
    if exclude and not source.names:
        raise ConfigurationError(
            f"{path}: has no names, so nothing can be excluded", hint="add an array `names`"
        )
    keep = np.array(
        [name not in set(exclude) for name in source.names] or [True] * len(source.images)
    )
    if keep.sum() < 2:
        raise ConfigurationError(
            f"{path}: {int(keep.sum())} photographs remain, expected at least 2"
        )
    names = tuple(name for name, kept in zip(source.names, keep, strict=False) if kept)
    right = None if source.right is None else source.right[keep]
    return replace(source, images=source.images[keep], names=names, right=right)


def read_names(path: Path | None) -> list[str]:
    """The names in a text file, one per line, sorted and without repetition; none for no file."""
    text = read_capped(path, TABLE_CAP_BYTES).decode() if path else ""
    return sorted({line.strip() for line in text.splitlines() if line.strip()})


def _read_npz(path: Path) -> Source:
    """`images` and, if present, `names` and `laterality` (true = right) of an .npz file, never unpickled."""
    data = read_capped(path, SOURCE_CAP_BYTES)
    found = arrays_of(data, path, ("images", "names", "laterality"))
    if "images" not in found:
        raise ConfigurationError(f"{path}: no array `images`; found {sorted(found)}")
    right = found["laterality"].astype(bool) if "laterality" in found else None
    return Source(
        found["images"],
        tuple(map(str, found.get("names", ()))),
        right,
        hashlib.sha256(data).hexdigest(),
    )


def arrays_of(data: bytes, path: Path, wanted: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Those of the arrays `wanted` that the .npz `data` of `path` holds; nothing is unpickled.

    Raises ConfigurationError for what is no .npz, is damaged, holds Python objects, or unpacks to more than the cap.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size <= SOURCE_CAP_BYTES:
            with np.load(io.BytesIO(data), allow_pickle=False) as file:
                return {name: file[name] for name in wanted if name in file}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ConfigurationError(
            f"{path}: expected an .npz of arrays without Python objects; reading it gave {type(error).__name__}",
            hint="write it with numpy.savez",
        ) from None
    raise ConfigurationError(
        f"{path}: unpacks to {size} bytes, expected at most {SOURCE_CAP_BYTES}"
    )


def _read_folder(folder: Path, size_px: int, channels: int) -> Source:
    """The photographs directly in `folder`, sorted by name."""
    digest, images, names = hashlib.sha256(), [], []
    for path in sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES):
        data = read_capped(path, PHOTOGRAPH_CAP_BYTES)
        digest.update(hashlib.sha256(data).digest())
        names.append(path.name)
        images.append(_square(Image.open(io.BytesIO(data)), size_px, channels))
    if not images:
        raise ConfigurationError(f"{folder}: no photographs ({', '.join(IMAGE_SUFFIXES)})")
    return Source(
        np.stack(images), tuple(names), _sides(folder / "labels.csv", names), digest.hexdigest()
    )


def _square(image: Image.Image, size_px: int, channels: int) -> np.ndarray:
    """The central square, resized (antialiased), uint8 [S, S, C]."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    cut = image.convert("RGB" if channels == 3 else "L").crop((left, top, left + side, top + side))
    pixels = np.asarray(cut.resize((size_px, size_px), Image.Resampling.LANCZOS))
    return pixels.reshape(size_px, size_px, channels)


def _sides(table: Path, names: Sequence[str]) -> np.ndarray | None:
    """True for right, in the order of `names`; None unless the table gives every photograph's side."""
    if not table.is_file():
        return None
    rows = csv.DictReader(io.StringIO(read_capped(table, TABLE_CAP_BYTES).decode("utf-8-sig")))
    side = {row.get("file"): row.get("laterality") for row in rows}
    if not all(side.get(name) in ("L", "R") for name in names):
        return None
    return np.array([side[name] == "R" for name in names])


def views(source: Source, count: int, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Every photograph `count` times, the first time as it is, then rotated up to 6° and enlarged 5–12 %.

    Where sides are known each view is also mirrored and changes side. Returns [M, C, S, S] in [−1, 1] and side [M].
    """
    plain = to_unit(source.images)
    side = (
        torch.zeros(len(plain), dtype=torch.long)
        if source.right is None
        else torch.as_tensor(source.right).long()
    )
    made, sides = [plain], [side]
    for _ in range(count - 1):
        angle = torch.as_tensor(
            random.uniform(-6, 6, len(plain)) * math.pi / 180, dtype=torch.float32
        )
        shrink = torch.as_tensor(1 / random.uniform(1.05, 1.12, len(plain)), dtype=torch.float32)
        cos, sin, zero = angle.cos() * shrink, angle.sin() * shrink, torch.zeros(len(plain))
        matrix = torch.stack(
            [torch.stack([cos, -sin, zero], 1), torch.stack([sin, cos, zero], 1)], 1
        )
        grid = F.affine_grid(matrix, list(plain.shape), align_corners=False)
        made.append(
            F.grid_sample(
                plain, grid, mode="bicubic", padding_mode="border", align_corners=False
            ).clamp(-1, 1)
        )
        sides.append(side)
    if source.right is not None:
        made, sides = made + [x.flip(3) for x in made], sides + [1 - s for s in sides]
    return torch.cat(made), torch.cat(sides)


def tinted(x: Tensor, generator: torch.Generator) -> Tensor:
    """`x` [N, C, S, S] with each channel's brightness scaled by 0.9 to 1.1 (black stays black)."""
    scale = 0.9 + 0.2 * torch.rand(len(x), x.shape[1], 1, 1, generator=generator)
    return ((x + 1) * scale - 1).clamp(-1, 1)
