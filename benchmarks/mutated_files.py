"""Damaged image files, decoded by children as ingest does: their peak memory, what became of them.

    python -m benchmarks.mutated_files [--files 20000] [--text] [--json [FILE]]

Seeds: small DICOM files of every kind of codec, and stills of every format. Each file is a seed
with bytes, lengths and sizes changed at random (tests/fuzz/mutation.py), by a fixed random seed.
Peak: the largest resident memory of any child. A child that dies, or hangs, costs one file.
With --text the children also look for text in the pixels.
Not covered: large images; volumes.
"""

from __future__ import annotations

import argparse
import io
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # opacus has a package benchmarks too

from imagecodecs import jpeg8_encode
from PIL import Image
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from benchmarks import report
from client.ingest.decode import Decoder
from client.ingest.quarantine import Reason, Unusable
from client.ingest.request import Choices, Limits, Settings, child_bytes
from tests import phantoms
from tests.fuzz.mutation import damaged

MOST_MIB = 1024
STILLS = ("PNG", "JPEG", "TIFF", "BMP", "JPEG2000", "WEBP")
LOST = (Reason.DECODER_DIED, Reason.TIMED_OUT, Reason.OUT_OF_MEMORY)


def draw_dicom(folder: Path) -> Iterator[bytes]:
    """A small radiograph of each transfer syntax, and a palette."""
    deep = phantoms.grey(1, bits=12)
    shallow = phantoms.grey(1, bits=8)
    for syntax in (ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian):
        header = phantoms.header("DX", syntax=syntax)
        yield _bytes_of(phantoms.with_pixels(header, deep, "MONOCHROME2", 12), folder)
    for syntax in (RLELossless, JPEGLSLossless, JPEG2000Lossless):
        plain = phantoms.with_pixels(phantoms.header("DX"), deep, "MONOCHROME2", 12)
        yield _bytes_of(phantoms.compressed(plain, syntax), folder)
    lossless = jpeg8_encode(deep, lossless=True, bitspersample=12)
    twelve = jpeg8_encode(deep, bitspersample=12)
    yield _framed(deep, lossless, JPEGLosslessSV1, 12, folder)
    yield _framed(deep, twelve, JPEGExtended12Bit, 12, folder)
    yield _framed(shallow, jpeg8_encode(shallow), JPEGBaseline8Bit, 8, folder)


def _framed(pixels: Any, frame: bytes, syntax: UID, bits: int, folder: Path) -> bytes:
    dataset = phantoms.with_pixels(phantoms.header("DX"), pixels, "MONOCHROME2", bits)
    return _bytes_of(phantoms.encapsulated(dataset, frame, syntax, "MONOCHROME2"), folder)


def _bytes_of(dataset: Any, folder: Path) -> bytes:
    return phantoms.save(dataset, folder / "seed.dcm").read_bytes()


def draw_stills() -> Iterator[bytes]:
    """A small photograph of each format, in colour and, where there is one, in 16 bits of grey."""
    colour = Image.fromarray(phantoms.fundus(1, 64))
    deep = Image.fromarray(phantoms.grey(1, bits=16))
    for kind in STILLS:
        buffer = io.BytesIO()
        colour.save(buffer, kind)
        yield buffer.getvalue()
    for kind in ("PNG", "TIFF"):
        buffer = io.BytesIO()
        deep.save(buffer, kind)
        yield buffer.getvalue()


def settings(choices: Choices) -> Settings:
    """What a study of radiographs asks of a child, with the limits of ingest."""
    limits = Limits()
    return Settings(
        size_px=64,
        channels=1,
        modalities=("DX",),
        window=None,
        max_file_bytes=limits.max_file_bytes,
        max_pixel_bytes=limits.max_pixel_bytes,
        memory_bytes=child_bytes(choices),
        timeout_s=limits.decode_timeout_s,
        choices=choices,
    )


def measure(files: int, folder: Path, choices: Choices) -> dict[str, Any]:
    """Outcomes, the slowest file, and the peak of any child in MiB."""
    make = damaged(*draw_dicom(folder), *draw_stills())
    rng = Random(0)
    path = folder / "file"
    outcomes: Counter[str] = Counter()
    slowest_s = 0.0
    decoder = Decoder(settings(choices))
    for done in range(files):
        path.write_bytes(make(rng))
        start = time.monotonic()
        try:
            decoder.decode(path)
            outcomes["read"] += 1
        except Unusable as refusal:
            outcomes[refusal.reason.value] += 1
        slowest_s = max(slowest_s, time.monotonic() - start)
        if done % 1000 == 999:
            print(done + 1, dict(outcomes.most_common(3)), file=sys.stderr)
    decoder.close()
    peak_mib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    lost = sum(outcomes[reason.value] for reason in LOST)
    return {
        "files": files,
        "peak_mib": round(peak_mib),
        "slowest_s": round(slowest_s, 2),
        "lost": lost,
        "outcomes": dict(outcomes.most_common()),
    }


def tables(found: dict[str, Any]) -> list[report.Table]:
    """What became of the files."""
    rows = tuple((name, f"{count:,}") for name, count in found["outcomes"].items())
    note = f"Slowest file: {found['slowest_s']} s, with the start of a child where one was lost."
    return [report.Table("", ("outcome", "files"), rows, note)]


def targets(found: dict[str, Any]) -> list[report.Target]:
    """The peak stays under a child's cap, and no file hangs a child."""
    peak = found["peak_mib"]
    hung = found["outcomes"].get(Reason.TIMED_OUT.value, 0)
    return [
        report.Target(f"peak of any child at most {MOST_MIB} MiB", f"{peak}", peak <= MOST_MIB),
        report.Target("no file takes longer than its time", f"{hung}", hung == 0),
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    report.add_json(parser)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--text", action="store_true", help="look for text in the pixels")
    options = parser.parse_args()
    report.say_conditions()
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(options.files, Path(scratch), Choices(find_text=options.text))
    name = "mutated_files.text" if options.text else "mutated_files"
    report.give(options.json, name, tables(found), found, targets(found))


if __name__ == "__main__":
    main()
