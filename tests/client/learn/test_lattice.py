"""The norms behind the clip: right, the same beside any other rows, and by no team of threads."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from client.learn.lattice import EXACT_ROWS, NORM_SPAN, SMALLEST_SPAN_CLIP, LatticeSum, to_lattice

torch.set_num_threads(1)
WIDTHS = (0, 1, 3, NORM_SPAN - 1, NORM_SPAN, NORM_SPAN + 1, 70 * NORM_SPAN + 5)
ROWS = 33


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_row_has_the_same_lattice_vector_beside_any_others(width: int, threads: int) -> None:
    """Rows far above the clip norm: the last bit of a norm would show."""
    rows = 1e3 * torch.randn(ROWS, width, generator=torch.Generator().manual_seed(1))
    torch.set_num_threads(threads)
    try:
        together = to_lattice(rows, 0.7)
        alone = torch.cat([to_lattice(row[None], 0.7) for row in rows])
    finally:
        torch.set_num_threads(1)
    assert torch.equal(together, alone)


@pytest.mark.parametrize("width", WIDTHS[1:])
def test_a_row_above_the_clip_norm_is_brought_just_below_it(width: int) -> None:
    rows = 1e3 * torch.randn(ROWS, width, generator=torch.Generator().manual_seed(2))
    norms = to_lattice(rows, 2.0).norm(dim=1) / 2.0**24
    assert float(norms.max()) <= 1.0
    assert float(norms.min()) >= 0.999


TEAM = """
import os
import torch
from client.learn.lattice import LatticeSum

def of_others():
    ticks = 0
    for task in os.listdir("/proc/self/task"):
        if int(task) != os.getpid():
            fields = open(f"/proc/self/task/{task}/stat").read().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks

torch.set_num_threads(1)
total = LatticeSum(400_000, 1.0, torch.device("cpu"))
rows = torch.ones(16, 400_000)
before = of_others()
for _ in range(20):
    total.add(rows)
print(of_others() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in /proc")
def test_the_clip_of_one_thread_wakes_no_other() -> None:
    """A product of numpy would wake a team of threads, which spins between the calls."""
    free = {name: value for name, value in os.environ.items() if not name.endswith("NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-c", TEAM], capture_output=True, text=True, check=True, env=free
    )
    assert int(done.stdout) == 0


def test_a_sum_is_that_of_the_lattice_vectors_for_more_rows_than_a_block() -> None:
    rows = torch.randn(EXACT_ROWS + 3, 200, generator=torch.Generator().manual_seed(3))
    total = LatticeSum(200, 0.7, torch.device("cpu"))
    total.add(rows.clone())
    assert torch.equal(total.total.double(), to_lattice(rows, 0.7).sum(0))


HOSTILE = {
    "one entry and a tail that float32 sums lose": lambda n: torch.cat(
        [torch.ones(1), torch.full((n - 1,), 2.0**-12.5)]
    ),
    "equal entries": lambda n: torch.full((n,), 0.1),
    "squares above float32": lambda n: torch.full((n,), 3e38),
    "one square above float32": lambda n: torch.cat([torch.full((1,), 1e25), torch.ones(n - 1)]),
    "squares that are not normal": lambda n: torch.full((n,), 1e-21),
    "squares that float32 loses": lambda n: torch.full((n,), 1e-25),
    "an infinity among ones": lambda n: torch.cat([torch.full((1,), math.inf), torch.ones(n - 1)]),
}


@pytest.mark.parametrize("clip", [1e-30, SMALLEST_SPAN_CLIP, 1.0, 1e30])
@pytest.mark.parametrize("kind", HOSTILE)
def test_no_row_moves_the_sum_by_more_than_the_clip(kind: str, clip: float) -> None:
    row = HOSTILE[kind](1000 * NORM_SPAN + 7)
    for scale in (1.0, clip):
        found = to_lattice((row * scale)[None], clip)[0]
        assert float(found.norm()) <= 2.0**24


def test_rows_are_clipped_as_alone_beside_rows_that_overflow() -> None:
    # so many that the norm of some would be another number in float64
    rows = 1e3 * torch.randn(400, 3000, generator=torch.Generator().manual_seed(4))
    others = torch.stack([HOSTILE[kind](3000) for kind in HOSTILE])
    together = to_lattice(torch.cat([rows, others]), 0.7)
    assert torch.equal(together[: len(rows)], to_lattice(rows, 0.7))


def test_a_large_row_keeps_its_direction() -> None:
    """Its squares are above float32's range; its entries are not."""
    found = to_lattice(torch.full((1, 900), 3e38), 1.0)[0]
    assert float(found.norm()) >= 0.999 * 2.0**24
