"""The spaces in which images are compared: pixels, pixels of equal contrast, fixed filters.

  pixels     as they are
  contrast   every channel at mean 0 and deviation 1; a recoloured copy stays near
  filtered   two strided convolutions with fixed random filters, and ReLU; a slightly moved copy
             stays near

In: uint8 images [N, H, W, C]. Out: `Views`: vectors that the spaces share, in float64 or float32.
Guarantees: numpy alone; nothing is random; means and deviations are taken in float64; an image's
vectors do not depend on the images beside it.
Not covered: malice. The filters are fixed, so somebody who knows them could evade them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.arrays import Floats, Images
from common.errors import ConfigurationError

# in this order: an attacker's bootstrap draws depend on it
SPACES = ("pixels", "contrast", "filtered")
SIZE_PX = 64  # images are compared at this size
CHANNELS = 16
FILTER_SEED = 50403
BATCH = 64  # images that are filtered at once
LEAST_DEVIATION = 1e-3  # is added to deviations, so that a flat channel divides by no zero

Array = NDArray[np.floating]


def check_images(released: Images, real: Images, owner: NDArray[np.integer]) -> None:
    """Raise ConfigurationError unless both are uint8 stacks of one size, of two patients or more.

    `owner` int [N] says whose each real image is.
    """
    for name, images in (("released", released), ("real", real)):
        fits = images.ndim == 4 and images.dtype == np.uint8 and len(images)
        if not fits or images.shape[1:] != released.shape[1:]:
            raise ConfigurationError(
                f"audit: {name}: expected uint8 images [N, H, W, C] of one size; "
                f"got {images.dtype} {images.shape[1:]}"
            )
    if len(owner) != len(real) or len(np.unique(owner)) < 2:
        raise ConfigurationError(
            "audit: expected one owner per real image, and two patients or more"
        )


@dataclass(frozen=True)
class Views:
    """Images as vectors, in parts that spaces share.

    `parts`: each [N, D]. A space's vector is some of them side by side, each by a factor an image:
    `factors` [N] by space and part, None for 1. `sizes`: over how many values a space's mean is.
    """

    parts: dict[str, Array]
    factors: dict[str, dict[str, Floats | None]]
    sizes: dict[str, int]

    @classmethod
    def join(cls, blocks: Sequence[Views]) -> Views:
        """Return the views of several blocks of images, one after the other; empties the blocks."""
        parts: dict[str, Array] = {}
        for part in list(blocks[0].parts):
            parts[part] = np.concatenate([block.parts.pop(part) for block in blocks])
        factors: dict[str, dict[str, Floats | None]] = {}
        for space, by_part in blocks[0].factors.items():
            factors[space] = {}
            for part in by_part:
                some = [block.factors[space][part] for block in blocks]
                known = [factor for factor in some if factor is not None]
                factors[space][part] = np.concatenate(known) if known else None
        return cls(parts, factors, blocks[0].sizes)

    @property
    def movable(self) -> list[str]:
        """Return the parts without factors: moved by one vector they keep their differences."""
        found: list[str] = []
        for part in self.parts:
            if all(by_part.get(part) is None for by_part in self.factors.values()):
                found.append(part)
        return found

    def square_norms(self, space: str) -> Floats:
        """Return the squared norm of each image's vector in a space, float64 [N]."""
        count = len(next(iter(self.parts.values())))
        total = np.zeros(count)
        for part, factor in self.factors[space].items():
            rows = self.parts[part]
            norms = np.einsum("nd,nd->n", rows, rows, dtype=np.float64)
            total += norms if factor is None else norms * np.square(factor)
        return total


