"""Plans whose checkpoints are of half the plan's size: one for each kind of checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from common.models import layouts
from common.study.planned import shapes_with_prefix
from common.wire import tensors
from tests.sites import write_plan
from tests.studies import VESSELS

# where a test says nothing else, a plan is one of 64 px with checkpoints of 32 px
PLAN_PX = 64
OTHER_PX = 32
CODE = "E-PLAN-CHECKPOINT"
PAIRS: dict[str, Any] = {
    "modality": "vessels",
    "intake": {**VESSELS["intake"], "size_px": PLAN_PX},
    "models": VESSELS["models"],
    "synthesis": None,
}
IMAGES: dict[str, Any] = {"intake__size_px": PLAN_PX, "synthesis__privatize__scale": 2.0}
KINDS = ("gan", "encoder", "glow", "wgan")


def zeros(parts: dict[str, tuple[layouts.Layer, ...]]) -> tensors.Arrays:
    """Weights of networks, all zero."""
    return {n: np.zeros(s, np.float32) for n, s in shapes_with_prefix(parts).items()}


def image_weights(size_px: int) -> dict[str, tensors.Arrays]:
    """The weights of the small plan's models at a size."""
    gan = {
        "generator.": layouts.generator(size_px, 3, 16, 16),
        "critic.": layouts.critic(size_px, 3, 16),
    }
    return {
        "gan": zeros(gan),
        "glow": zeros({"glow.": layouts.flow(size_px, 3, 3, 2, 16)}),
        "encoder": zeros({"encoder.": layouts.encoder(size_px, 3, 16, 16)}),
    }


def pair_weights(size_px: int, kind: str = "small") -> dict[str, tensors.Arrays]:
    """The weights of the small plan of pairs at a size, of one architecture."""
    generator = layouts.pair_generator(size_px, 8, 16, kind)
    critic = layouts.pair_critic(size_px, 8, kind)
    return {"wgan": zeros({"generator.": generator, "average.": generator, "critic.": critic})}


def misfit(kind: str, size_px: int = PLAN_PX) -> tuple[dict[str, tensors.Arrays], dict[str, Any]]:
    """Weights and changes of a plan in which one checkpoint, of this kind, has half its size."""
    if kind == "wgan":
        return pair_weights(size_px // 2), PAIRS | {
            "intake": {**PAIRS["intake"], "size_px": size_px}
        }
    weights = image_weights(size_px)
    # the noise of an average grows with its pixels, for the same epsilon
    scale = IMAGES["synthesis__privatize__scale"] * (size_px / PLAN_PX) ** 2
    changes = {"intake__size_px": size_px, "synthesis__privatize__scale": scale}
    return weights | {kind: image_weights(size_px // 2)[kind]}, changes


def write_misfit(folder: Path, kind: str, size_px: int = PLAN_PX) -> Path:
    """Write such a plan with its checkpoints into a new folder."""
    folder.mkdir()
    weights, changes = misfit(kind, size_px)
    return write_plan(folder, weights, **changes)


def wrong_files(folder: Path, kind: str) -> dict[str, bytes]:
    """Files that are no checkpoint of this kind, by what is wrong with them.

    `folder` holds checkpoints of the plan's own size. The first is another family's.
    """
    own = (folder / f"{kind}.safetensors").read_bytes()
    other = "glow" if kind != "glow" else "gan"
    return {
        f"a checkpoint of models.{other}": (folder / f"{other}.safetensors").read_bytes(),
        "damaged: ": own[:-4],
        "not a safetensors file": b"",
    }
