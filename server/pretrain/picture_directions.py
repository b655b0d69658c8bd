"""Public directions of a flow's latents that vary most with the pictures.

In: latent rows of PUBLIC images, and the images.
Out: a `Basis`.
Guarantees: orthonormal directions, of deviation 1 on the public images until they are scaled.
Not covered: privacy. Directions or lengths of patients' images would publish them.
Source: partial least squares by one singular value decomposition (Bookstein et al. 1996).
"""

from __future__ import annotations

import numpy as np

from common.arrays import Floats, Images
from common.errors import ConfigurationError
from common.models.basis import LEAST_SPREAD, Basis

PICTURE_PX = 16  # of what a picture is compared by
REACHING = 0.9  # of the public images are as long as the clip's radius, or longer


def fit_to_pictures(
    rows: Floats, images: Images, components: int, weights: Floats | None = None
) -> Basis:
    """Return the directions of PUBLIC latent rows [N, n] that vary most with their pictures.

    They are the left singular vectors of the covariance of latents and pictures. A picture is its
    image, uint8 [N, S, S, C], in means of blocks. A flow's latents are nearly white, so their own
    principal directions need not show. `weights` [N] of sum 1; None counts all alike.
    Raises ConfigurationError for too few rows, coordinates or pixels, or another number of images.
    """
    pictures = _block_means(images)
    most = min(len(rows) - 1, rows.shape[1], pictures.shape[1])
    if not 1 <= components <= most or len(rows) != len(images):
        raise ConfigurationError(
            f"basis: {components} components of {len(rows)} latent rows and {len(images)} images: "
            f"expected one image a row, and 1 to {max(most, 0)} components"
        )

    # the covariance of latents and pictures, and its directions
    if weights is None:
        weights = np.full(len(rows), 1 / len(rows))
    mean = weights @ rows
    apart = rows - mean
    weighed = apart * weights[:, None]
    directions, _, _ = np.linalg.svd(
        weighed.T @ (pictures - weights @ pictures), full_matrices=False
    )
    chosen = directions[:, :components].T

    # the latents' deviation along each
    spread = np.sqrt(weights @ np.square(apart @ chosen.T))
    return Basis(mean, chosen, np.maximum(spread, LEAST_SPREAD))


def scale_to_radius(found: Basis, rows: Floats, weights: Floats | None = None) -> Basis:
    """Return the basis with all spreads times one factor: most PUBLIC rows then reach the clip.

    The share REACHING of the rows [N, n] is at least sqrt(d) long, the radius of the Gaussian
    mechanism's ball. Noise is as wide as the radius, whatever the films: a radius that no film
    reaches is paid for with noise and clips nothing. `weights` [N] of sum 1; None counts all alike.
    Raises ConfigurationError where that many rows are the mean itself.
    """
    if weights is None:
        weights = np.full(len(rows), 1 / len(rows))
    lengths = np.linalg.norm(found.reduce(rows), axis=1)
    order = np.argsort(lengths)
    below = np.searchsorted(np.cumsum(weights[order]), 1 - REACHING)
    length = float(lengths[order][below])
    if not length > 0:
        raise ConfigurationError("basis: the public images do not vary along its directions")
    return Basis(found.mean, found.directions, found.spread * (length / found.components**0.5))


def _block_means(images: Images) -> Floats:
    """Images uint8 [N, S, S, C] as rows of at most PICTURE_PX² means each, for every channel."""
    side = images.shape[1]
    starts = np.unique(np.linspace(0, side, min(side, PICTURE_PX), endpoint=False).astype(np.int64))
    sizes = np.diff(np.append(starts, side))
    sums = np.add.reduceat(images.astype(np.float64), starts, axis=1)
    sums = np.add.reduceat(sums, starts, axis=2)
    means = sums / (sizes[:, None] * sizes[None, :])[None, :, :, None]
    return np.asarray(means.reshape(len(images), -1), dtype=np.float64)
