"""Files a processor second of ingest, of this checkout beside another one.

    python -m benchmarks.ingest_speed --other FOLDER [--files 400] [--distinct 40] [--text]
        [--json [FILE]]

FOLDER is another checkout of kohort with its environment: `git worktree add FOLDER COMMIT`, then
`make setup` there. Invented radiographs of 2048 x 2048 pixels and 12 bits, with a marker of the
side, linked many times: uncompressed with a window and without, JPEG-LS, lossless JPEG. With --text
this checkout also runs with text in pixels sought.
Measured: `ingest` as the daemon calls it, with one decoder; process time of the process and its
children, without imports and the start of a child; the smallest of alternating repeats.
Not covered: reading from a slow disk, and files that differ in size.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # opacus has a package benchmarks too

import numpy as np
from imagecodecs import jpeg8_encode, jpegls_encode
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, JPEGLosslessSV1, JPEGLSLossless, generate_uid

from benchmarks import report

SIDE = 2048
BITS = 12
SIZE_PX = 128
LEAST = {"with a window": 1.8, "without a window": 1.8, "JPEG-LS": 3.0, "lossless JPEG": 2.0}
COLUMNS = ("radiographs", "other: files/s", "this: files/s", "times", "same cohort")
TEXT_COLUMNS = ("text sought: files/s", "times", "taken")
MARKER = "R"
QUIET = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
# run in each checkout; what `ingest` took, without what comes before the first file
WORK = """
import json, resource, sys, time
from pathlib import Path
from client.ingest.build import ingest
from client.ingest.request import Limits
from common.study.intake import Intake

def spent():
    return sum(
        part.ru_utime + part.ru_stime
        for part in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )

source, out, size_px = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
limits = Limits(workers=1)
if sys.argv[4:] == ["text"]:
    from client.ingest.request import Choices
    limits = Limits(workers=1, choices=Choices(find_text=True))
rules = Intake(dicom_modalities=("DX",), size_px=size_px, channels=1, labels=("all",))
start = spent()
made = ingest(source, rules, bytes(32), out, limits=limits)
print(json.dumps({"s": spent() - start, "digest": made.digest, "found": made.ingested}))
"""


def draw(number: int) -> NDArray[np.uint16]:
    """One invented radiograph: soft shapes and grain, 12 bits, [SIDE, SIDE]."""
    rng = np.random.default_rng(number)
    coarse = rng.integers(200, 3800, (12, 12)).astype(np.float32)
    soft = np.asarray(Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    picture = Image.fromarray(soft)
    font = ImageFont.load_default(size=SIDE / 20)
    ImageDraw.Draw(picture).text((SIDE / 12, SIDE / 12), MARKER, fill=3900, font=font)
    grain = rng.normal(0, 12, (SIDE, SIDE))
    return (np.asarray(picture) + grain).clip(0, (1 << BITS) - 1).astype(np.uint16)


def write(kind: str, number: int, path: Path) -> None:
    """Write one radiograph of a kind."""
    pixels = draw(number)
    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    header.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[kind, str(number)])
    header.SOPClassUID = header.file_meta.MediaStorageSOPClassUID
    header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID
    header.PatientID = f"P-{number:04d}"
    header.Modality = "DX"
    header.BodyPartExamined = "CHEST"
    header.ViewPosition = "PA"
    header.PresentationIntentType = "FOR PRESENTATION"
    header.ImageType = ["ORIGINAL", "PRIMARY"]
    header.Rows = header.Columns = SIDE
    header.SamplesPerPixel = 1
    header.PhotometricInterpretation = "MONOCHROME2"
    header.BitsAllocated = 16
    header.BitsStored = BITS
    header.HighBit = BITS - 1
    header.PixelRepresentation = 0
    if kind != "without a window":
        header.WindowCenter = "2000"
        header.WindowWidth = "3600"

    # the pixels
    if kind == "JPEG-LS":
        header.file_meta.TransferSyntaxUID = JPEGLSLossless
        header.PixelData = encapsulate([jpegls_encode(pixels)])
    elif kind == "lossless JPEG":
        header.file_meta.TransferSyntaxUID = JPEGLosslessSV1
        frame = jpeg8_encode(pixels, lossless=True, bitspersample=BITS, predictor=1)
        header.PixelData = encapsulate([frame])
    else:
        header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        header.PixelData = pixels.tobytes()
    header["PixelData"].VR = "OW"
    header["PixelData"].is_undefined_length = header.file_meta.TransferSyntaxUID.is_encapsulated
    header.save_as(path, enforce_file_format=True)


def make_folder(kind: str, files: int, distinct: int, folder: Path) -> Path:
    """A folder of `files` files, `distinct` of them written and the rest linked to those."""
    folder.mkdir(parents=True)
    for number in range(distinct):
        write(kind, number, folder / f"{number:05d}.dcm")
    for number in range(distinct, files):
        os.link(folder / f"{number % distinct:05d}.dcm", folder / f"{number:05d}.dcm")
    return folder


def run_once(checkout: Path, source: Path, size_px: int, *options: str) -> dict[str, Any]:
    """One ingest in one checkout, by that checkout's own python; options: `text`."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [str(checkout / ".venv/bin/python"), "-c", WORK, str(source)]
        done = subprocess.run(
            [*command, f"{scratch}/cohort", str(size_px), *options],
            cwd=checkout,
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, **QUIET, "PYTHONPATH": str(checkout)},
        )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measure(
    checkouts: tuple[Path, Path],
    kinds: Sequence[str],
    files: int,
    distinct: int,
    repeats: int,
    *,
    with_text: bool,
) -> dict[str, Any]:
    """Files a second of both checkouts, of each kind; `text`: of this one, with text sought."""
    other, here = checkouts
    found: dict[str, Any] = {}
    for kind in kinds:
        with tempfile.TemporaryDirectory() as scratch:
            source = make_folder(kind, files, distinct, Path(scratch) / "data")
            runs: dict[str, list[dict[str, Any]]] = {"other": [], "this": []}
            for _ in range(repeats):
                runs["other"].append(run_once(other, source, SIZE_PX))
                runs["this"].append(run_once(here, source, SIZE_PX))
                if with_text:
                    runs.setdefault("text", []).append(run_once(here, source, SIZE_PX, "text"))
        rates = {name: files / min(one["s"] for one in made) for name, made in runs.items()}
        digests = {one["digest"] for made in runs.values() for one in made}
        found[kind] = {**rates, "same": len(digests) == 1, "found": runs["this"][0]["found"]}
        if with_text:
            found[kind]["found with text sought"] = runs["text"][0]["found"]
        print(kind, found[kind], file=sys.stderr)
    return found


