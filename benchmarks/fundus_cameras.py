"""How well a fundus checkpoint inverts photographs of cameras that it never saw.

    python -m benchmarks.fundus_cameras --data FOLDER [--checkpoint DIR ...] [--count 24]
        [--refined] [--size 64] [--part NAME] [--pictures DIR] [--json [FILE]]

Data: IDRiD's held-out people and each other source, framed as at a hospital (fundus_sources.py).
Each photograph is brought into the own look of the generator: that of its samples. The error is
the RMSE inside the photograph's field, as a share of the photograph's own deviation there. Its mean
colour alone would give 1.
- by the encoder alone, the better of one and two steps
- with `--refined`, after the site's refinement too (client/synthesize/invert.py)
Of each source the first `--count` photographs of a fixed shuffle count. Nothing is selected here.
At a larger `--size` the checkpoints are of that size (a generator that grew: half the width for
twice the size). Errors are then measured at 64 px too, where checkpoints of all sizes compare.
`--pictures` writes a sheet for each checkpoint: photographs, inversions, and averages of ten codes
beside averages of ten photographs.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from benchmarks import fundus_sources, report
from benchmarks.quality_generator import CAP_BYTES, LATENT, SHIPPED, SIZE_PX, WIDTH, generator_of
from client.synthesize.invert import invert, reconstruct
from client.synthesize.reference import InversionPlan, make_reference
from common.models.encoder import Encoder, load_encoder
from common.models.images import to_uint8, to_unit
from common.models.look import Look, field_of, in_look, look_of
from common.models.stylegan import Generator, load_generator
from common.study.training import GanPlan
from common.wire.tensors import read

SOURCES = ("idrid", "csdi", *fundus_sources.MEASURED)
SAMPLES = 64  # for the generator's look
AVERAGED = 10
COLUMNS = 10


class Bench:
    """A checkpoint, and its own look."""

    def __init__(self, folder: Path, size_px: int = SIZE_PX) -> None:
        size = GanPlan.model_construct(width=WIDTH * SIZE_PX // size_px, latent=LATENT)
        gan = read(folder / "gan.safetensors", max_bytes=CAP_BYTES)
        encoder = read(folder / "encoder.safetensors", max_bytes=CAP_BYTES)
        self.generator: Generator = load_generator(gan, size, size_px, 3)
        self.encoder: Encoder = load_encoder(encoder, WIDTH, LATENT, size_px, 3)
        self.look = self._own_look()

    @torch.no_grad()
    def _own_look(self) -> Look:
        """The mean look of samples; deviations are averaged in their logarithm."""
        draw = generator_of(0)
        codes = torch.randn(SAMPLES, LATENT, generator=draw)
        made = self.generator(codes, draw).clamp(-1, 1)
        own = look_of(made, field_of(made))
        return Look(own.mean.mean(0, keepdim=True), own.deviation.log().mean(0, keepdim=True).exp())

    def in_own_look(self, images: np.ndarray) -> Tensor:
        """The photographs [N, 3, S, S] in the generator's look, black around them."""
        x = to_unit(images)
        lit = (x.amax(1, keepdim=True) > -1).to(x.dtype)
        return in_look(x, lit, look_of(x, field_of(x)), self.look).clamp(-1, 1)

    @torch.no_grad()
    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Codes and reconstructions of `x` by the encoder alone."""
        found = self.encoder.invert(x, self.generator, 2, keep_best=True)
        return found.codes, found.reconstructions.clamp(-1, 1)

    def refine(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Codes and reconstructions of `x` after the site's refinement."""
        plan = InversionPlan()
        known = make_reference(self.generator, self.encoder, plan, generator_of(0))
        found = invert(to_uint8(x), self.generator, self.encoder, plan, known)
        codes = torch.as_tensor(np.array(found.codes))
        return codes, to_unit(to_uint8(reconstruct(found.codes, self.generator)))


def relative_error(x: Tensor, made: Tensor, field: Tensor) -> Tensor:
    """RMSE inside the field over the deviation there, [N], all channels together."""
    pixels = 3 * field.sum((1, 2, 3)).clamp(min=1)
    error = ((made - x).square() * field).sum((1, 2, 3)) / pixels
    mean = (x * field).sum((2, 3), keepdim=True) * 3 / pixels[:, None, None, None]
    own = ((x - mean).square() * field).sum((1, 2, 3)) / pixels
    return (error / own).sqrt()