def view(images: Images, spaces: Sequence[str], dtype: type[np.floating]) -> Views:
    """Return the views of uint8 images [N, H, W, C] in these spaces.

    Pixels and contrast share a part a channel: its pixels less their mean. Pixels have the means as
    one more part; in contrast the factor is 1 / deviation.
    """
    levels = unit(images)
    count, height, width, channels = levels.shape
    parts: dict[str, Array] = {}
    factors: dict[str, dict[str, Floats | None]] = {space: {} for space in spaces}
    sizes = dict.fromkeys(spaces, height * width * channels)
    # a part a channel, and one of the means
    means = np.empty((count, channels))
    for channel in range(channels):
        part = f"channel {channel}"
        rows = np.ascontiguousarray(levels[..., channel]).reshape(count, -1)
        means[:, channel] = rows.mean(axis=1)
        rows = rows - means[:, channel, None]
        deviations = np.sqrt(np.einsum("nd,nd->n", rows, rows) / (height * width))
        parts[part] = rows.astype(dtype)
        for space, factor in ("pixels", None), ("contrast", 1 / (deviations + LEAST_DEVIATION)):
            if space in spaces:
                factors[space][part] = factor
    if "pixels" in spaces:
        parts["means"] = (means * np.sqrt(height * width)).astype(dtype)
        factors["pixels"]["means"] = None
    # the filters' responses
    if "filtered" in spaces:
        parts["filtered"] = filter_responses(levels.astype(dtype))
        factors["filtered"]["filtered"] = None
        sizes["filtered"] = parts["filtered"].shape[1]
    return Views(parts, factors, sizes)


def unit(images: Images) -> Floats:
    """Return [N, S, S, C] in [0, 1].

    Images are averaged down to `SIZE_PX` where their size is a multiple of it.
    """
    factor = max(1, images.shape[1] // SIZE_PX)
    if factor == 1 or images.shape[1] % factor or images.shape[2] % factor:
        return np.asarray(images / 255.0)
    # exact sums of tiles of factor x factor pixels, first down and then across
    n, height, width, channels = images.shape
    down = images.reshape(n, height // factor, factor, width * channels)
    sums = down.sum(axis=2, dtype=np.uint32)
    across = sums.reshape(n, height // factor, width // factor, factor, channels)
    return np.asarray(across.sum(axis=3, dtype=np.uint32) / factor**2 / 255)


def filter_responses(images: Array) -> Array:
    """Return [N, D]: two strided convolutions with fixed random filters and ReLU."""
    rng = np.random.default_rng(FILTER_SEED)
    channels = images.shape[-1]
    first = _zero_mean(rng.normal(size=(5 * 5 * channels, CHANNELS)))
    second = rng.normal(size=(3 * 3 * CHANNELS, 2 * CHANNELS)) / np.sqrt(3 * 3 * CHANNELS)
    first = _rows_first(first, channels, 5).astype(images.dtype)
    second = _rows_first(second, CHANNELS, 3).astype(images.dtype)
    parts: list[Array] = []
    for start in range(0, len(images), BATCH):
        x = _convolve(images[start : start + BATCH], first, 5)
        x = _convolve(x, second, 3)
        parts.append(x.reshape(len(x), -1))
    return np.concatenate(parts)


def _zero_mean(filters: Array) -> Array:
    """Filters that see structure, not brightness."""
    centred = filters - filters.mean(axis=0)
    return np.asarray(centred / np.linalg.norm(centred, axis=0))


def _rows_first(filters: Array, channels: int, size: int) -> Array:
    """Filters drawn as [channels, rows, columns] in the order in which pixels lie in memory."""
    by_channel = filters.reshape(channels, size, size, -1)
    return by_channel.transpose(1, 2, 0, 3).reshape(filters.shape)


def _convolve(x: Array, filters: Array, size: int) -> Array:
    """ReLU of a `size` x `size` convolution with stride 2: [N, H, W, C] to [N, ~H/2, ~W/2, F]."""
    n, height, width, channels = x.shape
    # a patch is `size` runs of `size` pixels, each with its channels beside it
    lines = x.reshape(n, height, width * channels)
    windows = np.lib.stride_tricks.sliding_window_view(lines, (size, size * channels), axis=(1, 2))
    patches = windows[:, ::2, :: 2 * channels]
    n, rows, columns = patches.shape[:3]
    # a product an image: of one for all, equal images would have other roundings at other places
    responses = np.maximum(patches.reshape(n, rows * columns, -1) @ filters, 0.0)
    return responses.reshape(n, rows, columns, -1)
