"""Several processes of one host do one round: bit for bit the update of one process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.seeded_rounds import (
    NOTED,
    Site,
    check_same,
    given,
    image_hospital,
    pair_hospital,
    seeded_round,
    training,
)

pytestmark = pytest.mark.slow

MODELS = ("gan", "glow", "wgan")


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Site]:
    """A hospital for each model; a step draws one or two of its sixteen patients."""
    folder = tmp_path_factory.mktemp("few")
    few = {"privacy__planned_patients": 200}
    images = image_hospital(folder / "images", **few)
    return {"gan": images, "glow": images, "wgan": pair_hospital(folder / "pairs", **few)}


@pytest.fixture(scope="module")
def crowds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Site]:
    """Hospitals of whose sixteen patients a step draws about thirteen."""
    folder = tmp_path_factory.mktemp("many")
    many = {"privacy__planned_patients": 20}
    images = image_hospital(folder / "images", **many)
    return {"gan": images, "glow": images, "wgan": pair_hospital(folder / "pairs", **many)}


@pytest.mark.parametrize("model", MODELS)
def test_three_processes_leave_bit_for_bit_what_one_leaves(
    model: str, sites: dict[str, Site], tmp_path: Path
) -> None:
    folders = [training(sites[model], tmp_path / str(n), model, n) for n in (1, 3)]
    one, three = [seeded_round(folder, NOTED) for folder in folders]
    check_same(one, three, model)
    # the shares were uneven, and somebody had none
    shares = list(zip(*(given(folders[1], rank) for rank in range(3)), strict=True))
    assert [sum(step) for step in shares] == given(folders[0], 0)
    assert any(0 in step and any(step) for step in shares), shares


@pytest.mark.parametrize("model", MODELS)
def test_processes_that_share_the_machines_ways_leave_what_one_leaves(
    model: str, sites: dict[str, Site], tmp_path: Path
) -> None:
    """The two processes try the ways and write them down; the one reads them."""
    ways = tmp_path / "ways.json"
    two = seeded_round(training(sites[model], tmp_path / "two", model, 2, ways=ways))
    assert json.loads(ways.read_text())
    before = ways.read_bytes()
    one = seeded_round(training(sites[model], tmp_path / "one", model, 1, ways=ways))
    assert ways.read_bytes() == before
    check_same(one, two, model)


# a rank's device is too small for its second chunk, until a chunk has a quarter of the patients
FULL = """
import torch
from client.learn.fast.backends import PatientGradients
rows, begun, halved = PatientGradients.rows, [], []

def too_small(gradients, batch):
    again = gradients in begun
    begun.append(gradients)
    halved.append(gradients.chunk)
    if rank == 1 and again and gradients.chunk * 4 > halved[0]:
        raise torch.OutOfMemoryError("full")
    (folder / f"chunk-{rank}").write_text(str(gradients.chunk))
    return rows(gradients, batch)

PatientGradients.rows = too_small
"""


@pytest.mark.parametrize("model", MODELS)
def test_a_chunk_that_one_process_has_no_memory_for_changes_nothing(
    model: str, crowds: dict[str, Site], tmp_path: Path
) -> None:
    one = seeded_round(training(crowds[model], tmp_path / "one", model, 1))
    folder = training(crowds[model], tmp_path / "two", model, 2)
    two = seeded_round(folder, NOTED + FULL)
    first, second = [int((folder / f"chunk-{rank}").read_text()) for rank in (0, 1)]
    assert second * 4 <= first
    check_same(one, two, model)
