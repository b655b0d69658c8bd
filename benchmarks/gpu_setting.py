"""What the parts of benchmarks/gpu.py share: the setting, the clock, drawn photographs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import report

GIB = 2**30
Value = TypeVar("Value")


@dataclass
class Part:
    """What a part found."""

    tables: list[report.Table]
    figures: dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """The device, where files go, when to stop; `quick` asks for toy sizes."""

    device: torch.device
    out: Path
    end: float  # of time.monotonic()
    quick: bool
    images: NDArray[np.uint8] | None = None

    def choose(self, full: Value, toy: Value) -> Value:
        """Return the toy where the run is quick."""
        return toy if self.quick else full

    def left_s(self) -> float:
        """Return the seconds that are left."""
        return self.end - time.monotonic()

    def until(self, end: float) -> Setting:
        """Return the setting with another end."""
        return replace(self, end=end)

    def synchronise(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, call: Callable[[], object], repeats: int = 3) -> float:
        """Return the smallest wall time of `repeats` calls, after one to warm up."""
        call()
        found = []
        for _ in range(1 if self.quick else repeats):
            self.synchronise()
            began = time.perf_counter()
            call()
            self.synchronise()
            found.append(time.perf_counter() - began)
            if self.left_s() < 0:
                break
        return min(found)

    def peak_gib(self, call: Callable[[], object]) -> float:
        """Return the most that torch allocates in a call beside what stands; 0 on a CPU."""
        if self.device.type != "cuda":
            call()
            return 0.0
        self.synchronise()
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        call()
        self.synchronise()
        return (torch.cuda.max_memory_allocated(self.device) - before) / GIB


def draw_photographs(count: int, size_px: int) -> NDArray[np.uint8]:
    """Return drawn fundus photographs [N, S, S, 3]: a disc with a bright spot and dark branches."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[-1 : 1 : size_px * 1j, -1 : 1 : size_px * 1j]
    inside = x**2 + y**2 < 0.92**2
    made = []
    for _ in range(count):
        # ground, optic disc, vessels that leave it
        at = random.uniform(-0.35, 0.35, 2)
        away = np.hypot(x - at[0], y - at[1])
        angle = np.arctan2(y - at[1], x - at[0])
        light = 0.55 + 0.35 * np.exp(-((away / 0.16) ** 2)) - 0.15 * (x**2 + y**2)
        for start in random.uniform(-np.pi, np.pi, 6):
            bend = start + random.uniform(-0.8, 0.8) * away
            apart = np.abs(np.angle(np.exp(1j * (angle - bend)))) * away
            light -= 0.22 * np.exp(-((apart / 0.02) ** 2)) * (away < 1.2)
        colour = np.stack([light * 1.25, light * 0.75, light * 0.45], -1) * inside[..., None]
        colour += random.normal(0, 0.015, colour.shape)
        made.append((255 * colour.clip(0, 1)).astype(np.uint8))
    return np.stack(made)


def rounded(value: float, digits: int = 3) -> float:
    """Return a figure with so many significant digits."""
    return float(f"{value:.{digits}g}")
