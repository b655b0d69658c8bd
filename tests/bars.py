"""Invented pairs of image and mask that a small network learns in seconds."""

import numpy as np

from common.measure import pair_segmenter

RECIPE = pair_segmenter.Recipe(
    width=4, epochs=6, batch_size=8, grid=(pair_segmenter.Choice(0.0, 5e-3),)
)


def bars(count: int, seed: int) -> np.ndarray:
    """Bright bars on noise with exact masks, uint8 [N, 16, 16, 2]."""
    rng = np.random.default_rng(seed)
    pairs = np.zeros((count, 16, 16, 2), np.uint8)
    for i, (row, thick) in enumerate(
        zip(rng.integers(2, 10, count), rng.integers(2, 5, count), strict=True)
    ):
        pairs[i, row : row + thick, :, 1] = 255
        if rng.random() < 0.5:
            pairs[i] = pairs[i].transpose(1, 0, 2)
    pairs[..., 0] = np.where(pairs[..., 1] > 0, 170, 80) + rng.normal(0, 12, pairs.shape[:3])
    return pairs


def shuffled_masks(pairs: np.ndarray) -> np.ndarray:
    """The same images with the masks of others."""
    wrong = pairs.copy()
    wrong[..., 1] = np.roll(pairs[..., 1], 1, axis=0)
    return wrong
