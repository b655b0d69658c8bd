"""A public PCA basis of latent codes: fewer coordinates, the rest left to the prior.

In: for `fit`, latent rows of PUBLIC images, or of samples of a private model.
Out: a `Basis`, in a file that a plan pins by SHA-256 (`synthesis.privatize.basis`).
Guarantees: a basis has orthonormal directions and positive spreads, or is refused.
Not covered: privacy. A basis fitted to patients' images would publish them.
Source: docs/methods/dp-glow.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.arrays import Floats
from common.errors import ConfigurationError, RefusedError
from common.wire import tensors

BASIS_CAP_BYTES = 1 << 28
ORTHONORMAL = 1e-4  # float32 directions
LEAST_SPREAD = 1e-6
ARRAYS = ("mean", "directions", "spread")  # of a basis, in a file


@dataclass(frozen=True)
class Basis:
    """d public directions in a space of n coordinates."""

    mean: Floats  # [n]
    directions: Floats  # [d, n], orthonormal
    spread: Floats  # [d], the standard deviation along each direction

    def __post_init__(self) -> None:
        # the shapes
        if not self._fits():
            raise RefusedError(
                "basis: expected mean [n], directions [d, n], spread [d], "
                f"got directions {self.directions.shape}"
            )

        # the values
        products = self.directions @ self.directions.T
        off = float(np.abs(products - np.eye(self.components)).max())
        if not off <= ORTHONORMAL or not bool((self.spread > 0).all()):
            raise RefusedError(
                f"basis: directions are not orthonormal (off by {off:.2g}), "
                "or a spread is not positive"
            )

    @property
    def components(self) -> int:
        """d, how many coordinates remain."""
        return len(self.directions)

    @property
    def coordinates(self) -> int:
        """n, how many there are before: the flow's top level, or all."""
        return int(self.directions.shape[1])

    def first(self, components: int) -> Basis:
        """Return the first directions alone; raises ConfigurationError when there are fewer."""
        if not 1 <= components <= self.components:
            raise ConfigurationError(
                f"basis: {components} components asked for, the file has {self.components}"
            )
        return Basis(self.mean, self.directions[:components], self.spread[:components])

    def reduce(self, rows: Floats) -> Floats:
        """Return rows [N, n] as whitened coordinates [N, d], of variance 1 on public images."""
        return np.asarray((rows - self.mean) @ self.directions.T / self.spread, dtype=np.float64)

    def restore(self, reduced: Floats, fresh: Floats) -> Floats:
        """Return rows [N, n] with the coordinates `reduced`, and `fresh` in other directions.

        `fresh` [N, n] is drawn from the prior.
        """
        rest = fresh - fresh @ self.directions.T @ self.directions
        whole = self.mean + (reduced * self.spread) @ self.directions + rest
        return np.asarray(whole, dtype=np.float64)

    def _fits(self) -> bool:
        """Whether the three arrays have shapes of one basis and finite values."""
        if self.directions.ndim != 2:
            return False
        d, n = self.directions.shape
        shapes = self.mean.shape == (n,) and self.spread.shape == (d,)
        arrays = (self.mean, self.directions, self.spread)
        return 1 <= d <= n and shapes and all(np.isfinite(array).all() for array in arrays)


def fit(rows: Floats, components: int) -> Basis:
    """Return the first principal directions of PUBLIC latent rows [N, n], N > components.

    Raises ConfigurationError for too few rows or coordinates.
    """
    if not 1 <= components < min(len(rows), rows.shape[1] + 1):
        raise ConfigurationError(
            f"basis: {components} components need more than {components} public images, "
            f"got {len(rows)}"
        )
    mean = rows.mean(axis=0)
    _, spread, directions = np.linalg.svd(rows - mean, full_matrices=False)
    spread = spread[:components] / np.sqrt(len(rows) - 1)
    return Basis(mean, directions[:components], np.maximum(spread, LEAST_SPREAD))


def save(basis: Basis, path: Path) -> None:
    """Write a basis as safetensors: `mean`, `directions`, `spread`, float32."""
    arrays = {}
    for name in ARRAYS:
        arrays[name] = np.ascontiguousarray(getattr(basis, name), dtype=np.float32)
    tensors.write(path, arrays)


def load(path: Path) -> Basis:
    """Read a basis that `save` wrote; raises RefusedError for anything else."""
    arrays = tensors.read(path, max_bytes=BASIS_CAP_BYTES)
    if set(arrays) != set(ARRAYS):
        raise RefusedError(
            f"{path}: expected mean, directions and spread, got {sorted(arrays)[:5]}"
        )
    return Basis(*(arrays[name].astype(np.float64) for name in ARRAYS))
