"""Two processes of one host share a private step: the same update as one process, bit for bit."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from common.process import free_port

pytestmark = pytest.mark.slow

PROGRAM = """
import sys
import numpy as np, torch
import torch.distributed as dist
from torch.nn import functional as F
from client.learn.private_step import Execution, PrivateStep, StepConstants
from client.learn.workers import ALONE, Workers
from client.state.ledger import PracticeReservation
from common.privacy.canaries import Canaries, draw
from common.privacy.mechanisms import SubsampledGaussian
from common.privacy.noise import SeededNoiseSource

rank, size, port, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
apart = sys.argv[5] == "apart"
torch.set_num_threads(1)
if size > 1:
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=size)
workers = Workers() if size > 1 else ALONE
table = torch.randn(30, 2, 40, generator=torch.Generator().manual_seed(1))
parameters = {"w": torch.zeros(3, 40), "b": torch.zeros(3)}
worked = []

def batch_for(patients):
    worked.extend(patients)
    return (table[list(patients)],)

if apart:
    # a convolution, whose weights have other columns in another back end
    table = table.view(30, 2, 2, 4, 5)
    parameters = {"w": torch.full((3, 2, 3, 3), 0.1), "b": torch.zeros(3)}

def loss(p, x):
    if apart:
        y = F.conv2d(x[0], p["w"], p["b"])
        return y.square().sum() + y[:, 0].sum()
    return F.linear(x[0], p["w"], p["b"]).square().sum() + F.linear(x[0], p["w"], p["b"]).sum()

weights = sum(w.numel() for w in parameters.values())
step = PrivateStep(
    parameters, loss, StepConstants(1.0, 0.5, 0.4, 12),
    PracticeReservation(SubsampledGaussian(0.4, 0.5, 10)),
    SeededNoiseSource(7 if rank == 0 else 1000 + rank),
    execution=Execution("backward", 1) if apart and rank else Execution("layers", 4),
    canaries=Canaries(draw(SeededNoiseSource(9), 20, weights)),
    workers=workers,
)
updates = []
for _ in range(4):
    update = step.step(30, batch_for)
    updates.append(torch.cat([g.flatten() for g in update.values()]).numpy())
    for name, gradient in update.items():
        parameters[name] -= 0.1 * gradient
tally = step._canaries.tally()
heard = np.concatenate([tally.own.scores, tally.inside.scores, tally.released])
np.savez(out, updates=np.stack(updates), worked=np.array(worked), heard=heard)
if size > 1:
    dist.destroy_process_group()
"""


def run(folder: Path, size: int, mode: str = "alike") -> list[dict[str, np.ndarray]]:
    """What each of `size` processes had at the end."""
    port = free_port()
    files = [folder / f"{size}-{rank}.npz" for rank in range(size)]
    children = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(rank), str(size), str(port), str(file), mode]
        )
        for rank, file in enumerate(files)
    ]
    assert [child.wait(timeout=200) for child in children] == [0] * size
    return [dict(np.load(file)) for file in files]


def test_two_processes_give_bit_for_bit_the_update_of_one(tmp_path: Path) -> None:
    """Rank 0 has the same seeded noise; rank 1's own source is never used."""
    (one,), (first, second) = run(tmp_path, 1), run(tmp_path, 2)
    assert np.array_equal(one["updates"], first["updates"])
    assert np.array_equal(one["updates"], second["updates"])
    for several in (first, second):
        assert np.array_equal(one["heard"], several["heard"])  # of canaries on rank 0
    assert sorted(one["worked"]) == sorted([*first["worked"], *second["worked"]])
    assert min(len(first["worked"]), len(second["worked"])) > 0


def test_processes_with_other_back_ends_add_the_same_columns(tmp_path: Path) -> None:
    """A GPU chooses by its own memory, and takes fewer patients at a time where that is full."""
    (one,), (first, second) = run(tmp_path, 1, "apart"), run(tmp_path, 2, "apart")
    assert np.array_equal(first["updates"], second["updates"])
    assert np.allclose(one["updates"], first["updates"], rtol=0, atol=1e-5)
    assert np.abs(one["updates"]).max() > 0.01