def tables(found: dict[str, Any]) -> list[report.Table]:
    """One row a kind."""
    rows = []
    for kind, rates in found.items():
        times = rates["this"] / rates["other"]
        same = "yes" if rates["same"] else "no"
        row: tuple[str, ...] = (
            kind,
            f"{rates['other']:.1f}",
            f"{rates['this']:.1f}",
            f"{times:.2f}",
            same,
        )
        if "text" in rates:
            times = rates["text"] / rates["other"]
            taken = f"{rates['found with text sought']:,}"
            row = (*row, f"{rates['text']:.1f}", f"{times:.2f}", taken)
        rows.append(row)
    columns: tuple[str, ...] = COLUMNS
    if len(rows[0]) > len(COLUMNS):
        columns = COLUMNS + TEXT_COLUMNS
    return [report.Table("", columns, tuple(rows))]


def targets(found: dict[str, Any]) -> list[report.Target]:
    """At least so many times the other's files a second."""
    made = []
    for kind, rates in found.items():
        times = rates["this"] / rates["other"]
        aim = f"{kind}: at least {LEAST[kind]} times"
        made.append(report.Target(aim, f"{times:.2f}", times >= LEAST[kind]))
        if "text" in rates:
            times = rates["text"] / rates["other"]
            made.append(report.Target(f"{aim}, text sought", f"{times:.2f}", times >= LEAST[kind]))
    return made


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    report.add_json(parser)
    parser.add_argument("--other", type=Path, required=True)
    parser.add_argument("--kinds", nargs="+", choices=tuple(LEAST), default=tuple(LEAST))
    parser.add_argument("--files", type=int, default=400)
    parser.add_argument("--distinct", type=int, default=40)
    parser.add_argument("--text", action="store_true", help="also with text in pixels sought")
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    report.say_conditions()
    here = Path(__file__).resolve().parents[1]
    checkouts = (options.other.resolve(), here)
    counts = (options.files, options.distinct, options.repeats)
    found = measure(checkouts, options.kinds, *counts, with_text=options.text)
    # a run of some kinds alone is a part of the page
    name = "ingest_speed"
    if tuple(options.kinds) == ("without a window",):
        name = "ingest_speed.plain"
    elif "with a window" not in options.kinds:
        name = "ingest_speed.codecs"
    report.give(options.json, name, tables(found), found, targets(found))


if __name__ == "__main__":
    main()
