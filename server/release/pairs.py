"""The pairs of a release: drawn once from the released generator, and written as pictures, masks and NIfTI.

In: the final global weights of model "wgan". Out: uint8 pairs [N, S, S, 2] (image, mask 0 or 255), bytes of files, sheets for
the eye. Guaranteed: drawing sees the weights alone, so it is post-processing of what the sites sent; the latents come from the
operating system and are drawn once for a set of weights: a second release gives the same bytes; files hold no clock or name.
Not: privacy (the noised updates have it) or worth (server/evaluate/findings.py).
"""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np

from common.arrays import Images
from common.errors import PolicyError
from common.study.plan import Study, WganPlan
from common.wire import tensors

MOST_PAIRS = 60_000  # three files each: a release holds at most 200,000
STORE_CAP_BYTES = 4 << 30
SHOWN = 48  # on the contact sheet and the page
RED = np.array([255, 60, 40], np.float64)


def releases_pairs(study: Study) -> bool:
    """Return whether a study's release is pairs drawn from its generator (and so has no k)."""
    return study.synthesis is None and study.models.wgan is not None


def check_releasable(study: Study) -> None:
    """Raise PolicyError (E-PLAN-PAIRS) for a plan whose pairs could not be released as planned."""
    plan = study.models.wgan
    if plan is None or study.synthesis is not None:
        return
    if len(study.strata()) != 1:
        raise PolicyError(
            f"models.wgan draws pairs without a label, the plan has {len(study.strata())}",
            hint="merge intake.labels into one with intake.merge_labels",
            code="E-PLAN-PAIRS",
        )
    if plan.released_pairs > MOST_PAIRS or plan.released_pairs < study.release.min_images:
        raise PolicyError(
            f"models.wgan.released_pairs is {plan.released_pairs}, expected release.min_images "
            f"({study.release.min_images}) to {MOST_PAIRS:,}",
            code="E-PLAN-PAIRS",
        )


def drawn(
    folder: Path, weights: tensors.Arrays, digest: str, plan: WganPlan, size_px: int
) -> Images:
    """Return the study's pairs uint8 [released_pairs, S, S, 2]: those in `folder`, or new ones that are stored there.

    `digest` is the SHA-256 of the weights' file: other weights get other pairs.
    """
    path = folder / f"{digest[:32]}.safetensors"
    if not path.exists():
        tensors.write(path, {"pairs": _sampled(weights, plan, size_px)})
    pairs = tensors.read(path, max_bytes=STORE_CAP_BYTES)["pairs"]
    return pairs.astype(np.uint8, copy=False)


def _sampled(weights: tensors.Arrays, plan: WganPlan, size_px: int) -> Images:
    """Fresh latents through the averaged generator (imports torch)."""
    import torch

    from common.models.wgan import load_average, sample

    random = torch.Generator().manual_seed(int.from_bytes(os.urandom(7)))
    return sample(load_average(weights, plan, size_px), plan.released_pairs, random)


def nifti_bytes(mask: Images) -> bytes:
    """Return a gzipped 2-D NIfTI-1 file of a mask [H, W] (not 0: vessel): uint8 0 and 1, pixels of 1 mm.

    The first NIfTI axis is the picture's column and the affine turns both axes, so viewers and ITK show and index it like the
    PNG; with nibabel the array is transposed. The same mask gives the same bytes.
    """
    import nibabel

    image = nibabel.Nifti1Image(  # type: ignore[no-untyped-call]
        (mask > 0).astype(np.uint8).T, np.diag([-1.0, -1.0, 1.0, 1.0])
    )
    image.header.set_xyzt_units("mm")  # type: ignore[no-untyped-call]
    return gzip.compress(image.to_bytes(), mtime=0)


def triptychs(images: Images, masks: Images, least_px: int = 128, gap: int = 2) -> Images:
    """Return uint8 [N, s, 3s + 2·gap, 3]: image, mask, and the mask in red over the image, side by side.

    `images` uint8 [N, S, S, 1], `masks` uint8 [N, S, S]; pixels are repeated until s is at least `least_px`.
    """
    times = max(1, -(-least_px // images.shape[1]))
    image, mask = (
        np.repeat(np.repeat(x, times, axis=1), times, axis=2) for x in (images[..., 0], masks)
    )
    grey = np.repeat(image[..., None], 3, axis=3)
    inked = np.where(mask[..., None] > 0, 0.45 * grey + 0.55 * RED, grey).astype(np.uint8)
    space = np.full((*grey.shape[:2], gap, 3), 255, np.uint8)
    return np.concatenate(
        [grey, space, np.repeat(mask[..., None], 3, axis=3), space, inked], axis=2
    )
