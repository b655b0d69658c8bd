"""What a rehearsal's child does otherwise: noise of the same size that is NOT PRIVATE, and a mark.

Guarantees: whatever a rehearsal writes holds a tensor that neither gate nor server takes; a code of
the audit stops every batch; its noise is of a type that a ledger's reservation refuses.
Not covered: where a rehearsal works, and that it is removed (client/rehearsal/scratch.py).
"""

from __future__ import annotations

import io
import secrets
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from client.egress.review import SHEET
from client.state.jobs import OUTPUT, PRACTICE
from common.arrays import Pairs, Weights
from common.errors import ConfigurationError
from common.models.wgan import load_average
from common.models.wgan_pairs import sample
from common.privacy.noise import SeededNoiseSource
from common.storage.files import atomic_write
from common.study.plan import Study
from common.wire.tensors import Arrays, write

AUDIT_CODE = "A-PRACTICE"  # in the evidence of every batch of a rehearsal
MOST_PAIRS = 48  # on the sheet
COLUMNS = 8


def practice_noise(*, threads: int = 1) -> SeededNoiseSource:
    """Return noise of the plan's own size, with a fresh seed, that nothing private accepts."""
    return SeededNoiseSource(secrets.randbits(63), threads=threads)


def mark(arrays: Weights) -> Arrays:
    """Return the tensors with the mark of a rehearsal."""
    return {**arrays, PRACTICE: np.zeros(1, np.uint8)}


def draw_pairs(study: Study, weights: Arrays, folder: Path) -> None:
    """Write a sheet of pairs as the server would draw them from the final generator, then `OUTPUT`.

    Raises ConfigurationError for a plan without pairs.
    """
    plan = study.models.wgan
    if plan is None:
        raise ConfigurationError("the plan makes no pairs")
    random = torch.Generator().manual_seed(secrets.randbits(63))
    generator = load_average(weights, plan, study.intake.size_px)
    pairs = sample(generator, min(plan.released_pairs, MOST_PAIRS), random)
    atomic_write(folder / SHEET, draw_sheet(pairs), mode=0o600)
    write(folder / OUTPUT, mark({"pairs": pairs}), mode=0o600)


def draw_sheet(pairs: Pairs) -> bytes:
    """Return pairs [N, S, S, 2] as one PNG: image and mask side by side, `COLUMNS` pairs a row."""
    cells = np.concatenate([pairs[..., 0], pairs[..., 1]], axis=2)
    rows: list[np.ndarray] = []
    for start in range(0, len(cells), COLUMNS):
        row = cells[start : start + COLUMNS]
        blank = np.full((COLUMNS - len(row), *row.shape[1:]), 255, np.uint8)
        rows.append(np.concatenate([*row, *blank], axis=1))
    stream = io.BytesIO()
    Image.fromarray(np.concatenate(rows)).save(stream, "PNG")
    return stream.getvalue()
