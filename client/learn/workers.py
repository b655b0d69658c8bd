"""The processes of one host that share a private step, one GPU each.

Guarantees: rank 0 alone draws coins and noise. The others see the coins (inside the host), work
their share of the drawn patients, and receive the finished update. Sums are int64 and therefore
exact, whatever the number of processes.
Not covered:
  - several hosts: what they would exchange is private (drawn patients, sums before noise)
  - a process that dies: the others fail at the group's timeout, and the round's reservation stays
    spent
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor


class Workers:
    """A torch.distributed process group, the default one if None; with `alone`, one process."""

    def __init__(self, group: Any = None, *, alone: bool = False) -> None:
        self._group = group
        self._alone = alone
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
        """Return rank 0's tensor on every rank; elsewhere `tensor` gives shape and dtype."""
        if not self._alone:
            dist.broadcast(tensor, group=self._group, group_src=0)
        return tensor

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum over all ranks, in place."""
        if not self._alone:
            dist.all_reduce(tensor, dist.ReduceOp.SUM, group=self._group)
        return tensor


ALONE = Workers(alone=True)
