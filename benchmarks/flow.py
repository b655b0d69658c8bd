"""The flow beside normflows and Opacus: speed, memory, exactness, and decoded noise. One run.

    python benchmarks/flow.py [--json [FILE]] [--parts speed,exact,noise] [--repeats 5]
        [--steps 700] [--data FILE.npz] [--input-noise 0.03] [--flow SIZES:FILE ...]
        [--pictures FILE.png] [--without-normflows] [--part PROCESSOR] [--quick]

Speed: 32 px gray, L3 K8 width 64, batch 16; one thread, process time, the smallest of alternating
  repeats. A private step is whole: gradients, clip, lattice noise, Adam.
Memory: unique storages kept for the backward pass, 64 px gray, L4 K8 width 64, batch 8.
Exactness: greatest pixel error of decode(encode(x)) of the flows trained here, the shipped ones, 64
  and 128 px after 12 steps, and `--flow 128,1,5,8,96:FILE` (size, channels, L, K, width).
Noise: benchmarks/flow_noise.py. Images: 4,000 soft discs; radiographs of the demo or of `--data`.
Not covered: the quality of images, and the privacy of anything here.
"""

import argparse
import contextlib
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # opacus has a package benchmarks too

from benchmarks import report
from benchmarks.flow_layouts import FULL, QUICK
from benchmarks.flow_noise import SCALES, exactness, trained_figures
from benchmarks.flow_peer import fetch_normflows
from benchmarks.flow_speed import fastest, peer_figures, private_figures, saved_by_ours
from common.privacy.noise import NoiseSource

