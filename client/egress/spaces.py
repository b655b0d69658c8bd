"""The spaces in which images are compared: pixels, pixels of equal contrast, fixed filters.

In: uint8 images [N, H, W, C]. Out: float64 vectors [N, D], and distances between them.
Guarantees: numpy alone; nothing is random.
Not covered: malice. The filters are fixed, so somebody who knows them could evade them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from common.arrays import Floats, Images
from common.errors import ConfigurationError

SIZE_PX = 64  # images are compared at this size
CHANNELS = 16
FILTER_SEED = 50403
BATCH = 256


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


def unit(images: Images) -> Floats:
    """Return float64 [N, S, S, C] in [0, 1].

    Images are averaged down to `SIZE_PX` where their size is a multiple of it.
    """
    factor = max(1, images.shape[1] // SIZE_PX)
    if factor == 1 or images.shape[1] % factor or images.shape[2] % factor:
        return np.asarray(images / 255.0)
    # average tiles of factor x factor pixels
    n, height, width, channels = images.shape
    tiles = images.reshape(n, height // factor, factor, width // factor, factor, channels)
    return np.asarray(tiles.mean(axis=(2, 4), dtype=np.float64) / 255)


def pixels(images: Floats) -> Floats:
    """Return [N, D]: the pixels."""
    return images.reshape(len(images), -1)


def contrast(images: Floats) -> Floats:
    """Return [N, D]: every channel of every image at mean 0 and deviation 1.

    A recoloured copy stays near.
    """
    centred = images - images.mean(axis=(1, 2), keepdims=True)
    return pixels(centred / (images.std(axis=(1, 2), keepdims=True) + 1e-3))


def filter_responses(images: Floats) -> Floats:
    """Return [N, D]: two strided convolutions with fixed random filters and ReLU.

    A slightly moved copy stays near.
    """
    rng = np.random.default_rng(FILTER_SEED)
    first = _zero_mean(rng.normal(size=(5 * 5 * images.shape[-1], CHANNELS)))
    second = rng.normal(size=(3 * 3 * CHANNELS, 2 * CHANNELS)) / np.sqrt(3 * 3 * CHANNELS)
    parts: list[Floats] = []
    for start in range(0, len(images), BATCH):
        x = _convolve(images[start : start + BATCH], first, 5)
        parts.append(pixels(_convolve(x, second, 3)))
    return np.concatenate(parts)


# in this order: an attacker's bootstrap draws depend on it
SPACES: dict[str, Callable[[Floats], Floats]] = {
    "pixels": pixels,
    "contrast": contrast,
    "filtered": filter_responses,
}


def distances(a: Floats, b: Floats) -> Floats:
    """Return root mean square differences [A, B] of rows."""
    squared = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None, :] - 2 * a @ b.T
    return np.asarray(np.sqrt(np.maximum(squared, 0.0) / a.shape[1]))


def _zero_mean(filters: Floats) -> Floats:
    """Filters that see structure, not brightness."""
    centred = filters - filters.mean(axis=0)
    return np.asarray(centred / np.linalg.norm(centred, axis=0))


def _convolve(x: Floats, filters: Floats, size: int) -> Floats:
    """ReLU of a `size` x `size` convolution with stride 2: [N, H, W, C] to [N, ~H/2, ~W/2, F]."""
    patches = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(1, 2))[:, ::2, ::2]
    n, height, width = patches.shape[:3]
    return np.maximum(patches.reshape(n, height, width, -1) @ filters, 0.0)
