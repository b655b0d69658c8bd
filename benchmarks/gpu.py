"""One GPU beside the processor: parity, speed, memory, and a short pretraining.

    benchmarks/gpu.sh [--out FOLDER]                  at most ten minutes
    benchmarks/gpu.sh --device cpu --quick            every part at toy size, in seconds

In: a device; with --images public photographs (.npz), else drawn ones.
Out: FOLDER/gpu.PART.json after each part, and a sheet of the pretraining. A part that fails says
so, and the others go on.
Times are wall time with the device synchronised, the smallest of the repeats after a warm-up.
Memory is the most that torch allocated beside what stood before.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import gpu_parity, gpu_speed, report
from benchmarks.gpu_setting import Part, Setting, draw_photographs
from common.devices import exact
from server.public_data.images import Source

TOTAL_S = 560.0
PRETRAINING_S = 240.0  # kept for it
SAMPLES = "samples.png"


def pretraining(setting: Setting) -> Part:
    """A generator at 256 px from nothing, with its sheet."""
    from server.pretrain.gan import pretrain
    from server.pretrain.gan_plan import PretrainPlan
    from server.pretrain.session import Session

    size_px = setting.choose(256, 16)
    images = setting.images
    if images is None:
        images = draw_photographs(setting.choose(400, 4), size_px)
    names = tuple(f"{i:05d}" for i in range(len(images)))
    plan = PretrainPlan(size_px, images.shape[3])
    session = Session(steps=3, device=str(setting.device))
    if setting.quick:
        plan = PretrainPlan(size_px, 3, 8, 16, 8, 2, 1, 1, prior_steps=1)
    else:
        # an eighth is left for the mapping network at the end
        minutes = max(0.1, min(PRETRAINING_S, setting.left_s()) * 7 / 8 / 60)
        session = Session(minutes=minutes, device=str(setting.device))
    folder = setting.out / "pretraining"
    made = pretrain(Source(images, names, None, ""), plan, folder, session)
    sheet = sorted((folder / "training").glob("samples-*.png"))[-1]
    sheet.replace(setting.out / SAMPLES)
    figures = {"steps": made.step, "seconds": round(made.seconds, 1)}
    figures |= {name: round(value, 4) for name, value in made.losses.items()}
    rows = tuple((name, str(value)) for name, value in figures.items())
    title = f"Pretraining at {size_px} px of {len(images)} photographs; the sheet is {SAMPLES}"
    return Part([report.Table(title, ("figure", "value"), rows)], figures)


PARTS: dict[str, Callable[[Setting], Part]] = {
    "parity": gpu_parity.parity,
    "step": gpu_speed.private_steps,
    "inversion": gpu_speed.inversion,
    "alignment": gpu_speed.alignment,
    "flow": gpu_speed.flow_steps,
    "noise": gpu_speed.noise,
    "pretraining": pretraining,
}


def run(name: str, setting: Setting) -> bool:
    """Run one part and write its JSON; returns whether it went through."""
    began = time.monotonic()
    try:
        part = PARTS[name](setting)
    except Exception as error:  # the other parts are worth having
        text = f"{type(error).__name__}: {error}"
        part = Part([report.Table("Failed", ("error",), ((text,),))], {"failed": text})
    part.figures["part_s"] = round(time.monotonic() - began, 1)
    report.record(f"gpu.{name}", part.tables, (), part.figures).save(
        setting.out / f"gpu.{name}.json"
    )
    print(f"{name}: {part.figures['part_s']} s")
    for table in part.tables:
        print(table.markdown(), "\n")
    return "failed" not in part.figures


@dataclass(frozen=True)
class Options:
    """The command line."""

    device: str
    out: Path
    quick: bool
    parts: tuple[str, ...]
    images: Path | None


def read_options(arguments: Sequence[str] | None) -> Options:
    """Return the options; argparse ends the process for wrong ones."""
    parser = argparse.ArgumentParser(description="One GPU beside the processor.")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=Path("build/gpu"))
    parser.add_argument("--quick", action="store_true", help="toy sizes, for a test")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--images", type=Path, help="public photographs of 256 px, .npz `images`")
    given: Any = parser.parse_args(arguments)
    parts = tuple(given.parts.split(","))
    if not set(parts) <= set(PARTS):
        parser.error(f"--parts: expected some of {', '.join(PARTS)}")
    return Options(given.device, given.out, given.quick, parts, given.images)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts; returns 1 where one of them failed."""
    options = read_options(arguments)
    images = None
    if options.images is not None:
        with np.load(options.images) as data:
            images = np.asarray(data["images"])
    options.out.mkdir(parents=True, exist_ok=True)
    device = torch.device(options.device)
    end = time.monotonic() + TOTAL_S
    setting = Setting(device, options.out, end, options.quick, images)
    whole = True
    with exact():
        for name in options.parts:
            reserved = 0.0 if name == "pretraining" else PRETRAINING_S
            whole &= run(name, setting.until(end - reserved))
    return int(not whole)


if __name__ == "__main__":
    sys.exit(main())
