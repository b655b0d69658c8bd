"""Drawing from the shipped checkpoints: a thousand pictures by onnxruntime, and by torch.

    python -m benchmarks.drawing [--count 1000] [--json [FILE]]

In: the trained checkpoints of deploy/, at 64 px and 32 px, exported as a release does.
Measured: seconds to draw and write PNG files as `kohort sample` does; seconds of the network in
torch for as many; the largest difference of both on the same numbers, where white less black is 2.
Not covered: the verification of the release, and the start of the program.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # opacus has a package benchmarks too

import numpy as np
import torch
from torch import Tensor

from benchmarks import report
from common.models import stylegan, wgan
from common.models.weights import load_weights
from common.study.architectures import build_flow
from common.study.plan import Study, load_study
from common.wire import tensors
from kohort.drawn_folder import write_png
from kohort.models import Model
from kohort.sample import draw_from, open_session
from server.release import graphs, models

DEPLOY = Path(__file__).parents[1] / "deploy"
SOURCES = {
    "gan, fundus 64 px": ("gan", "fundus.yaml", "fundus-64/gan.safetensors"),
    "wgan, vessels 64 px": ("wgan", "vessels.yaml", "vessels-64/wgan.safetensors"),
    "glow, fundus 64 px": ("glow", "fundus.yaml", "fundus-64/glow.safetensors"),
    "glow, chest 32 px": ("glow", "chest-demo.yaml", "chest-32/glow.safetensors"),
}
MOST_S = 60.0
PARITY = 1e-4
BATCH = 64
Network = Callable[[dict[str, Tensor]], Tensor]


def measure(name: str, plan: str, file: str, count: int) -> dict[str, float]:
    """Return the seconds of both ways, the size of the file, and their largest difference."""
    study = load_study(DEPLOY / "studies" / plan)
    arrays = tensors.read(DEPLOY / "checkpoints" / file, max_bytes=1 << 28)
    exported = models.export(study, name, arrays)
    model = Model(name, models.card_of(study, name, exported), exported.onnx, "")
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        for i, drawn in enumerate(draw_from(model, count, seed=1)):
            write_png(Path(folder) / f"{i:05d}.png", drawn.image)
        ours = time.perf_counter() - began

    # the same network in torch, without files
    network = in_torch(study, name, arrays)
    began = time.perf_counter()
    for start in range(0, count, BATCH):
        network(numbers(model, min(BATCH, count - start)))
    theirs = time.perf_counter() - began
    return {
        "mib": len(exported.onnx) / (1 << 20),
        "ours_s": ours,
        "torch_s": theirs,
        "difference": difference(model, network),
    }


def numbers(model: Model, count: int) -> dict[str, Tensor]:
    """Normal numbers for each input, at the model's temperature."""
    random = torch.Generator().manual_seed(1)
    found = {}
    for one in model.card.inputs:
        found[one.name] = model.card.temperature * torch.randn(
            (count, *one.shape), generator=random
        )
    return found


def difference(model: Model, network: Network) -> float:
    """The largest difference of both on the same numbers."""
    inputs = numbers(model, 16)
    session = open_session(model)
    found = session.run(None, {name: value.numpy() for name, value in inputs.items()})[0]
    return float(np.abs(found - network(inputs).numpy()).max())


def in_torch(study: Study, name: str, arrays: tensors.Arrays) -> Network:
    """The network that the hospitals train, as a function of the graph's inputs."""
    intake = study.intake
    if name == "gan":
        assert study.models.gan is not None
        generator = stylegan.load_generator(
            arrays, study.models.gan, intake.size_px, intake.channels
        )
        return lambda inputs: with_maps(generator, inputs)
    if name == "wgan":
        assert study.models.wgan is not None
        average = wgan.load_average(arrays, study.models.wgan, intake.size_px)
        return lambda inputs: average(inputs["z"])
    flow = build_flow(study)
    load_weights(flow, arrays, "glow.")
    return lambda inputs: flow.decode(list(inputs.values())) * graphs.FLOW_GAIN


def with_maps(generator: stylegan.Generator, inputs: dict[str, Tensor]) -> Tensor:
    """The generator's pictures with these noise maps in place of drawn ones."""
    maps = iter([value for name, value in inputs.items() if name != "z"])
    drawing = stylegan.draw_normal
    stylegan.draw_normal = lambda *_: next(maps)
    try:
        pictures: Tensor = generator(inputs["z"], "random")
    finally:
        stylegan.draw_normal = drawing
    return pictures


def table(found: dict[str, dict[str, float]], count: int) -> report.Table:
    """A row a model."""
    rows = []
    for name, one in found.items():
        cells = (f"{one['ours_s']:.1f}", f"{one['torch_s']:.1f}", f"{one['difference']:.1e}")
        rows.append((name, f"{one['mib']:.1f}", *cells))
    columns = (
        "model", "ONNX file, MiB", "drawn and written, s", "torch, not written, s",
        "largest difference",
    )  # fmt: skip
    return report.Table(f"{count:,} pictures", columns, tuple(rows))


def targets(found: dict[str, dict[str, float]], count: int) -> list[report.Target]:
    """What was asked for: the time, and the parity."""
    slowest = max(one["ours_s"] for one in found.values())
    furthest = max(one["difference"] for one in found.values())
    time_asked = f"{count:,} pictures of each model in at most {MOST_S:.0f} s"
    return [
        report.Target(time_asked, f"{slowest:.1f}", slowest <= MOST_S),
        report.Target(
            f"no number further than {PARITY:g} from torch", f"{furthest:.1e}", furthest <= PARITY
        ),
    ]


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, or one JSON object."""
    parser = argparse.ArgumentParser(description="Drawing by onnxruntime, beside torch.")
    report.add_json(parser)
    parser.add_argument("--count", type=int, default=1000)
    options = parser.parse_args(arguments)
    report.say_conditions()
    found: dict[str, Any] = {}
    for label, source in SOURCES.items():
        found[label] = measure(*source, options.count)
    made = targets(found, options.count)
    report.give(options.json, "drawing", [table(found, options.count)], found, made)


if __name__ == "__main__":
    main()
