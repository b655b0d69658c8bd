"""What a machine gives to computing: the section `compute:` of site.yaml.

In: the section. Out: a frozen `Compute`.
Guarantees: nothing here changes a privacy parameter; reading it loads no torch.
Not covered: whether the devices are there (common/devices.py).
"""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator

from common.config import FrozenModel

Precision = Literal["float32", "bfloat16"]
DEVICE = re.compile(r"auto|cpu|cuda(:[0-9]{1,3}(,[0-9]{1,3})*)?")
MOST_DEVICES = 16


class Compute(FrozenModel):
    """The devices that compute, and how exactly."""

    device: str = Field(
        default="auto",
        description="where networks run: `cpu`; `cuda`, the first GPU that torch sees; "
        "`cuda:0,1`, these GPUs; `auto`, the first GPU, or the processor where there is none",
    )
    precision: Precision = Field(
        default="float32",
        description="`bfloat16` is faster on a GPU and less exact; flows, clipping, noise and sums "
        "stay as exact as they are",
    )
    memory_gib: float = Field(
        default=0,
        ge=0,
        description="largest memory that a process takes on a GPU, in GiB; 0: what is free there",
    )

    @field_validator("device")
    @classmethod
    def _known_device(cls, device: str) -> str:
        """Refuse what names no device, or one device twice."""
        if not DEVICE.fullmatch(device):
            raise ValueError(f"expected auto, cpu, cuda or a list such as cuda:0,1, got {device!r}")
        numbers = _numbers(device)
        if len(set(numbers)) < len(numbers) or len(numbers) > MOST_DEVICES:
            raise ValueError(
                f"expected at most {MOST_DEVICES} GPUs, each of them once, got {device!r}"
            )
        return device

    @property
    def numbers(self) -> tuple[int, ...]:
        """The GPUs that `device` names; none where it leaves the choice open."""
        return _numbers(self.device)


def _numbers(device: str) -> tuple[int, ...]:
    """The numbers behind the colon."""
    _, _, listed = device.partition(":")
    return tuple(int(number) for number in listed.split(",") if number)
