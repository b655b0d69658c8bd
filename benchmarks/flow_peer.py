"""normflows, the flow's peer: fetched for one run into a temporary folder."""

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from benchmarks.flow_layouts import Layout

NORMFLOWS = "normflows==1.7.3"


@contextlib.contextmanager
def fetch_normflows() -> Iterator[tuple[ModuleType | None, str]]:
    """(normflows, "") from a temporary folder of this run, or (None, why not)."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--target",
            folder,
            NORMFLOWS,
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            yield None, f"{NORMFLOWS} could not be fetched"
            return
        sys.path.insert(0, folder)
        try:
            import normflows

            yield normflows, ""
        finally:
            sys.path.remove(folder)


def peer(normflows: Any, layout: Layout, first: Tensor | None = None) -> Any:
    """normflows' Glow of equal K, L and width: affine coupling, LU 1x1, ActNorm, split, diagonal
    Gaussians.

    `first`: the batch by which ActNorm sets itself (random pictures without).
    """
    bases = []
    merges = []
    flows = []
    for i in range(layout.levels):
        blocks = [
            normflows.flows.GlowBlock(
                layout.channels * 2 ** (layout.levels + 1 - i), layout.width, split_mode="channel"
            )
            for _ in range(layout.steps)
        ]
        flows.append([*blocks, normflows.flows.Squeeze()])
        merges += [normflows.flows.Merge()] if i else []
        side = layout.size_px // 2 ** (layout.levels - i)
        channels = layout.channels * 2 ** (layout.levels - i if i else layout.levels + 1)
        bases.append(normflows.distributions.DiagGaussian((channels, side, side)))
    model = normflows.MultiscaleFlow(bases, flows, merges)
    with torch.no_grad():
        model.log_prob(layout.images(64) if first is None else first, None)
    return model