LAPLACE_DRAWS = 65_536
LAPLACE_SCALE = 2.0**10
KEYS_OF_PEER = (
    "train_over_normflows",
    "encode_over_normflows",
    "invert_over_normflows",
    "memory_over_normflows",
    "psnr_gain_b1_db",
    "psnr_gain_b1_radiographs_db",
)
AT_MOST = {  # figure: (what it is, limit)
    "dp_ratio_channels_last": (
        "private over non-private step in channels-last memory, 32 px L3 K8 w64, 16 patients",
        1.5,
    ),
    "dp_ratio_channels_last_64": ("the same, 64 px L4 K8 w64, 8 patients", 1.5),
    "memory_over_normflows": ("saved for the backward pass over normflows, 64 px", 0.7),
    "reversible_mib": ("saved for the backward pass, reversible, MiB", 5.0),
    "laplace_65k_s": ("65,536 discrete Laplace draws, s", 0.04),
    "roundtrip_f32": ("round trip in float32, worst", 1e-5),
    "roundtrip_f64": ("round trip in float64, worst", 1e-12),
    "out_of_range_b05": ("decoded at b = 0.5, share of pixels out of range, discs", 0.01),
    "out_of_range_b05_radiographs": ("the same, radiographs", 0.01),
}
AT_LEAST = {
    "dp_speedup_over_opacus_hooks": ("private step, times as fast as Opacus' hooks", 1.7),
    "train_over_normflows": ("train over normflows, 32 px L3 K8 w64 B16", 1.1),
    "encode_over_normflows": ("encode over normflows", 1.1),
    "invert_over_normflows": ("invert over normflows", 1.1),
    "psnr_gain_b1_radiographs_db": ("gain over the naive pipeline at b = 1, radiographs, dB", 10.0),
    "psnr_gain_b1_db": ("gain over the naive pipeline at b = 1, discs, dB", 10.0),
}
WHO = {
    "naive": "naive: standard Glow, raw",
    "naive_gray": "the same, mid-gray for lost pixels",
    "naive_matched": "the same, variance match",
    "loose": "ours with alpha = 2, no input noise, raw",
    "loose_matched": "the same, variance match",
    "ours_raw": "ours, raw",
    "": "ours, variance match",
}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Every figure; those that need normflows are None where it was not fetched."""
    layouts = QUICK if options.quick else FULL
    torch.manual_seed(0)
    found: dict[str, Any] = dict.fromkeys(KEYS_OF_PEER)
    with (
        contextlib.nullcontext((None, "not asked for"))
        if options.without_normflows
        else fetch_normflows() as (peers, why)
    ):
        found["skipped"] = f"normflows: {why}" if why else ""
        if "speed" in options.parts:
            found |= private_figures(layouts, options.repeats)
            print(f"private step: {found}", file=sys.stderr)
            if peers is not None:
                found |= peer_figures(layouts, options.repeats, peers)
            print(f"beside normflows: {found}", file=sys.stderr)
            source = NoiseSource()
            draw = {"laplace": lambda: source.discrete_laplace(LAPLACE_DRAWS, LAPLACE_SCALE)}
            found["laplace_65k_s"] = fastest(draw, options.repeats)["laplace"]
            large = layouts["speed_64"]
            found["saved_mib"] = saved_by_ours(large, False)
            found["reversible_mib"] = saved_by_ours(large, True)
        if "exact" in options.parts:
            found |= exactness(layouts, options.steps, options.flow)
        if "noise" in options.parts:
            found |= trained_figures(layouts, options, peers)
    for dtype in ("f32", "f64"):
        errors = [value for key, value in found.items() if key.startswith(f"roundtrip_{dtype}_")]
        found[f"roundtrip_{dtype}"] = max(errors, default=None)
    for key, value in found.items():
        if isinstance(value, float):
            found[key] = float(f"{value:.4g}")
    return found


def noise_table(found: dict[str, Any], end: str, title: str) -> report.Table:
    """PSNR by pipeline and noise; `end` is the ending of the keys of one set of images."""
    rows = []
    for who, label in WHO.items():
        values = []
        for name in SCALES:
            key = f"psnr_{who}_{name}{end}_db".replace("__", "_")
            value = found.get(key)
            values.append("" if value is None else f"{value:.1f}")
        rows.append((label, *values))
    mean = found.get(f"psnr_mean_image{end}_db")
    columns = (f"PSNR in dB (mean image {mean:.1f})", *(f"b = {b:g}" for b in SCALES.values()))
    return report.Table(title, columns, tuple(rows))


def tables(found: dict[str, Any]) -> list[report.Table]:
    """The tables of what was measured, and every figure."""
    made = []
    if "psnr_mean_image_db" in found:
        made.append(noise_table(found, "", "Soft discs with pixel noise"))
        made.append(noise_table(found, "_radiographs", "Real radiographs"))
    rows = tuple((key, str(value)) for key, value in found.items() if value is not None)
    return [*made, report.Table("All figures", ("figure", "value"), rows)]


def targets(found: dict[str, Any]) -> list[report.Target]:
    """What was asked for, of what was measured."""
    lines = []
    for key, (what, limit) in AT_MOST.items():
        if found.get(key) is not None:
            asked = f"{what}: at most {limit:g}"
            lines.append(report.Target(asked, f"{found[key]:g}", found[key] <= limit))
    for key, (what, limit) in AT_LEAST.items():
        if found.get(key) is not None:
            asked = f"{what}: at least {limit:g}"
            lines.append(report.Target(asked, f"{found[key]:g}", found[key] >= limit))
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the figures as a table, or as one JSON object."""
    parser = argparse.ArgumentParser(description="The flow beside normflows and opacus.")
    report.add_json(parser)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--steps",
        type=int,
        default=700,
        help="of each training that the noise on latents is shown on",
    )
    parser.add_argument(
        "--parts", type=lambda text: text.split(","), default=["speed", "exact", "noise"]
    )
    parser.add_argument(
        "--data", type=Path, help=".npz with train_images and val_images, uint8 [N, S, S]"
    )
    parser.add_argument(
        "--input-noise", type=float, default=0.03, help="of our flow's training images"
    )
    parser.add_argument(
        "--flow", action="append", default=[], help="SIZE,CHANNELS,L,K,WIDTH:FILE.safetensors"
    )
    parser.add_argument(
        "--pictures", type=Path, help="PNG to write: test images decoded from noised latents"
    )
    parser.add_argument("--without-normflows", action="store_true")
    parser.add_argument("--part", default="", help="a name for this processor's run")
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes: that it runs, not how fast"
    )
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")  # opacus' and torch's remarks on hooks
    torch.set_num_threads(1)
    report.say_conditions()
    found = measure(options)
    name = ".".join(filter(None, ("flow", options.part)))
    report.give(options.json, name, tables(found), found, targets(found))


if __name__ == "__main__":
    main()
