"""The processes of one host that share a private step, one GPU each, or a part of the processor.

Guarantees: rank 0 alone draws coins and noise. The others see the coins (inside the host), work
their share of the drawn patients, and receive the finished update. Sums are int64 and therefore
exact, whatever the number of processes. Processes meet over a file in a folder of their own, and
talk over the loopback interface alone.
Not covered:
  - several hosts: what they would exchange is private (drawn patients, sums before noise)
  - an account that may read the loopback traffic of this host
  - a process that dies: the round's reservation stays spent (client/child/ranks.py)
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

BACKENDS = {"cpu": "gloo", "cuda": "nccl"}
LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo", "NCCL_IB_DISABLE": "1"}
# a step of the slowest process; one that ends is noticed at once
TIMEOUT = timedelta(hours=6)


class Workers:
    """A torch.distributed process group, the default one if None; with `alone`, one process.

    `device`: where the group's tensors must lie; others are brought there and back.
    """

    def __init__(
        self, group: Any = None, *, alone: bool = False, device: torch.device | None = None
    ) -> None:
        self._group = group
        self._alone = alone
        self._device = device
        self.rank = 0
        self.size = 1
        if not alone:
            self.rank = dist.get_rank(group)
            self.size = dist.get_world_size(group)

    @property
    def first(self) -> bool:
        """Return whether this process draws coins and noise."""
        return self.rank == 0

    def share(self, patients: Sequence[int]) -> list[int]:
        """Return this process's part of the drawn patients."""
        return list(patients[self.rank :: self.size])

    def from_first(self, tensor: Tensor) -> Tensor:
        """Return rank 0's tensor on every rank; elsewhere `tensor` gives shape, dtype and device.

        Where the group's device is another one, the tensor itself stays as it is.
        """
        if self._alone:
            return tensor
        sent = tensor.to(self._device or tensor.device)
        dist.broadcast(sent, group=self._group, group_src=0)
        return sent.to(tensor.device)

    def all_from_first(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return rank 0's tensors on every rank, by name."""
        if self._alone:
            return tensors
        return {name: self.from_first(tensor.contiguous()) for name, tensor in tensors.items()}

    def number_from_first(self, number: float) -> float:
        """Return rank 0's number on every rank."""
        return float(self.from_first(torch.tensor(number, dtype=torch.float64)))

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum over all ranks, in place where the tensor lies on the group's device."""
        if self._alone:
            return tensor
        sent = tensor.to(self._device or tensor.device)
        dist.all_reduce(sent, dist.ReduceOp.SUM, group=self._group)
        return sent.to(tensor.device)


ALONE = Workers(alone=True)


def meet(file: Path, rank: int, size: int, device: torch.device) -> Workers:
    """Return the group of `size` processes that meet over a file which none of them made before."""
    os.environ |= LOOPBACK
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(
        BACKENDS[device.type],
        init_method=f"file://{file.resolve()}",
        rank=rank,
        world_size=size,
        timeout=TIMEOUT,
    )
    return Workers(device=device)


def part() -> None:
    """Leave the group."""
    dist.destroy_process_group()
