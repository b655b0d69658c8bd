"""The field of view of public fundus photographs: how many are left out, and how exact it is.

    python -m benchmarks.field_of_view --data FOLDER [--json [FILE]] [--people 110]

Sources: the .npz files of six cameras and hospitals, 128 px, cropped to what is bright.
Raw frames: each photograph whose circle is whole, four times as large, at a random place of a wide
black frame, with letters, a tab at the edge and noise. The circle is compared with the one of the
crop. The checkpoint: IDRiD's held-out people inverted, as the whole crop and as the field of view.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks import fundus_split, report
from client.ingest.images import frame_image
from common.arrays import Floats, Images, Pixels
from common.field_of_view import Field, find_field

SOURCES = {
    "IDRiD": "idrid_128",
    "CSDI": "fundus_csdi_128",
    "PALM": "fundus_palm_128",
    "ODIR": "fundus_odir_128",
    "EyePACS": "fundus_eyepacs_128",
    "DIARETDB1": "fundus_diaretdb1_128",
}
FRAME = (600, 900)
ENLARGED_PX = 512
CROP_PX = 128
MOST_LEFT_OUT = 0.01
RAW_FRAMES = 40  # of each source


def photographs(data: Path, name: str) -> Images:
    """The images of one source, uint8 [N, 128, 128, 3]."""
    with np.load(data / f"{name}.npz", allow_pickle=False) as arrays:
        images: Images = arrays["images"]
    return images


def raw_frame(pixels: Pixels, chance: np.random.Generator) -> tuple[Pixels, int, int]:
    """A photograph in a wide frame with letters, a tab and noise; and its place, row and column."""
    noise = chance.integers(0, 12, (*FRAME, 1)).astype(np.uint8)
    frame = np.repeat(noise, 3, axis=2)
    top = int(chance.integers(0, FRAME[0] - ENLARGED_PX))
    left = int(chance.integers(100, FRAME[1] - ENLARGED_PX - 100))
    large = Image.fromarray(pixels).resize((ENLARGED_PX, ENLARGED_PX), Image.Resampling.BICUBIC)
    part = frame[top : top + ENLARGED_PX, left : left + ENLARGED_PX]
    np.maximum(part, np.asarray(large), out=part)
    frame[top + 230 : top + 262, left + 500 : left + 526] = 160
    frame[8:24, 10:90:5] = 255
    return frame, top, left


def judge_source(images: Images) -> tuple[dict[str, float], list[Field | None]]:
    """How many have a field, how wide the circles are, and seconds of one thread."""
    start = time.process_time()
    fields = [find_field(pixels) for pixels in images]
    took_s = time.process_time() - start
    radii = np.array([field.circle.radius for field in fields if field is not None])
    low, high = np.percentile(2 * radii / CROP_PX, (5, 95)).tolist()
    found = {
        "photographs": len(images),
        "left out": len(images) - len(radii),
        "diameter, 5 %": round(low, 3),
        "diameter, 95 %": round(high, 3),
        "milliseconds": round(1000 * took_s / len(images), 1),
    }
    return found, fields


def judge_raw_frames(images: Images, fields: list[Field | None]) -> list[float]:
    """By how much of the radius the circle in a raw frame lies elsewhere; infinite: not found."""
    chance = np.random.default_rng(0)
    scale = ENLARGED_PX / CROP_PX
    errors = []
    for pixels, field in zip(images, fields, strict=True):
        # a circle that the crop cuts has no radius to compare with
        if field is None or field.circle.radius > CROP_PX / 2 or len(errors) == RAW_FRAMES:
            continue
        frame, top, left = raw_frame(pixels, chance)
        seen = find_field(frame)
        error = float("inf")
        if seen is not None:
            circle = field.circle
            row = seen.circle.row - top - scale * circle.row
            column = seen.circle.column - left - scale * circle.column
            radius = seen.circle.radius - scale * circle.radius
            error = max(abs(row), abs(column), abs(radius)) / (scale * circle.radius)
        errors.append(error)
    return errors


def inversions(data: Path, count: int) -> dict[str, dict[str, float]]:
    """Share accepted and errors of held-out people, framed whole and by the field of view."""
    from benchmarks.quality_generator import SHIPPED, SIZE_PX, Bench
    from client.synthesize.align import AlignmentPlan

    people = fundus_split.split(CROP_PX, data)["heldout"].images[:count]
    bench = Bench(SHIPPED, {}, AlignmentPlan())
    found = {}
    for name, by_field in (("whole crop", False), ("field of view", True)):
        framed = [frame_image(one, SIZE_PX, 3, field_of_view=by_field) for one in people]
        inverted = bench.inverted(np.stack(framed))
        errors: Floats = inverted.errors
        accepted: NDArray[np.bool_] = inverted.accepted
        found[name] = {
            "people": len(people),
            "left out": int((~accepted).sum()),
            "error, median": round(float(np.median(errors)), 4),
            "error, 95 %": round(float(np.quantile(errors, 0.95)), 4),
        }
    return found


def table(title: str, rows: dict[str, dict[str, Any]], note: str = "") -> report.Table:
    """Rows by name, their keys as columns."""
    columns = ("", *next(iter(rows.values())))
    cells = tuple((name, *map(str, row.values())) for name, row in rows.items())
    return report.Table(title, columns, cells, note)


def main() -> None:
    """Measure, and print or write the run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--people", type=int, default=110)
    report.add_json(parser)
    given = parser.parse_args()
    report.say_conditions()

    sources = {}
    raw = {}
    for title, name in SOURCES.items():
        images = photographs(given.data, name)
        sources[title], fields = judge_source(images)
        errors = judge_raw_frames(images, fields)
        if errors:
            raw[title] = {
                "raw frames": len(errors),
                "not found": int(np.isinf(errors).sum()),
                "off by, median": f"{100 * float(np.median(errors)):.1f} %",
                "off by, worst found": f"{100 * max(e for e in errors if e < np.inf):.1f} %",
            }
    inverted = inversions(given.data, given.people)

    left_out = sum(row["left out"] for row in sources.values())
    total = sum(row["photographs"] for row in sources.values())
    targets = (
        report.Target(
            f"photographs left out: at most {MOST_LEFT_OUT:.0%}",
            f"{left_out} of {total}",
            left_out <= MOST_LEFT_OUT * total,
        ),
        report.Target(
            "the checkpoint leaves out no more people than with whole crops",
            f"{inverted['field of view']['left out']}, {inverted['whole crop']['left out']}",
            inverted["field of view"]["left out"] <= inverted["whole crop"]["left out"],
        ),
    )
    tables = (
        table("Sources", sources, "Diameters are shares of the crop's side, after shrinking."),
        table("Raw frames", raw, "Off by: shares of the radius."),
        table("IDRiD's held-out people under the shipped checkpoint, 64 px", inverted),
    )
    figures = {"sources": sources, "raw frames": raw, "inversions": inverted}
    report.give(given.json, "field_of_view", tables, figures, targets)


if __name__ == "__main__":
    main()
