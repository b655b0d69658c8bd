"""A hospital's size: seconds and peak memory of a site's stages on generated cohorts, and growth.

    python -m benchmarks.cohort_scale [--json [FILE]] [--sizes 5000 50000] [--side 512]

A reader invents grey photographs of `--side` pixels, one a patient, and of one in a hundred a copy
that was saved again under a second id; no file holds a pixel. The rest is a site's own code:
listing, identities, spool, near-duplicates, writing with its digest, opening, verifying.
Process time of one thread, without the reader's. Peak memory: resident, of the stage alone.
The exponent is that of a power law through the smallest and the largest size.
For inversion, operations are counted (torch's FlopCounterMode on one image), and divided by what an
H100 computes in float32 without TF32, at the share named below.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # opacus has a package benchmarks too

import numpy as np
from numpy.typing import NDArray

from benchmarks import report

KEY = bytes(32)
COPY_EVERY = 100
LARGEST_MIB = 4096
MOST_EXPONENT = 1.3
MOST_NEAR_S = 300.0
H100_FLOPS = 67e12  # float32, data sheet of the SXM module
H100_SHARE = 0.3
WIDTH, LATENT = 32, 128  # the networks whose operations are counted
STEPS, ITERATIONS = 20, 3


@dataclass
class Reader:
    """Invents the photograph of each file, by its number; counts its own time."""

    side: int
    spent_s: float = 0.0
    _bank: NDArray[np.uint8] = field(init=False)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(0)
        coarse = rng.integers(0, 256, (64, 16, 16), dtype=np.uint8)
        self._bank = np.kron(coarse, np.ones((1, self.side // 16, self.side // 16), np.uint8))

    def decode_all(self, paths: Iterable[Path], *_: object) -> Iterator[Any]:
        """Yield a photograph for every path, as the children would."""
        from client.ingest.request import Photograph

        for path in paths:
            start = time.process_time()
            number = int(path.stem)
            pixels = self.picture(number)
            digest = number.to_bytes(32, "big")
            self.spent_s += time.process_time() - start
            yield Photograph(pixels, digest, False, f"patient {number}", "", 0)

    def picture(self, number: int) -> NDArray[np.uint8]:
        """One photograph, uint8 [side, side, 1]; each COPY_EVERY-th is its predecessor's copy."""
        copied = number % COPY_EVERY == COPY_EVERY - 1
        rng = np.random.default_rng(number - copied)
        fields = rng.integers(0, 128, (16, 16), dtype=np.uint8)
        own = np.kron(fields, np.ones((self.side // 16, self.side // 16), np.uint8))
        pixels = own + (self._bank[rng.integers(64)] >> 1) + np.uint8(copied)
        return np.asarray(pixels)[..., None]


@dataclass
class Meter:
    """Process time and peak memory between two marks."""

    found: dict[str, dict[str, float]] = field(default_factory=dict)
    _start: float = 0.0

    def begin(self) -> None:
        """Start a stage: forget the peak so far."""
        Path("/proc/self/clear_refs").write_text("5")
        self._start = time.process_time()

    def end(self, stage: str, less_s: float = 0.0) -> None:
        """Note the stage that ends here, and start the next."""
        spent = time.process_time() - self._start - less_s
        status = Path("/proc/self/status").read_text()
        peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
        self.found[stage] = {"s": round(spent, 2), "mib": round(peak)}
        self.begin()


def run_stages(count: int, side: int, folder: Path) -> dict[str, dict[str, float]]:
    """Every stage at one size, in this process."""
    from client.ingest import decode
    from client.ingest.build import COMPARING, READING, ingest
    from client.ingest.cohort import Cohort
    from client.state.people import PeopleFile
    from common.study.intake import Intake

    source = folder / "data"
    for number in range(count):
        path = source / f"{number // 1000}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    rules = Intake.model_construct(
        dicom_modalities=("DX",), size_px=side, channels=1, labels=("all",), ordinal_labels=False,
        merge_labels={}, stratify_laterality=False, window=None, volumes=None,
    )  # fmt: skip
    reader = Reader(side)
    decode.decode_all = reader.decode_all
    meter = Meter()

    def mark(name: str, done: int, total: int) -> None:
        if done == total and name == READING:
            meter.end("list, identify, spool", reader.spent_s)
        elif done == total and name == COMPARING:
            meter.end("near-duplicates, persons")

    meter.begin()
    made = ingest(
        source, rules, KEY, folder / "cohort", people=PeopleFile(folder / "people.sqlite"),
        phases=mark,
    )  # fmt: skip
    meter.end("write and digest")
    assert made.merged == count // COPY_EVERY
    cohort = Cohort.open(folder / "cohort")
    meter.end("open")
    cohort.verify()
    meter.end("verify")
    return meter.found


def in_a_process(count: int, side: int) -> dict[str, dict[str, float]]:
    """`run_stages` in a process of its own, in a folder that goes again."""
    folder = Path(tempfile.mkdtemp(prefix="cohort-scale-"))
    try:
        command = [sys.executable, __file__, "--one", str(count), str(folder), "--side", str(side)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return dict(json.loads(done.stdout))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def count_inversion(side: int) -> dict[str, float]:
    """Operations to invert one image, and what they are for 50,000 on an H100.

    The encoder and the generator run once an iteration, and the generator once a step forward and
    twice back (by its input and through its layers).
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from common.models.encoder import Encoder
    from common.models.stylegan import Generator

    generator = Generator(side, 1, WIDTH, LATENT).eval().requires_grad_(False)
    encoder = Encoder(side, 1, WIDTH, LATENT).eval().requires_grad_(False)
    with torch.no_grad(), FlopCounterMode(display=False) as first:
        encoder.invert(torch.zeros(1, 1, side, side), generator, 1, keep_best=False)
    codes = torch.zeros(1, generator.layer_count, LATENT)
    with torch.no_grad(), FlopCounterMode(display=False) as second:
        generator.synthesis(codes)
    total = ITERATIONS * first.get_total_flops() + (3 * STEPS + 1) * second.get_total_flops()
    seconds = total / (H100_FLOPS * H100_SHARE)
    return {"gflop_an_image": round(total / 1e9, 1), "h100_s_of_50000": round(50_000 * seconds)}


def growth(found: dict[str, Any], sizes: Sequence[int], stage: str, kind: str) -> float:
    """The exponent of a stage's time ("s") or memory ("mib") between the first and last size."""
    first = max(found[str(sizes[0])][stage][kind], 0.01)
    last = max(found[str(sizes[-1])][stage][kind], 0.01)
    return math.log(last / first) / math.log(sizes[-1] / sizes[0])


def tables(found: dict[str, Any]) -> list[report.Table]:
    """Seconds, memory and exponents by stage; what the inversion is on an H100."""
    sizes = found["sizes"]
    runs = found["stages"]
    rows = []
    for stage in runs[str(sizes[0])]:
        cells = []
        for size in sizes:
            one = runs[str(size)][stage]
            cells += [f"{one['s']:.2f}", f"{one['mib']:.0f}"]
        cells.append(f"{growth(runs, sizes, stage, 's'):.2f}")
        cells.append(f"{growth(runs, sizes, stage, 'mib'):.2f}")
        rows.append((stage, *cells))
    columns = [name for size in sizes for name in (f"{size:,}: s", f"{size:,}: MiB")]
    titles = ("stage", *columns, "exponent of time", "exponent of memory")
    counted = found["inversion"]
    estimate = (
        f"{counted['gflop_an_image']:,.0f}",
        f"{counted['h100_s_of_50000'] / 60:,.0f}",
    )
    title = f"Stages, grey photographs of {found['side']} px"
    return [
        report.Table(title, titles, tuple(rows)),
        report.Table(
            f"Inversion of 50,000 images on one H100, by counted operations ({found['side']} px, "
            f"width {WIDTH})",
            ("GFLOP an image", "minutes"),
            (estimate,),
            f"{ITERATIONS} iterations of encoder and generator, then {STEPS} steps of three "
            f"generator passes and a last one; images x operations / ({H100_FLOPS / 1e12:.0f} "
            f"TFLOP/s x {H100_SHARE}).",
        ),
    ]


def targets(found: dict[str, Any]) -> list[report.Target]:
    """Bounds on growth, memory and the time of near-duplicates."""
    sizes = found["sizes"]
    runs = found["stages"]
    largest = max(one["mib"] for one in runs[str(sizes[-1])].values())
    near = runs[str(sizes[-1])]["near-duplicates, persons"]["s"]
    made = [
        report.Target(
            f"near-duplicates of {sizes[-1]:,} in {MOST_NEAR_S:.0f} s",
            f"{near}",
            near <= MOST_NEAR_S,
        ),
        report.Target(
            f"peak memory of {sizes[-1]:,} at most {LARGEST_MIB} MiB",
            f"{largest:.0f}",
            largest <= LARGEST_MIB,
        ),
    ]
    for stage in runs[str(sizes[0])]:
        exponent = growth(runs, sizes, stage, "s")
        made.append(
            report.Target(
                f"{stage}: time grows by at most n^{MOST_EXPONENT}",
                f"{exponent:.2f}",
                exponent <= MOST_EXPONENT,
            )
        )
    return made


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    report.add_json(parser)
    parser.add_argument("--sizes", type=int, nargs="+", default=[5000, 50_000])
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--one", nargs=2, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(run_stages(int(options.one[0]), options.side, Path(options.one[1]))))
        return
    stages: dict[str, Any] = {}
    for size in options.sizes:
        stages[str(size)] = in_a_process(size, options.side)
        print(f"{size:,} done", file=sys.stderr)
    found: dict[str, Any] = {"sizes": options.sizes, "side": options.side, "stages": stages}
    found["inversion"] = count_inversion(options.side)
    report.give(
        options.json, f"cohort_scale.{options.side}px", tables(found), found, targets(found)
    )


if __name__ == "__main__":
    main()