def halved(x: Tensor) -> Tensor:
    """Pictures averaged down to 64 px."""
    return F.avg_pool2d(x, x.shape[-1] // SIZE_PX)


def read_sources(data: Path, count: int, size_px: int = SIZE_PX) -> dict[str, np.ndarray]:
    """Source → its photographs, uint8 [N, S, S, 3]."""
    found = {}
    for name in SOURCES:
        if name == "idrid":
            source = fundus_sources.read_idrid(data, "heldout", size_px, count)
        else:
            source = fundus_sources.read_other(data, name, size_px, count)
        found[name] = source.images
    return found


def measure(
    bench: Bench, sources: dict[str, np.ndarray], refined: bool
) -> dict[str, dict[str, float]]:
    """Source → median and 90 % of the relative error."""
    rows = {}
    for name, images in sources.items():
        x = bench.in_own_look(images)
        field = field_of(to_unit(images))
        made = {"encoder": bench.encode(x)[1]}
        if refined:
            made["refined"] = bench.refine(x)[1]
        errors = {}
        for part, pictures in made.items():
            errors[part] = relative_error(x, pictures, field)
            if x.shape[-1] > SIZE_PX:
                inside = (halved(field) >= 1).to(x.dtype)
                errors[f"{part}, at 64 px"] = relative_error(halved(x), halved(pictures), inside)
        rows[name] = {"photographs": len(images)} | {
            f"{part} {word}": round(float(values.quantile(q)), 3)
            for part, values in errors.items()
            for word, q in (("median", 0.5), ("90 %", 0.9))
        }
    return rows


def draw_sheet(bench: Bench, sources: dict[str, np.ndarray], refined: bool) -> np.ndarray:
    """Photographs and inversions of each source, then averages of ten codes and of ten pictures."""
    invert_them = bench.refine if refined else bench.encode
    lines = []
    for images in sources.values():
        x = bench.in_own_look(images)
        codes, made = invert_them(x)
        lines += [to_uint8(x[:COLUMNS]), to_uint8(made[:COLUMNS])]
        if len(x) < AVERAGED:
            continue
        groups = [range(at, at + AVERAGED) for at in range(0, len(x) - AVERAGED + 1, AVERAGED)]
        means = torch.stack([codes[list(group)].mean(0) for group in groups])
        pixels = torch.stack([x[list(group)].mean(0) for group in groups])
        with torch.no_grad():
            averages = bench.generator.synthesis(means, generator_of(1))
        lines.append(to_uint8(torch.cat([averages, pixels]))[:COLUMNS])
    return np.concatenate([_filled_up(line) for line in lines])


def _filled_up(line: np.ndarray) -> np.ndarray:
    """A line [S, COLUMNS S, 3] of at most COLUMNS pictures [N, S, S, 3], black where none is."""
    empty = np.zeros((COLUMNS - len(line), *line.shape[1:]), np.uint8)
    return np.concatenate(list(np.concatenate([line, empty])), 1)


def tables(result: dict[str, Any]) -> list[report.Table]:
    """One table for each way to invert, a row for each source, a column for each checkpoint."""
    found = []
    first = next(iter(result.values()))
    parts = {
        "encoder": "The encoder alone",
        "encoder, at 64 px": "The encoder alone, measured at 64 px",
        "refined": "After the refinement",
        "refined, at 64 px": "After the refinement, measured at 64 px",
    }
    for part, title in parts.items():
        if f"{part} median" not in first["idrid"]:
            continue
        rows = []
        for source in first:
            cells = [one[source] for one in result.values()]
            shown = (f"{cell[f'{part} median']:.2f} ({cell[f'{part} 90 %']:.2f})" for cell in cells)
            rows.append((source, str(first[source]["photographs"]), *shown))
        columns = ("source", "photographs", *result)
        found.append(report.Table(f"{title}: median relative error (90 %)", columns, tuple(rows)))
    return found


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with idrid_128.npz")
    parser.add_argument("--checkpoint", type=Path, nargs="+", default=[SHIPPED])
    parser.add_argument("--count", type=int, default=24, help="photographs of each source")
    parser.add_argument("--refined", action="store_true", help="measure the refinement too")
    parser.add_argument("--pictures", type=Path, help="folder for a sheet of each checkpoint")
    parser.add_argument("--size", type=int, choices=(64, 128), default=SIZE_PX)
    parser.add_argument("--part", default="", help="a name for this run")
    report.add_json(parser)
    given = parser.parse_args()
    torch.set_num_threads(1)
    sources = read_sources(given.data, given.count, given.size)
    result: dict[str, Any] = {}
    for folder in given.checkpoint:
        bench = Bench(folder, given.size)
        result[folder.name] = measure(bench, sources, given.refined)
        if given.pictures:
            given.pictures.mkdir(parents=True, exist_ok=True)
            sheet = Image.fromarray(draw_sheet(bench, sources, given.refined))
            sheet.save(given.pictures / f"{folder.name}.png")
    name = ".".join(filter(None, ("fundus_cameras", given.part)))
    report.give(given.json, name, tables(result), result)


if __name__ == "__main__":
    main()
