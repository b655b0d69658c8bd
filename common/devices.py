"""The devices on which torch computes, as `compute:` asks for them and as this machine has them.

In: a `Compute`. Out: torch devices, their names, the bytes that may be used there.
Guarantees: a GPU that was asked for and is not there is an error, never a silent fallback; TF32 is
off unless `precision` is bfloat16, and always off inside `exact`; kernels are chosen by shape
alone, and the deterministic ones.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from common.compute import Compute
from common.errors import ConfigurationError
from common.process import usable_cores

CPU = torch.device("cpu")
MEMINFO = Path("/proc/meminfo")
NO_DEVICE = "E-DEVICE"
# what torch and C++ say where the processor's memory, or its limit, is used up
EXHAUSTED = ("DefaultCPUAllocator: can't allocate memory", "std::bad_alloc")
SHARE = 0.9  # of the free memory; the rest is for what torch and the driver keep beside tensors


@dataclass(frozen=True)
class Device:
    """One device: what torch calls it, its name, and its memory in bytes."""

    device: str
    name: str
    memory_bytes: int


def resolve(compute: Compute) -> tuple[torch.device, ...]:
    """Return the devices to compute on, at least one; several only where they are listed.

    Raises ConfigurationError (E-DEVICE) for a GPU that torch does not see.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if compute.device == "cpu" or (compute.device == "auto" and not count):
        return (CPU,)
    wanted = compute.numbers or (0,)
    missing = [number for number in wanted if number >= count]
    if missing:
        raise ConfigurationError(
            f"compute.device is {compute.device}: expected GPU {missing[0]}, counted from 0; torch "
            f"sees {count} here",
            hint="`nvidia-smi` must list the GPU, and torch must be built for CUDA; "
            "or set compute.device to cpu or auto",
            code=NO_DEVICE,
        )
    return tuple(torch.device("cuda", number) for number in wanted)


def describe(device: torch.device) -> Device:
    """Return a device with its name and its memory."""
    if device.type == "cpu":
        return Device("cpu", f"processor, {usable_cores()} cores", _main_memory_bytes())
    properties = torch.cuda.get_device_properties(device)
    return Device(str(device), properties.name, properties.total_memory)


def settle(compute: Compute, devices: tuple[torch.device, ...]) -> None:
    """Set, for this whole process, how exactly torch computes and how much memory it takes."""
    set_tf32(compute.precision == "bfloat16")
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    for device in devices:
        if device.type == "cuda" and compute.memory_gib:
            total = torch.cuda.get_device_properties(device).total_memory
            share = min(1.0, compute.memory_gib * 2**30 / total)
            torch.cuda.set_per_process_memory_fraction(share, device)


def set_tf32(allowed: bool) -> None:
    """Let float32 products of a GPU round their factors to 10 bits, or not."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


@contextmanager
def exact() -> Iterator[None]:
    """Keep TF32 off for a block: what is inverted or compared must be float32 throughout."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    set_tf32(False)
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def free_bytes(device: torch.device, compute: Compute) -> int:
    """Return how much memory may still be taken on a device, by the site's limit and what is free.

    It is the machine's figure, asked before any data is there.
    """
    if device.type == "cpu":
        return int(SHARE * _available_bytes())
    free, _ = torch.cuda.mem_get_info(device)
    if compute.memory_gib:
        free = min(free, int(compute.memory_gib * 2**30) - torch.cuda.memory_reserved(device))
    return int(SHARE * max(0, free))


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error says that a GPU, or the processor under its limit, is full."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in EXHAUSTED)


def _main_memory_bytes() -> int:
    """The memory of this machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _available_bytes() -> int:
    """The main memory that is free or can be freed, at most this process's own limit."""
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if MEMINFO.is_file():
        for line in MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                available = int(line.split()[1]) << 10
    limit, _ = resource.getrlimit(resource.RLIMIT_DATA)
    if limit != resource.RLIM_INFINITY:
        available = min(available, limit)
    return available
