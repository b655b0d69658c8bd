"""Invented images for measurements: orange discs on black."""

import numpy as np


def draw_discs(count: int, seed: int, *, radius: float = 10.0, noise: float = 8.0) -> np.ndarray:
    """Orange discs on black with noise, uint8 [N, 32, 32, 3]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:32, :32] - 15.5
    inside = (y**2 + x**2 < radius**2)[..., None]
    colour = rng.normal([190, 110, 40], 12, (count, 1, 1, 3))
    pictures = np.where(inside, colour, 5) + rng.normal(0, noise, (count, 32, 32, 3))
    return pictures.clip(0, 255).astype(np.uint8)
