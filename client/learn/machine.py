"""Where and how a trainer computes. None of it changes what the private step guarantees.

In: what site and plan allow; the devices of this process. Out: a `Machine`.
Guarantees: numbers that must be exact stay float32 or integers, whatever the precision.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.learn.fast.backends import Execution
from client.learn.workers import ALONE, Workers
from common.compute import Compute
from common.devices import CPU, free_bytes

ROWS = 1024  # images at a time to a device
STEP_SHARE = 0.5  # of a GPU's free memory, for one chunk of patients
IMAGES_SHARE = 0.25  # of it, for the cohort's images


@dataclass(frozen=True)
class Machine:
    """A trainer's device, how its private step runs, and the processes that share it.

    `images_bytes`: the largest cohort that is kept on the device.
    """

    device: torch.device = CPU
    execution: Execution = field(default_factory=Execution)
    workers: Workers = ALONE
    images_bytes: int = 0

    @property
    def exact(self) -> Machine:
        """The same machine with every pass in float32."""
        return replace(self, execution=replace(self.execution, autocast=False))

    @property
    def batches_samples(self) -> bool:
        """Whether samples for all patients of a chunk are made in one pass.

        On a processor each patient has a pass of its own, so that its numbers depend on no chunk.
        """
        return self.device.type != "cpu"


def machine_on(device: torch.device, compute: Compute, workers: Workers = ALONE) -> Machine:
    """Return the machine of one process; asked before any patient's data is read.

    Beside a GPU a thread of its own draws the noise; on a processor the thread that computes does.
    """
    memory = None
    images_bytes = 0
    if device.type != "cpu":
        free = free_bytes(device, compute)
        memory = max(1, int(STEP_SHARE * free))
        images_bytes = int(IMAGES_SHARE * free)
    execution = Execution(
        memory_bytes=memory,
        autocast=compute.precision == "bfloat16",
        threaded=device.type != "cpu",
    )
    return Machine(device, execution, workers, images_bytes)


class DeviceImages:
    """A cohort's images as uint8 [N, H, W, C], on the device where they fit, else on disk.

    `rows` gives some of them on the device, still as uint8.
    """

    def __init__(self, images: NDArray[np.uint8], machine: Machine) -> None:
        self._images = images
        self._device = machine.device
        self._kept: Tensor | None = None
        if images.nbytes <= machine.images_bytes:
            self._kept = torch.empty(images.shape, dtype=torch.uint8, device=self._device)
            for start in range(0, len(images), ROWS):
                part = torch.from_numpy(np.array(images[start : start + ROWS]))
                self._kept[start : start + ROWS] = part.to(self._device)

    def rows(self, chosen: NDArray[np.int64]) -> Tensor:
        """Return uint8 [n, H, W, C] on the device."""
        if self._kept is not None:
            return self._kept[torch.from_numpy(chosen).to(self._device)]
        return torch.from_numpy(np.array(self._images[chosen])).to(self._device)
