"""A public PCA basis of latent codes: fewer coordinates, the rest left to the prior.

In: for `fit`, latent rows of PUBLIC images.
Out: a `Basis`, on disk as safetensors that a plan pins by SHA-256 (`synthesis.privatize.basis`).
Guarantees: a basis has orthonormal directions and positive spreads, or is refused.
Not covered: privacy. A basis fitted to patients' images would publish them: fit it on public
images, or on samples of a private model.
Source: docs/methods/dp-glow.md (PCA whitened with public statistics).
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


@dataclass(frozen=True)
class Basis:
    """d public directions in a space of n coordinates."""

    mean: Floats  # [n]
    directions: Floats  # [d, n], orthonormal
    spread: Floats  # [d], the standard deviation along each direction

    def __post_init__(self) -> None:
        if not self._fits():
            raise RefusedError(
                "basis: expected mean [n], directions [d, n], spread [d], "
                f"got directions {self.directions.shape}"
            )
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
        """Return [N, d] of [N, n]: whitened coordinates, of variance 1 on the public images."""
        return np.asarray((rows - self.mean) @ self.directions.T / self.spread, dtype=np.float64)

    def restore(self, reduced: Floats, fresh: Floats) -> Floats:
        """Return [N, n]: the reduced coordinates, and `fresh` in all other directions.

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
    arrays = {"mean": basis.mean, "directions": basis.directions, "spread": basis.spread}
    tensors.write(
        path,
        {name: np.ascontiguousarray(array, dtype=np.float32) for name, array in arrays.items()},
    )


def load(path: Path) -> Basis:
    """Read a basis that `save` wrote; raises RefusedError for anything else."""
    arrays = tensors.read(path, max_bytes=BASIS_CAP_BYTES)
    if set(arrays) != {"mean", "directions", "spread"}:
        raise RefusedError(
            f"{path}: expected mean, directions and spread, got {sorted(arrays)[:5]}"
        )
    return Basis(*(arrays[name].astype(np.float64) for name in ("mean", "directions", "spread")))
