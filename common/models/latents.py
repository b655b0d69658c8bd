"""A flow's latent codes as flat rows, and a public PCA of them: fewer coordinates, the rest left to the prior.

In: uint8 images and a flow; for `fit`, latent rows of PUBLIC images. Out: float64 rows; a `Basis`, on disk as safetensors that a
plan pins by SHA-256 (`synthesis.privatize.basis`). Guaranteed: an image's row does not depend on its company (one batch size,
padded); rows are finite; a stored basis has orthonormal directions and positive spreads, or is refused.
Not: privacy. A basis fitted to patients' images would publish them: fit it on public images, or on samples of a private model.

Sources: Shibata et al. 2023 (latents); methods/dp-glow.md, section 5 (PCA whitened with public statistics).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.arrays import Floats, Images
from common.errors import ConfigurationError, RefusedError
from common.models.glow import Glow
from common.models.glow_pixels import from_uint8, to_uint8
from common.wire import tensors

BATCH = 16  # images per encoder and decoder call, whatever a group holds
BASIS_CAP_BYTES = 1 << 28
ORTHONORMAL = 1e-4  # float32 directions


def encoded(images: Images, model: Glow) -> Floats:
    """Latent codes [N, D] of uint8 [N, H, W, C], float64, finest first, top level last; not finite: a zero row."""
    rows = []
    with torch.no_grad():
        for start in range(0, len(images), BATCH):
            some = images[start : start + BATCH]
            padded = np.concatenate(
                [some, np.zeros((BATCH - len(some), *some.shape[1:]), np.uint8)]
            )
            parts, _ = model.encode(from_uint8(padded))
            rows.append(
                torch.cat([part.flatten(1) for part in parts], dim=1)[: len(some)].double().numpy()
            )
    latents = np.concatenate(rows)
    finite = np.isfinite(latents).all(axis=1, keepdims=True)
    return np.asarray(np.where(finite, latents, 0.0), dtype=np.float64)


def decoded(latents: Floats, model: Glow) -> Images:
    """uint8 [N, H, W, C] of latent codes [N, D]: decoded, clamped, 8 bit."""
    images = [np.empty((0, model.size_px, model.size_px, model.channels), np.uint8)]
    for start in range(0, len(latents), BATCH):
        whole = torch.from_numpy(latents[start : start + BATCH]).float()
        images.append(to_uint8(model.decode(_parts(whole, model))))
    return np.concatenate(images)


def _parts(flat: Tensor, model: Glow) -> list[Tensor]:
    """The latent parts of [N, D], finest level first."""
    sizes = [int(np.prod(shape)) for shape in model.part_shapes]
    pieces = torch.split(flat, sizes, dim=1)
    return [piece.view(-1, *shape) for piece, shape in zip(pieces, model.part_shapes, strict=True)]


@dataclass(frozen=True)
class Basis:
    """d public directions in a space of `coordinates`: `mean` [n], orthonormal `directions` [d, n], `spread` [d] along each."""

    mean: Floats
    directions: Floats
    spread: Floats

    def __post_init__(self) -> None:
        d, n = self.directions.shape if self.directions.ndim == 2 else (0, 0)
        finite = all(
            np.isfinite(array).all() for array in (self.mean, self.directions, self.spread)
        )
        if not (1 <= d <= n and self.mean.shape == (n,) and self.spread.shape == (d,) and finite):
            raise RefusedError(
                f"basis: expected mean [n], directions [d, n], spread [d], got directions {self.directions.shape}"
            )
        off = float(np.abs(self.directions @ self.directions.T - np.eye(d)).max())
        if not off <= ORTHONORMAL or not bool((self.spread > 0).all()):
            raise RefusedError(
                f"basis: directions are not orthonormal (off by {off:.2g}), or a spread is not positive"
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
        """The first directions alone; raises ConfigurationError when there are fewer."""
        if not 1 <= components <= self.components:
            raise ConfigurationError(
                f"basis: {components} components asked for, the file has {self.components}"
            )
        return Basis(self.mean, self.directions[:components], self.spread[:components])

    def reduced(self, rows: Floats) -> Floats:
        """[N, d] of [N, n]: whitened coordinates, of variance 1 on the public images."""
        return np.asarray((rows - self.mean) @ self.directions.T / self.spread, dtype=np.float64)

    def restored(self, reduced: Floats, fresh: Floats) -> Floats:
        """[N, n]: the reduced coordinates, and in all other directions the fresh draws from the prior."""
        rest = fresh - fresh @ self.directions.T @ self.directions
        return np.asarray(
            self.mean + (reduced * self.spread) @ self.directions + rest, dtype=np.float64
        )


def fit(rows: Floats, components: int) -> Basis:
    """The first principal directions of PUBLIC latent rows [N, n], N > components. Raises ConfigurationError."""
    if not 1 <= components < min(len(rows), rows.shape[1] + 1):
        raise ConfigurationError(
            f"basis: {components} components need more than {components} public images, got {len(rows)}"
        )
    mean = rows.mean(axis=0)
    _, spread, directions = np.linalg.svd(rows - mean, full_matrices=False)
    spread = spread[:components] / np.sqrt(len(rows) - 1)
    return Basis(mean, directions[:components], np.maximum(spread, 1e-6))


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
