"""Errors of inversions: in the photograph's own deviation, with and without the coarse residual."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks import inversion_errors as errors
from client.synthesize.coarse import measure_residuals, residual_rows
from client.synthesize.looks import look_at
from common.models.images import to_unit
from common.models.look import Look

SIDE, CELLS = 32, 8
COMMON = Look(torch.zeros(1, 3), torch.full((1, 3), 0.2))


class Grey:
    """Draws the common look's mean, whatever the code."""

    def synthesis(self, codes: Tensor) -> Tensor:
        return torch.zeros(len(codes), 3, SIDE, SIDE)


def slopes(count: int) -> np.ndarray:
    """Smooth pictures of different brightness and contrast; their field is the whole picture."""
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    made = [60 + 10 * (i % 6) + (30 + 5 * (i % 6)) * (x + y) for i in range(count)]
    return np.stack([made] * 3, axis=-1).astype(np.uint8)


def ready_of(images: np.ndarray) -> Any:
    """A hospital of one half members, the other half held out, inverted by `Grey`."""
    found = []
    half = len(images) // 2
    for some in (images[:half], images[half:]):
        seen = look_at(to_unit(some), COMMON)
        residuals = measure_residuals(seen.images, Grey().synthesis(some), seen.fields, CELLS)
        codes = np.zeros((len(some), 1, 1), np.float32)
        found.append(SimpleNamespace(codes=codes, coarse=residual_rows(residuals)))
    return SimpleNamespace(
        part=SimpleNamespace(
            members=SimpleNamespace(images=images[:half]),
            heldout=SimpleNamespace(images=images[half:]),
        ),
        networks=SimpleNamespace(generator=Grey()),
        known=SimpleNamespace(look_on=lambda: COMMON),
        seen=found[0],
        seen_heldout=found[1],
    )


def test_a_flat_picture_errs_by_the_whole_deviation_and_its_residual_takes_most_of_that() -> None:
    ready = ready_of(slopes(2 * errors.BATCH + 6))  # more than one batch a side
    found = errors.measure_errors(ready)
    assert found["code"]["median"] == pytest.approx(1, abs=0.02)
    assert found["code"]["at_90"] == pytest.approx(1, abs=0.02)
    assert found["kept"]["median"] < 0.2


def test_the_table_has_both_kinds_of_both_checkpoints() -> None:
    one = {"median": 0.5, "at_90": 0.75}
    two = {"median": 0.25, "at_90": 0.5}
    line = {"photographs": 7} | {name: {"code": one, "kept": two} for name in errors.PRESETS}
    (table,) = errors.tables({"odir": line})
    assert table.columns == (
        "source",
        "photographs",
        "fundus-64, code",
        "fundus-64, kept",
        "fundus-128, code",
        "fundus-128, kept",
    )
    assert table.rows == (("odir", "7", *["0.50 (0.75)", "0.25 (0.50)"] * 2),)
