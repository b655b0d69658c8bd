"""Looks at the images of a site without patients: flat or saturated ones, repeats and copies.

In: uint8 images [n, H, W, C], the site that sent them, thumbnails of what was accepted before.
Out: nothing, or RefusedError, under whose code the site goes into quarantine:
  E-INTAKE-IMAGES-FLAT      an image has next to no contrast, or is black and white alone
  E-INTAKE-IMAGES-REPEATED  the same pixels stand twice among a site's images
  E-INTAKE-IMAGES-COPIED    another site sent an image before, in this round or an earlier study
Guarantees: pure values; what a site itself sent in an earlier study is no copy, because a frozen
group comes again as the bytes that were stored. Memory is bounded by MOST_THUMBNAILS.
Not covered: images that are wrong in a way that a person would see; copies that were changed by
more than NEAR grey levels on average, beside their brightness.

The thresholds were chosen on public images and on averages of images of the shipped generator:
their standard deviation is at least 23 grey levels, at most 0.39 of their values are 0 or 255, and
two averages of 20 differ by at least 0.67 grey levels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import RefusedError
from common.privacy.boundary import PART_CAP_BYTES
from common.wire import tensors
from server.rounds.record import read_sealed

FLAT = 2.0  # standard deviation, grey levels
SATURATED = 0.999  # share of values that are 0 or 255
NEAR = 0.2  # mean difference of two thumbnails, grey levels
SIDE = 16  # of a thumbnail
MOST_THUMBNAILS = 100_000
Thumbnails = NDArray[np.float32]
Received = NDArray[Any]  # of tensors that passed boundary rules 10 and 11: uint8 [n, H, W, C]


def check_contrast(images: Received, privatized: Received) -> None:
    """Raise RefusedError (E-INTAKE-IMAGES-FLAT) for an image without contrast of its own.

    `privatized` [n]: 1 where an image carries noise. Such an image may be black and white alone,
    for strong noise drives every value to an end.
    """
    for image, noised in zip(images, privatized, strict=True):
        saturated = not noised and np.isin(image, (0, 255)).mean() > SATURATED
        if saturated or image.std(dtype=np.float64) < FLAT:
            raise _refusal("an image has no contrast, or nothing but black and white", "FLAT")


def shrink(images: Received) -> Thumbnails:
    """Return grey thumbnails without their brightness: float32 [n, side x side], grey levels."""
    grey = images.mean(axis=3, dtype=np.float32)
    for axis in (1, 2):
        size = grey.shape[axis]
        side = min(SIDE, size)
        edges = np.arange(side) * size // side
        counts = np.diff(np.append(edges, size))
        shape = [1, 1, 1]
        shape[axis] = side
        grey = np.add.reduceat(grey, edges, axis=axis) / counts.reshape(shape)
    flat: Thumbnails = grey.reshape(len(images), -1).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    return flat


@dataclass
class _Seen:
    """Thumbnails of what one site sent, in this round or in an earlier study."""

    thumbnails: Thumbnails
    earlier: bool


class Gallery:
    """The images that sites sent, small, to recognise one that comes again."""

    def __init__(self) -> None:
        self._seen: dict[str, list[_Seen]] = {}
        self._pixels: dict[str, set[bytes]] = {}
        self._count = 0

    def add(self, site: str, images: Received, *, earlier: bool = False) -> None:
        """Remember what a site sent, in this round or in an `earlier` study; up to a bound."""
        if not earlier:
            self._pixels.setdefault(site, set()).update(image.tobytes() for image in images)
        if self._count + len(images) <= MOST_THUMBNAILS:
            self._count += len(images)
            self._seen.setdefault(site, []).append(_Seen(shrink(images), earlier))

    def forget(self, site: str) -> None:
        """Forget what a site sent in this round."""
        self._pixels.pop(site, None)
        self._seen[site] = [one for one in self._seen.get(site, []) if one.earlier]

    def check(self, site: str, images: Received) -> None:
        """Raise RefusedError for images that stand twice, or that another site sent before."""
        known = self._pixels.get(site, set())
        found = {image.tobytes() for image in images}
        if len(found) < len(images) or found & known:
            raise _refusal("the same pixels stand twice in its batch", "REPEATED")
        own = [one.thumbnails for one in self._seen.get(site, []) if one.earlier]
        others = []
        for name, seen in self._seen.items():
            if name != site:
                others += [one.thumbnails for one in seen]
        for thumbnail in shrink(images):
            if _stands_in(thumbnail, others) and not _stands_in(thumbnail, own):
                raise _refusal("an image is one that another site sent", "COPIED")


def _stands_in(thumbnail: Thumbnails, batches: list[Thumbnails]) -> bool:
    """Whether a thumbnail is near one of these."""
    for batch in batches:
        if batch.shape[1] != len(thumbnail):
            continue
        # contrasts that differ by more than NEAR exclude the rest of the work
        contrasts = np.abs(batch).mean(axis=1)
        alike = np.abs(contrasts - np.abs(thumbnail).mean()) <= NEAR
        if (np.abs(batch[alike] - thumbnail).mean(axis=1) <= NEAR).any():
            return True
    return False


def earlier_images(studies: Path, current: Path) -> Iterator[tuple[str, Received]]:
    """Yield site and images of every part that lies in the folders of other studies.

    A part that cannot be read is passed over: nothing rests on it.
    """
    for path in sorted(studies.glob("*/images/*/*.sealed")):
        if current in path.parents:
            continue
        try:
            payload = read_sealed(path).payload
            images = tensors.loads(payload, max_bytes=PART_CAP_BYTES)["images"]
        except (RefusedError, OSError, KeyError):
            continue
        if images.ndim == 4 and images.dtype == np.uint8 and images.size:
            yield path.parent.name, images


def _refusal(what: str, code: str) -> RefusedError:
    return RefusedError(f"images: {what}", code=f"E-INTAKE-IMAGES-{code}")
