"""Invented photographs for the tests of the audit."""

from __future__ import annotations

import numpy as np


def photographs(count: int, seed: int = 0, size: int = 32) -> np.ndarray:
    """Smooth coloured spots: images far apart from each other, as photographs are."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size
    images = []
    for _ in range(count):
        image = np.zeros((size, size, 3))
        for _ in range(8):
            cy, cx, width = rng.uniform(0.1, 0.9), rng.uniform(0.1, 0.9), rng.uniform(0.05, 0.2)
            image += (
                rng.uniform(0, 120, 3)
                * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / width**2)[..., None]
            )
        images.append(np.clip(image, 0, 255))
    return np.stack(images).astype(np.uint8)
