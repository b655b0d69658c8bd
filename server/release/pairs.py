"""The pairs of a release: drawn once from the final generator; masks as NIfTI.

In: the final global weights of model "wgan".
Out: uint8 [N, S, S, 2], image and mask of 0 and 255.
Guarantees: drawing sees the weights alone, so it is post-processing of what the sites sent; the
same weights give the same pairs, which are kept on disk.
Not covered: privacy, which the noised updates have; utility.
"""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np

from common.arrays import Pairs, Pixels
from common.study.training import WganPlan
from common.wire import tensors
from server.operator.caps import PAIRS_CAP_BYTES

STORE_CAP_BYTES = PAIRS_CAP_BYTES + (1 << 20)  # with the file's own head


def draw_pairs(
    folder: Path, weights: tensors.Arrays, digest: str, plan: WganPlan, size_px: int
) -> Pairs:
    """Return the study's pairs uint8 [released_pairs, S, S, 2]: those in `folder`, or new ones.

    New ones are stored there. `digest` is the SHA-256 of the weights' file, so other weights get
    other pairs.
    """
    path = folder / f"{digest[:32]}.safetensors"
    if not path.exists():
        tensors.write(path, {"pairs": _sample(weights, plan, size_px)})
    pairs = tensors.read(path, max_bytes=STORE_CAP_BYTES)["pairs"]
    return pairs.astype(np.uint8, copy=False)


def _sample(weights: tensors.Arrays, plan: WganPlan, size_px: int) -> Pairs:
    """Fresh latents from the operating system through the averaged generator (imports torch)."""
    import torch

    from common.models.wgan import load_average
    from common.models.wgan_pairs import sample

    random = torch.Generator().manual_seed(int.from_bytes(os.urandom(7)))
    return sample(load_average(weights, plan, size_px), plan.released_pairs, random)


def nifti_bytes(mask: Pixels) -> bytes:
    """Return a gzipped 2-D NIfTI-1 file of a mask [H, W]: uint8 0 and 1 (vessel), pixels of 1 mm.

    The first NIfTI axis is the picture's column, and the affine turns both axes. So viewers and
    ITK show and index it like the PNG; with nibabel the array is transposed. The file holds no time
    and no name: the same mask gives the same bytes.
    """
    import nibabel

    image = nibabel.Nifti1Image(  # type: ignore[no-untyped-call]
        (mask > 0).astype(np.uint8).T, np.diag([-1.0, -1.0, 1.0, 1.0])
    )
    image.header.set_xyzt_units("mm")  # type: ignore[no-untyped-call]
    return gzip.compress(image.to_bytes(), mtime=0)
