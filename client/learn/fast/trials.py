"""Tries a back end on invented patients.

Guarantees: `check_neighbours` refuses kernels in which one patient of a chunk moves another's
gradient, beyond the margin that eta leaves (lattice.py).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from client.learn.lattice import to_lattice
from client.learn.patient_gradients import Batch
from common.errors import EnvironmentFault
from common.privacy.noise import LATTICE

Rows = Callable[[Batch], Tensor]

NEIGHBOUR_MARGIN = 3e-5  # of the clip norm; eta keeps 6e-5 free at 1.5 M parameters


def invent(batch: Batch, count: int, seed: int = 0, size: float = 1.0) -> Batch:
    """Return random patients of the batch's shapes: `size` times normal numbers of that seed.

    Where the batch holds integers, they are zeros.
    """
    generator = torch.Generator().manual_seed(seed)
    invented = []
    for tensor in batch:
        shape = (count, *tensor.shape[1:])
        if tensor.is_floating_point():
            invented.append((size * torch.randn(shape, generator=generator)).to(tensor))
        else:
            invented.append(tensor.new_zeros(shape))
    return tuple(invented)


def check_neighbours(rows_of: Rows, batch: Batch, clip: float) -> None:
    """Refuse kernels in which one patient moves another's gradient by rounding.

    The first patient of `batch` is replaced by zeros. The lattice sum of the others may move by 0
    on a CPU, by 3e-5·2^24 elsewhere. Raises EnvironmentFault (E-KERNEL).
    """
    # the sum of the others' lattice vectors, with the first patient and without
    zeroed = tuple(torch.cat([torch.zeros_like(tensor[:1]), tensor[1:]]) for tensor in batch)
    moved = to_lattice(rows_of(batch)[1:], clip).sum(0)
    moved -= to_lattice(rows_of(zeroed)[1:], clip).sum(0)
    allowed = 0.0
    if moved.device.type != "cpu":
        allowed = NEIGHBOUR_MARGIN * LATTICE
    if not float(moved.norm()) <= allowed:
        raise EnvironmentFault(
            f"private step: a neighbour in the chunk moves the sum by {float(moved.norm()):.3g} "
            f"lattice steps, allowed {allowed:.3g}",
            hint="run with the back end 'backward', or with deterministic kernels",
            code="E-KERNEL",
        )
